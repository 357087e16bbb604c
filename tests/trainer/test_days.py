"""Some days of a log: which files they are, and that a log which is still written is refused."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from e2e import tiny_data
from flywheel_contract.stage_spec import DateRange, Input
from flywheel_contract.stages import Origin, Role, Stage
from flywheel_trainer.artifacts import Store, digest_folder
from flywheel_trainer.context import StageContext
from flywheel_trainer.data.rows import read_traffic
from flywheel_trainer.days import gather, refuse_unfinished
from flywheel_trainer.errors import DataError
from flywheel_trainer.runner import read_spec
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


def test_the_processes_of_a_stage_do_not_gather_under_each_other(
    workshop: Workshop, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = source("2026-03-01", "2026-03-01")
    digest = workshop.succeed("resolve", [one]).outputs["traffic"]
    spec = read_spec(Stage.CURATE, workshop.spec("curate", [one | {"digest": digest}]))
    gathered = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        gathered.append(StageContext(spec, Store(workshop.root)).input(Role.TRAFFIC).path)
    assert gathered[0] != gathered[1]
    assert [digest_folder(folder) for folder in gathered] == [digest, digest]


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


# --------------------------------------------------------------------------------------------------- feedback


@pytest.fixture
def feedback(workshop: Workshop, log: Path) -> Path:
    """Events of the second day; the log's first two rows of that day are turns `t0` and `t1` of the users `2-...`."""
    file = log / "date=2026-03-02" / "gateway-a.jsonl"
    rows = [json.loads(line) | {"turn": f"t{n}"} for n, line in enumerate(file.read_text().splitlines())]
    tiny_data.write(file, rows)
    events = [
        event(rows[0]["user"], "t0", "thumbs_up"),
        event(rows[0]["user"], "t0", "thumbs_up", value=0.0, ts="2026-03-02T11:00:00Z"),
        event(rows[1]["user"], "t1", "thumbs_down"),
        event(rows[1]["user"], "t1", "share", value=2.0),
        event(rows[0]["user"], "t1", "report"),
        event(rows[1]["user"], None, "regenerate"),
        event(rows[1]["user"], "t1", "message", value=120.0),
    ]
    folder = log.parent / "events"
    tiny_data.write(folder / "date=2026-03-02" / "gateway-a.jsonl", events)
    tiny_data.write(folder / "date=2026-03-03" / "gateway-a.jsonl", [event(rows[1]["user"], "t1", "report")])
    return folder


def event(user: str, turn: str | None, kind: str, **more: Any) -> Json:  # noqa: ANN401 -- JSON
    """A row of the gateway's events."""
    known = {"user_id": user, "ts": "2026-03-02T10:00:00Z", "type": kind, "event_id": f"{turn}-{kind}", **more}
    return known if turn is None else known | {"turn": turn}


def fed(first: str, last: str) -> Json:
    return source(first, last) | {"feedback": True}


def test_feedback_becomes_the_signals_of_the_reply_that_it_names(workshop: Workshop, feedback: Path) -> None:
    assert feedback.exists()
    spec = Input.model_validate(fed("2026-03-01", "2026-03-02"))
    rows = read_traffic(gather(Store(workshop.root), spec, workshop.root / "gathered"), Origin.USER)
    assert len(rows) == 40
    given = {row.turn: row.signals for row in rows if row.turn in ("t0", "t1")}
    assert given["t0"]["thumbsUp"] == 0.0
    assert given["t1"]["thumbsDown"] is True
    assert given["t1"]["share"] == 2.0
    assert all("report" not in row.signals and "regenerate" not in row.signals for row in rows)
    plain = Input.model_validate(source("2026-03-01", "2026-03-02"))
    without = read_traffic(gather(Store(workshop.root), plain, workshop.root / "gathered"), Origin.USER)
    assert all("thumbsDown" not in row.signals for row in without)


def test_feedback_is_part_of_what_was_resolved_and_no_row_by_itself(workshop: Workshop, feedback: Path) -> None:
    two = fed("2026-03-01", "2026-03-02")
    digest = workshop.succeed("resolve", [two]).outputs["traffic"]
    assert workshop.succeed("resolve", [source("2026-03-01", "2026-03-02")]).outputs["traffic"] != digest
    result = workshop.succeed("curate", [two | {"digest": digest}])
    assert workshop.manifest(result).counts["readUser"] == 40
    tiny_data.write(feedback / "date=2026-03-02" / "gateway-b.jsonl", [event("u", "t5", "share")])
    code, result = workshop.run("curate", [two | {"digest": digest}], holdoutFraction=0.4)
    assert code == 65
    assert "has changed since it was resolved" in result.message


def test_days_without_feedback_are_rows_as_they_are(workshop: Workshop, feedback: Path) -> None:
    assert feedback.exists()
    spec = Input.model_validate(fed("2026-03-01", "2026-03-01"))
    folder = gather(Store(workshop.root), spec, workshop.root / "gathered")
    assert len(read_traffic(folder, Origin.USER)) == 20


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"user_id": "u", "type": "thumbs_up", "event_id": "e"}', "line 1: ts: Field required"),
        ('{"user_id": "u", "ts": "2026-03-02T10:00:00Z", "type": "kiss", "event_id": "e"}', "line 1: type: Input"),
        ("[1]", "line 1: "),
        ("{", "line 1 is no JSON"),
    ],
)
def test_an_event_that_cannot_be_read_is_one_sentence(workshop: Workshop, feedback: Path, line: str, said: str) -> None:
    (feedback / "date=2026-03-02" / "gateway-b.jsonl").write_text(line, encoding="utf-8")
    spec = Input.model_validate(fed("2026-03-02", "2026-03-02"))
    folder = gather(Store(workshop.root), spec, workshop.root / "gathered")
    with pytest.raises(DataError, match=r"gateway-b\.jsonl, ") as caught:
        read_traffic(folder, Origin.USER)
    assert said in str(caught.value)
