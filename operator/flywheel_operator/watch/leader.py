"""Leader election by a coordination.k8s.io Lease: one of several replicas works, the others stand by.

The election is the client library's; its lock is our own. The library's (37.0) cannot create a Lease (its own argument
check refuses the request), takes a lost connection for a bug that ends the election, waits five minutes for an answer,
and writes local time as UTC.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord

from flywheel_operator.kube.client import Api
from flywheel_operator.kube.errors import KubeError, UnavailableError
from flywheel_operator.kube.resources import LEASE, Raw

# The last renewal that can succeed begins RETRY + RENEW seconds after the one before and takes two requests at most:
# 2 + 9 + 2 * 4 = 19 seconds. A leader that cannot renew has stopped before its lease ends at 20. On the small machines
# that we test on, training and API server share two cores: the usual 15 seconds would leave too little for a request.
LEASE_SECONDS: Final = 20
RENEW_SECONDS: Final = 9
RETRY_SECONDS: Final = 2
REQUEST_SECONDS: Final = 4

AnswerT = TypeVar("AnswerT")

_log = logging.getLogger(__name__)


class Leader:
    """A candidate for the Lease."""

    def __init__(self, api: Api, *, name: str, namespace: str, identity: str, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._lock = _Lock(api, name, namespace, identity, clock)
        self._election = LeaderElection(
            Config(
                self._lock,
                lease_duration=LEASE_SECONDS,
                renew_deadline=RENEW_SECONDS,
                retry_period=RETRY_SECONDS,
                onstarted_leading=_nothing,
                onstopped_leading=_nothing,
            )
        )
        self.leading = False

    async def acquire(self) -> None:
        """Waits until the Lease is ours."""
        _log.info("%s stands by for the lease %s/%s", self._lock.identity, self._lock.namespace, self._lock.name)
        await self._election.acquire()
        self.leading = True
        _log.info("%s leads", self._lock.identity)

    async def hold(self) -> None:
        """Renews the Lease; returns when it is lost."""
        try:
            await self._election.renew_loop()
        finally:
            self.leading = False
        _log.error("%s lost the lease %s/%s", self._lock.identity, self._lock.namespace, self._lock.name)

    async def release(self) -> None:
        """Gives the Lease back, so that the next leader need not wait until it runs out. Failing is harmless."""
        self.leading = False
        try:
            await self._lock.give_back()
        except KubeError as error:
            _log.warning("the lease was not released: %s", error)

    def age(self) -> float | None:
        """Seconds since the API server last answered about the Lease; None where it never has."""
        return self._lock.age()


class _Lock:
    """The Lease, written by compare-and-swap. No answer is an answer like any other: no."""

    def __init__(self, api: Api, name: str, namespace: str, identity: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.namespace = namespace
        self.identity = identity
        self._api = api
        self._clock = clock
        self._seen: Raw = {}
        self._answered: float | None = None

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        """True and the record, or False and the reason, in the form that the library's election asks for."""
        try:
            found = await self._asked(self._api.get(LEASE, namespace, name))
        except KubeError as error:
            return False, ApiException(status=0, reason=str(error))
        if found is None:
            absent = ApiException(status=404, reason="the Lease does not exist yet")
            absent.body = '{"code": 404}'
            return False, absent
        self._seen = found
        spec = found.get("spec") or {}
        # A Lease that was given back has no holder: the election takes such a one at once.
        fields = (
            spec.get(key) or None for key in ("holderIdentity", "leaseDurationSeconds", "acquireTime", "renewTime")
        )
        return True, LeaderElectionRecord(*fields)

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:  # noqa: ANN401 -- the library's
        """Says whether the Lease was created."""
        metadata = {"name": name, "namespace": namespace}
        lease = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata}
        return await self._written(self._api.create(lease | {"spec": self._spec({})}))

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:  # noqa: ANN401 -- the library's
        """Says whether the Lease, as `get` saw it last, was replaced."""
        return await self._written(self._api.replace(self._seen | {"spec": self._spec(self._seen.get("spec") or {})}))

    async def give_back(self) -> None:
        """Raises KubeError."""
        lease = await self._asked(self._api.get(LEASE, self.namespace, self.name))
        if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
            spec = lease["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
            await self._asked(self._api.replace(lease | {"spec": spec}))

    def age(self) -> float | None:
        return None if self._answered is None else self._clock() - self._answered

    def _spec(self, before: Raw) -> Raw:
        now, ours = _now(), before.get("holderIdentity") == self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": before.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (0 if ours or not before else 1),
        }

    async def _written(self, call: Coroutine[Any, Any, Raw]) -> bool:
        try:
            await self._asked(call)
        except KubeError as error:
            _log.warning("the lease was not written: %s", error)
            return False
        return True

    async def _asked(self, call: Coroutine[Any, Any, AnswerT]) -> AnswerT:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                answer = await call
        except TimeoutError as error:
            raise UnavailableError(f"no answer about the lease within {REQUEST_SECONDS} s") from error
        self._answered = self._clock()
        return answer


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


async def _nothing() -> None:
    """We call the parts of the election ourselves: its `run` would not notice that the work has died."""
