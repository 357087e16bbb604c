"""/healthz, /readyz and /metrics: whether the process does its work, not only whether it exists."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from flywheel_operator.metrics.registry import Metrics
from flywheel_operator.watch.leader import LEASE_SECONDS, Leader

STUCK_QUEUE_SECONDS: Final = 300.0
STUCK_PASS_SECONDS: Final = 300.0
MISSED_RESYNCS: Final = 3


@dataclass(slots=True)
class Vitals:
    """When things last happened, on the monotonic clock; None: never."""

    clock: Callable[[], float]
    resync_seconds: float
    oldest_seconds: Callable[[], float]
    """Of the queue."""
    longest_pass_seconds: Callable[[], float]
    leading_since: float | None = None
    last_resync: float | None = None
    last_event: dict[str, float] = field(default_factory=dict)
    """By kind."""

    def event_age(self, kind: str) -> float:
        """Seconds since the last event of `kind`, or since we lead; NaN where we do not."""
        since = self.last_event.get(kind, self.leading_since)
        return float("nan") if since is None else self.clock() - since

    def resync_age(self) -> float:
        """Seconds since the last resync, or since we lead; 0 where we do not."""
        since = self.last_resync if self.last_resync is not None else self.leading_since
        return 0.0 if since is None else self.clock() - since


def complaints(vitals: Vitals, leader: Leader) -> list[str]:
    """Why a restart would help; empty where all is well. A quiet cluster and a standby replica are well."""
    if not leader.leading:
        return []
    age = leader.age()
    checks = {
        f"the oldest item has been queued for {vitals.oldest_seconds():.0f} s": vitals.oldest_seconds()
        > STUCK_QUEUE_SECONDS,
        f"a pass has been running for {vitals.longest_pass_seconds():.0f} s": vitals.longest_pass_seconds()
        > STUCK_PASS_SECONDS,
        f"the last resync was {vitals.resync_age():.0f} s ago": vitals.resync_age()
        > MISSED_RESYNCS * vitals.resync_seconds,
        f"the lease was last renewed {age or 0:.0f} s ago": age is not None and age > 2 * LEASE_SECONDS,
    }
    return [sentence for sentence, wrong in checks.items() if wrong]


def application(vitals: Vitals, leader: Leader, metrics: Metrics) -> web.Application:
    """The three pages."""

    async def healthz(_: web.Request) -> web.Response:
        wrong = complaints(vitals, leader)
        return _page(503 if wrong else 200, {"complaints": wrong, **_state(vitals, leader)})

    async def readyz(_: web.Request) -> web.Response:
        # A standby replica is ready: it could take over at once. One that never reached the API server is not.
        return _page(200 if leader.age() is not None else 503, _state(vitals, leader))

    async def metrics_page(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics_page)])
    return app


@contextlib.asynccontextmanager
async def serve(app: web.Application, port: int) -> AsyncIterator[int]:
    """Serves `app`; gives the port, which the system chooses where `port` is 0."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        # With port 0, IPv4 and IPv6 get a port each. An IPv4 address is a pair, an IPv6 one has four parts.
        yield int(min(runner.addresses, key=len)[1])
    finally:
        await runner.cleanup()


def _state(vitals: Vitals, leader: Leader) -> dict[str, Any]:
    return {
        "leading": leader.leading,
        "leaseAgeSeconds": _rounded(leader.age()),
        "resyncAgeSeconds": _rounded(vitals.resync_age()),
        "oldestQueuedSeconds": _rounded(vitals.oldest_seconds()),
        "longestPassSeconds": _rounded(vitals.longest_pass_seconds()),
        "lastEventSeconds": {kind: _rounded(vitals.event_age(kind)) for kind in sorted(vitals.last_event)},
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _page(status: int, content: dict[str, Any]) -> web.Response:
    return web.Response(status=status, text=json.dumps(content) + "\n", content_type="application/json")
