"""Some days of a log: which files they are, and that a log which is still written is refused."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from e2e import tiny_data
from flywheel_contract.stage_spec import DateRange, Input
from flywheel_contract.stages import Origin, Role
from flywheel_trainer.artifacts import digest_folder
from flywheel_trainer.days import refuse_unfinished
from flywheel_trainer.errors import DataError
from tests.trainer.workshop import Json, Workshop

LOG = "pvc://lab/runs/luna/traffic/turns"


@pytest.fixture
def log(workshop: Workshop) -> Path:
    """Three days with twenty rows each, and a file that is still open."""
    folder = workshop.path(LOG)
    for day in (1, 2, 3):
        rows = [row | {key: f"{day}-{row[key]}" for key in ("conversation", "user")} for row in chats(20, day)]
        tiny_data.write(folder / f"date=2026-03-0{day}" / "gateway-a.jsonl", rows)
    (folder / "date=2026-03-02" / "_gateway-b.jsonl").write_text("{", encoding="utf-8")
    return folder


def chats(count: int, seed: int) -> list[Json]:
    """Rows of the log."""
    return tiny_data.traffic(count, seed, "User")


def source(first: str, last: str) -> Json:
    """The input as a Generation names it, before it is resolved."""
    dates = {"first": first, "last": last}
    return {"name": "traffic", "role": "traffic", "kind": "Data", "uri": LOG, "origin": "User", "dates": dates}


def test_only_these_days_are_resolved_and_read(workshop: Workshop, log: Path) -> None:
    two = source("2026-03-01", "2026-03-02")
    digest = workshop.succeed("resolve", [two]).outputs["traffic"]
    assert workshop.succeed("resolve", [source("2026-03-01", "2026-03-03")]).outputs["traffic"] != digest
    tiny_data.write(log / "date=2026-03-03" / "gateway-c.jsonl", chats(5, 9))
    (log / "date=2026-03-02" / "_gateway-b.jsonl").write_text("{}", encoding="utf-8")
    result = workshop.succeed("curate", [two | {"digest": digest}])
    assert workshop.manifest(result).counts["readUser"] == 40


def test_a_day_that_changed_afterwards_is_refused(workshop: Workshop, log: Path) -> None:
    two = source("2026-03-01", "2026-03-02")
    digest = workshop.succeed("resolve", [two]).outputs["traffic"]
    tiny_data.write(log / "date=2026-03-02" / "gateway-c.jsonl", chats(5, 9))
    code, result = workshop.run("curate", [two | {"digest": digest}])
    assert code == 65
    assert "has changed since it was resolved" in result.message


def test_days_that_are_not_there_are_refused(workshop: Workshop, log: Path) -> None:
    assert log.exists()
    code, result = workshop.run("resolve", [source("2025-03-01", "2025-03-02")])
    assert code == 65
    assert "no folder date=YYYY-MM-DD with files from 2025-03-01 to 2025-03-02" in result.message


def test_a_day_that_is_not_over_is_refused(workshop: Workshop, log: Path) -> None:
    assert log.exists()
    today = f"{datetime.now(UTC).date()}"
    code, result = workshop.run("resolve", [source(today, today)])
    assert code == 65
    assert f"the day {today} is not over (UTC)" in result.message
    assert "dates.last" in result.message


def test_a_day_is_over_at_midnight_utc() -> None:
    dates = DateRange.model_validate({"first": "2026-03-01", "last": "2026-03-02"})
    spec = Input(name="log", role=Role.TRAFFIC, kind="Data", uri=LOG, origin=Origin.USER, dates=dates)
    refuse_unfinished(spec, datetime(2026, 3, 3, tzinfo=UTC))
    with pytest.raises(DataError, match="not over"):
        refuse_unfinished(spec, datetime(2026, 3, 2, 23, 59, 59, tzinfo=UTC))


def test_the_digest_is_that_of_the_days_alone(workshop: Workshop, log: Path) -> None:
    only = workshop.succeed("resolve", [source("2026-03-03", "2026-03-03")]).outputs["traffic"]
    for day in ("date=2026-03-01", "date=2026-03-02"):
        for file in (log / day).iterdir():
            file.unlink()
        (log / day).rmdir()
    assert digest_folder(log) == only
