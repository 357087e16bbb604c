"""The life of the process: stand by, lead, stop."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Coroutine
from typing import Any, Final

import aiohttp

from flywheel_operator.kube.client import Api, connect
from flywheel_operator.kube.events import Recorder
from flywheel_operator.kube.observe import Observer
from flywheel_operator.kube.progress import Scraper
from flywheel_operator.kube.resources import CHILDREN, OWN, Key
from flywheel_operator.metrics.registry import Metrics
from flywheel_operator.settings import OperatorSettings
from flywheel_operator.watch import health
from flywheel_operator.watch.controller import Controller, Planners
from flywheel_operator.watch.handlers import Watcher
from flywheel_operator.watch.leader import Leader
from flywheel_operator.watch.routing import Router
from flywheel_operator.watch.workqueue import WorkQueue

DRAIN_SECONDS: Final = 10.0
"""Passes under way may end within this time after SIGTERM; a pass that is cut off harms nothing."""
_clock = time.monotonic
_log = logging.getLogger(__name__)


async def run(settings: OperatorSettings, planners: Planners) -> int:
    """Runs until SIGTERM or SIGINT (0), or until the lease or the watcher is lost (1)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with connect(settings.kubeconfig) as client, aiohttp.ClientSession(trust_env=False) as session:
        queue: WorkQueue[Key] = WorkQueue(_clock)
        vitals = health.Vitals(_clock, settings.resync_seconds, queue.oldest_seconds, queue.longest_pass_seconds)
        api = Api(client)
        leader = Leader(
            api,
            name=settings.lease_name,
            namespace=settings.lease_namespace,
            identity=settings.identity,
            clock=_clock,
        )
        metrics = Metrics()
        _watch_vitals(metrics, queue, vitals, leader)
        controller = _controller(api, session, settings, planners, queue, metrics, vitals)
        async with health.serve(health.application(vitals, leader, metrics), settings.port) as port:
            _log.info("health and metrics on port %d", port)
            if await _first(leader.acquire(), stop.wait()) == 1:
                return 0
            vitals.leading_since = _clock()
            return await _lead(controller, leader, queue, settings, stop)


async def _lead(
    controller: Controller,
    leader: Leader,
    queue: WorkQueue[Key],
    settings: OperatorSettings,
    stop: asyncio.Event,
) -> int:
    """Works until told to stop (0), or until the lease or a part of the work is lost (1)."""
    watcher = Watcher(controller.notify, settings.namespaces, in_cluster=settings.kubeconfig is None)
    workers = [asyncio.create_task(controller.work(), name=f"worker-{n}") for n in range(settings.workers)]
    renewing = asyncio.create_task(leader.hold(), name="lease")
    others = [
        asyncio.create_task(_watch(controller, watcher), name="watcher"),
        asyncio.create_task(controller.resync_for_ever(), name="resync"),
    ]
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([*workers, renewing, *others, stopping], return_when=asyncio.FIRST_COMPLETED)
        if renewing in done:
            # Another replica may lead already: not one write more.
            return 1
        for task in done - {stopping}:
            _log.error("%s ended: %r", task.get_name(), task.exception(), exc_info=task.exception())
        queue.close()
        await asyncio.wait(workers, timeout=DRAIN_SECONDS)
        await _cancel([renewing])
        await leader.release()
        return 0 if stopping in done else 1
    finally:
        await _cancel([*workers, renewing, *others, stopping])


async def _watch(controller: Controller, watcher: Watcher) -> None:
    # kopf looks only once at what kinds there are: it may start when our CRDs are there, not before.
    await controller.synced.wait()
    await watcher.run()


def _controller(
    api: Api,
    session: aiohttp.ClientSession,
    settings: OperatorSettings,
    planners: Planners,
    queue: WorkQueue[Key],
    metrics: Metrics,
    vitals: health.Vitals,
) -> Controller:
    return Controller(
        api,
        Observer(api, settings.for_planner(), Scraper(session)),
        Recorder(api, settings.identity, _clock),
        planners,
        queue,
        Router(),
        metrics,
        vitals,
        settings.namespaces,
    )


def _watch_vitals(metrics: Metrics, queue: WorkQueue[Key], vitals: health.Vitals, leader: Leader) -> None:
    metrics.watch("flywheel_queue_depth", "Objects that wait to be looked at.", lambda: float(len(queue)))
    metrics.watch("flywheel_queue_oldest_seconds", "For how long the oldest of them has waited.", queue.oldest_seconds)
    metrics.watch("flywheel_leader", "1 where this replica leads.", lambda: float(leader.leading))
    metrics.watch("flywheel_resync_age_seconds", "Seconds since every object was last queued.", vitals.resync_age)
    metrics.watch_kinds(
        "flywheel_watch_last_event_seconds",
        "Seconds since the last event of a kind, or since this replica leads.",
        tuple(kind.kind for kind in (*OWN.values(), *CHILDREN)),
        vitals.event_age,
    )


async def _first(*calls: Coroutine[Any, Any, Any]) -> int:
    """The place of the call that ends first; the others are cancelled. Its error is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        index = next(i for i, task in enumerate(tasks) if task.done())
        tasks[index].result()
        return index
    finally:
        await _cancel(tasks)


async def _cancel(tasks: "list[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        # Whoever waits for a task has looked at its error; here it only has to end.
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
