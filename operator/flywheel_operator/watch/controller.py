"""The passes: observe -> plan (pure) -> execute -> status, one at a time per object."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from weakref import WeakValueDictionary

from flywheel_operator import logs
from flywheel_operator.kube import faults
from flywheel_operator.kube.client import Api
from flywheel_operator.kube.errors import (
    GiveUpError,
    KubeError,
    NotFoundError,
    RetryLaterError,
    RetryNowError,
    UnavailableError,
)
from flywheel_operator.kube.events import Recorder
from flywheel_operator.kube.execute import Execution
from flywheel_operator.kube.observe import Observer
from flywheel_operator.kube.resources import ABTEST, GENERATION, OWN, REWARD_MODEL, Key, Kind, Raw
from flywheel_operator.metrics.registry import Metrics
from flywheel_operator.model.abtest_status import ABTestStatus
from flywheel_operator.model.names import LABEL_LINEAGE
from flywheel_operator.model.objects import ABTest, Generation, RewardModel
from flywheel_operator.model.observed import ObservedABTest, ObservedGeneration, ObservedRewardModel
from flywheel_operator.model.status import GenerationStatus, RewardModelStatus
from flywheel_operator.plan.actions import Event, Plan
from flywheel_operator.watch.health import Vitals
from flywheel_operator.watch.routing import Router
from flywheel_operator.watch.workqueue import WorkQueue

PASS_SECONDS: Final = 120.0
STUBBORN_FAILURES: Final = 5
"""From so many failures in a row on, one that may pass is shown on the object too."""

_log = logging.getLogger(__name__)


class BugError(RetryLaterError):
    """The operator itself broke over this object. Other objects go on."""

    reason = "InternalError"


@dataclass(frozen=True, slots=True)
class Planners:
    """The pure functions that decide."""

    generation: Callable[[ObservedGeneration], Plan[GenerationStatus]]
    reward_model: Callable[[ObservedRewardModel], Plan[RewardModelStatus]]
    ab_test: Callable[[ObservedABTest], Plan[ABTestStatus]]


@dataclass(frozen=True, slots=True)
class _Decision:
    """What a pass is to do about an object."""

    subject: Generation | RewardModel | ABTest
    plan: Plan[Any]


class Controller:
    """Looks at the objects that the queue hands out."""

    def __init__(
        self,
        api: Api,
        observer: Observer,
        recorder: Recorder,
        planners: Planners,
        queue: WorkQueue[Key],
        router: Router,
        metrics: Metrics,
        vitals: Vitals,
        namespaces: tuple[str, ...] = (),
    ) -> None:
        """`namespaces` are those that are looked at; none: all."""
        self._api = api
        self._recorder = recorder
        self._queue = queue
        self._router = router
        self._metrics = metrics
        self._vitals = vitals
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)
        # Weak: a lineage that nobody works on needs no lock.
        self._lineages: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self.synced = asyncio.Event()
        """Set once every object has been queued: the API server serves our kinds, and we may list them."""
        self._decide: dict[str, Callable[[Raw, datetime], Awaitable[_Decision]]] = {
            GENERATION.kind: _generation(observer, planners),
            REWARD_MODEL.kind: _reward_model(observer, planners),
            ABTEST.kind: _ab_test(observer, planners),
        }

    def notify(self, kind: Kind, raw: Raw, deleted: bool) -> None:
        """An event arrived: queues all that it concerns."""
        self._vitals.last_event[kind.kind] = self._vitals.clock()
        if kind.kind in OWN:
            concerned = self._router.own({"apiVersion": kind.api_version, "kind": kind.kind} | raw, deleted=deleted)
        else:
            concerned = self._router.child(raw)
        for key in sorted(concerned):
            self._queue.add(key)

    async def work(self) -> None:
        """One worker: passes until the queue is closed."""
        while (key := await self._queue.get()) is not None:
            try:
                await self.handle(key)
            finally:
                self._queue.done(key)

    async def resync(self) -> None:
        """Queues every object there is, and forgets those that are gone unnoticed."""
        keys: set[Key] = set()
        for kind in OWN.values():
            for namespace in self._namespaces:
                for raw in await self._api.list(kind, namespace):
                    keys.add(Key(kind.kind, raw["metadata"]["namespace"], raw["metadata"]["name"]))
                    self._router.own(raw)
        for key in self._router.keep_only(keys) | keys:
            self._queue.add(key)
        self._vitals.last_resync = self._vitals.clock()
        self.synced.set()

    async def resync_for_ever(self) -> None:
        """Resyncs now and then; where the API server does not answer, soon again."""
        while True:
            try:
                await self.resync()
                await asyncio.sleep(self._vitals.resync_seconds)
            except KubeError as error:
                _log.warning("resync: %s", error)
                await asyncio.sleep(min(10.0, self._vitals.resync_seconds))

    async def handle(self, key: Key) -> str:
        """One pass over `key`, with everything that may go wrong in it; says how it ended."""
        started = time.monotonic()
        with logs.about(kind=key.kind, namespace=key.namespace, name=key.name):
            raw: Raw | None = None
            try:
                async with asyncio.timeout(PASS_SECONDS):
                    async with self._turn(key):
                        raw = await self._api.get(OWN[key.kind], key.namespace, key.name)
                        result = self._gone(key) if raw is None else await self._pass(key, raw)
            except TimeoutError:
                result = await self._failed(key, raw, UnavailableError(f"the pass took more than {PASS_SECONDS:.0f} s"))
            except KubeError as error:
                result = await self._failed(key, raw, error)
            except Exception as error:  # noqa: BLE001 -- one object must not take down the work on all others
                _log.exception("the operator broke over this object")
                result = await self._failed(key, raw, BugError(f"{type(error).__name__}: {error}"))
        self._metrics.passed(key.kind, result, time.monotonic() - started)
        return result

    @contextlib.asynccontextmanager
    async def _turn(self, key: Key) -> AsyncIterator[None]:
        """Generations of one lineage are looked at one after the other.

        They share what serves: a former one that is being scaled to zero must not cross a rollback that needs it.
        """
        lineage = self._router.lineage(key)
        if not lineage:
            yield
            return
        async with self._lineages.setdefault((key.namespace, lineage), asyncio.Lock()):
            yield

    async def _pass(self, key: Key, raw: Raw) -> str:
        now = datetime.now(UTC)
        # 1. Look once, think once.
        decision = await self._decide[key.kind](raw, now)
        subject, plan = decision.subject, decision.plan
        with logs.about(**({"stage": plan.status.stage} if plan.status.stage else {})):
            # 2. Act.
            asked = await Execution(self._api, key, subject.metadata, subject.status).run(plan)
            # 3. Tell.
            for event in plan.events:
                _log.log(
                    logging.WARNING if event.type == "Warning" else logging.INFO, "%s: %s", event.reason, event.message
                )
                await self._recorder.record(raw, event, now)
            await self._clear_fault(raw, now)
            self._metrics.show(key.kind, subject, plan.status)
            if plan.switch is not None:
                self._metrics.switched(key.namespace, plan.switch.service["metadata"]["labels"][LABEL_LINEAGE])
        # 4. Who looks next, and when.
        self._queue.succeeded(key)
        for name in plan.wake:
            self._queue.add(Key(GENERATION.kind, key.namespace, name))
        if plan.requeue_after is not None:
            self._queue.add_after(key, plan.requeue_after)
        return "changed" if asked else "unchanged"

    def _gone(self, key: Key) -> str:
        self._queue.succeeded(key)
        self._metrics.forget(key.kind, key.namespace, key.name)
        return "gone"

    async def _failed(self, key: Key, raw: Raw | None, error: KubeError) -> str:
        if isinstance(error, RetryNowError):
            self._queue.retry(key, at_once=True)
            _log.info("look again: %s", error)
            return "conflict"
        if isinstance(error, GiveUpError):
            # The next event about it, or the next resync, tries again.
            self._queue.succeeded(key)
            _log.error("%s: %s", error.reason, error)
            await self._report(raw, error)
            return "gave_up"
        delay = self._queue.retry(key)
        _log.warning("%s, again in %.0f s: %s", error.reason, delay, error)
        if isinstance(error, BugError) or self._queue.failures(key) >= STUBBORN_FAILURES:
            await self._report(raw, error)
        return "error"

    async def _report(self, raw: Raw | None, error: KubeError) -> None:
        """Shows `error` on the object, as far as the cluster lets us."""
        if raw is None:
            return
        now = datetime.now(UTC)
        try:
            if await faults.report(self._api, raw, error, now):
                await self._recorder.record(raw, Event("Warning", error.reason, str(error)), now)
        except KubeError as second:
            _log.warning("the object does not show what is wrong with it: %s", second)

    async def _clear_fault(self, raw: Raw, now: datetime) -> None:
        with contextlib.suppress(NotFoundError):  # its last finalizer was ours
            await faults.clear(self._api, raw, now)


def _generation(observer: Observer, planners: Planners) -> Callable[[Raw, datetime], Awaitable[_Decision]]:
    async def decide(raw: Raw, now: datetime) -> _Decision:
        observed = await observer.observe_generation(raw, now)
        return _Decision(observed.generation, planners.generation(observed))

    return decide


def _reward_model(observer: Observer, planners: Planners) -> Callable[[Raw, datetime], Awaitable[_Decision]]:
    async def decide(raw: Raw, now: datetime) -> _Decision:
        observed = await observer.observe_reward_model(raw, now)
        return _Decision(observed.reward_model, planners.reward_model(observed))

    return decide


def _ab_test(observer: Observer, planners: Planners) -> Callable[[Raw, datetime], Awaitable[_Decision]]:
    async def decide(raw: Raw, now: datetime) -> _Decision:
        observed = await observer.observe_ab_test(raw, now)
        return _Decision(observed.test, planners.ab_test(observed))

    return decide
