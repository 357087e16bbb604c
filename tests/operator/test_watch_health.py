"""Health is whether the work is done."""

import math
from dataclasses import dataclass, replace

import aiohttp
import pytest

from flywheel_operator.metrics.registry import Metrics
from flywheel_operator.watch import health


@dataclass
class Candidate:
    """Stands for a Leader."""

    leading: bool = True
    seconds: float | None = 1.0

    def age(self) -> float | None:
        return self.seconds


@pytest.fixture
def vitals() -> health.Vitals:
    return health.Vitals(lambda: 1000.0, 300.0, lambda: 0.0, lambda: 0.0, leading_since=990.0)


def test_a_quiet_leader_is_well(vitals: health.Vitals) -> None:
    assert health.complaints(vitals, Candidate()) == []
    assert vitals.event_age("Job") == 10
    vitals.last_event["Job"] = 995.0
    assert vitals.event_age("Job") == 5


def test_a_standby_replica_is_well_whatever_it_has_not_done(vitals: health.Vitals) -> None:
    idle = replace(vitals, leading_since=None)
    assert health.complaints(idle, Candidate(leading=False, seconds=None)) == []
    assert math.isnan(idle.event_age("Job"))
    assert idle.resync_age() == 0


def test_what_a_restart_would_mend(vitals: health.Vitals) -> None:
    sick = replace(
        vitals, oldest_seconds=lambda: 301.0, longest_pass_seconds=lambda: 400.0, leading_since=0.0, last_resync=10.0
    )
    assert health.complaints(sick, Candidate(seconds=41)) == [
        "the oldest item has been queued for 301 s",
        "a pass has been running for 400 s",
        "the last resync was 990 s ago",
        "the lease was last renewed 41 s ago",
    ]


async def test_the_pages(vitals: health.Vitals) -> None:
    candidate, metrics = Candidate(), Metrics()
    metrics.passed("Generation", "changed", 0.1)
    application = health.application(vitals, candidate, metrics)
    async with health.serve(application, 0) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def page(path: str) -> tuple[int, str]:
            async with session.get(path) as answer:
                return answer.status, await answer.text()

        assert (await page("/healthz"))[0] == 200
        status, text = await page("/readyz")
        assert status == 200
        assert '"leading": true' in text
        assert "flywheel_reconcile_total" in (await page("/metrics"))[1]
        vitals.leading_since = 0.0
        vitals.last_resync = 1.0
        status, text = await page("/healthz")
        assert status == 503
        assert "the last resync was 999 s ago" in text
        candidate.seconds = None
        assert (await page("/readyz"))[0] == 503
