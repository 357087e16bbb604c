"""A lineage's own log, as gateways write it: one run does all."""

import datetime as dt
import hashlib
from pathlib import Path

import duckdb
import pytest

from flywheel_contract.experiment import AnalysisResult, BaselineReport
from flywheel_contract.online import Event, EventType, Exposure
from tests.analysis import reference, traffic
from tests.analysis.traffic import T0, T1, WINDOW, Row

DAY = dt.timedelta(days=1)


def hashed(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def leave(log: Path, exposures: list[Row], events: list[Row]) -> None:
    """Rows as gateways leave them: a file per table, date and writer; an open segment beside them."""
    for table, rows in (("exposures", exposures), ("events", events)):
        for writer in range(2):
            for date in sorted({row["ts"].date() for row in rows}):
                part = [r for r in rows[writer::2] if r["ts"].date() == date]
                if part:
                    traffic.write_lines(part, log / table / f"date={date}" / f"gw{writer}-1.jsonl")
        (log / table / "date=2026-03-02" / "_gw0-2.jsonl").write_text('{"user_id": "half a li')


def logged(seed: int, test: str) -> tuple[list[Row], list[Row]]:
    """Made-up traffic in the contract's rows; a third of the users is not enrolled, some are of another test."""
    exposures, events, _ = traffic.make(seed)
    arms = {row["user_id"]: row["arm"] for row in exposures}
    enrolled = {user for i, user in enumerate(sorted(arms)) if i % 3}
    rows = []
    for i, row in enumerate(exposures):
        inside = row["user_id"] in enrolled
        exposure = Exposure(
            user_id=hashed(row["user_id"]), ts=row["ts"], enrolled=inside, arm=row["arm"] if inside else None,
            test=(test if row["ts"] >= T0 else "older") if inside else None, event_id=f"x{i}", trigger="Session",
        )  # fmt: skip
        rows.append(exposure.to_row())
    found = []
    for i, row in enumerate(events):
        if row["user_id"] is None:
            continue
        event = Event(
            user_id=hashed(row["user_id"]), ts=row["ts"], enrolled=row["user_id"] in enrolled,
            arm=arms.get(row["user_id"]), test=test if row["ts"] >= T0 and row["user_id"] in enrolled else None,
            event_id=row["event_id"] or f"e{i}", type=EventType(row["type"]), value=row["value"], fallback=i % 50 == 0,
        )  # fmt: skip
        found.append(event.to_row())
    return _times(rows), _times(found)


def _times(rows: list[Row]) -> list[Row]:
    return [{**row, "ts": dt.datetime.fromisoformat(row["ts"])} for row in rows]


def before(events: list[Row], since: dt.datetime | None = None) -> list[Row]:
    """Covariates, counted in plain Python."""
    once = {row["event_id"]: row for row in sorted(events, key=lambda r: r["ts"], reverse=True)}
    times: dict[str, list[dt.datetime]] = {}
    for row in once.values():
        if row["type"] == "message" and row["ts"] < T0 and (since is None or row["ts"] >= since):
            times.setdefault(row["user_id"], []).append(row["ts"])
    return [
        {"user_id": user, "pre_messages": len(found), "pre_active_days": len({t.date() for t in found})}
        for user, found in times.items()
    ]


@pytest.mark.parametrize("seed", range(2))
def test_one_run_over_the_log(tmp_path: Path, seed: int) -> None:
    exposures, events = logged(seed, "luna-2")
    leave(tmp_path / "log", exposures, events)
    termination = tmp_path / "termination"
    report = traffic.run(
        "run", "--log", tmp_path / "log", "--test", "luna-2", *WINDOW, "--termination-log", termination
    )
    mine = [row for row in exposures if row.get("test") == "luna-2"]
    table = reference.per_user(mine, events, before(events), T1)
    found = traffic.by_name(report)
    for name in [*reference.RATIOS, *(n + "Cuped" for n in reference.COVARIATE)]:
        wanted = reference.estimate(table, name)
        assert found[name]["lift"] == pytest.approx(wanted["lift"], rel=1e-8), name
        assert found[name]["low"] == pytest.approx(wanted["low"], rel=1e-8), name
    assert found["messagesPerUserCuped"]["method"].endswith("CUPED on preMessages")
    assert report["users"]["fallbackEvents"] > 0
    assert AnalysisResult.model_validate_json(termination.read_text()).users is not None


def test_a_log_by_claim_and_a_report_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_CLAIMS_ROOT", str(tmp_path / "claims"))
    monkeypatch.setenv("FLYWHEEL_TERMINATION_LOG", str(tmp_path / "termination"))
    leave(tmp_path / "claims" / "luna" / "log", *logged(5, "t"))
    report = "pvc://luna/reports/t.json"
    traffic.run("--log", "pvc://luna/log", "--test", "t", *WINDOW, "--report", report)
    result = AnalysisResult.model_validate_json((tmp_path / "termination").read_text())
    assert result.report_uri == report
    assert (tmp_path / "claims" / "luna" / "reports" / "t.json").is_file()
    assert [p.name for p in (tmp_path / "claims" / "luna" / "reports").iterdir()] == ["t.json"]


def test_a_log_before_the_first_user_is_no_data(tmp_path: Path) -> None:
    report = traffic.run("--log", tmp_path / "log", "--test", "t", *WINDOW)
    assert report["users"]["control"] == 0
    assert any("holds no file" in note for note in report["notes"])


def test_exposures_of_another_test_are_told(tmp_path: Path) -> None:
    leave(tmp_path, *logged(1, "theirs"))
    report = traffic.run("--log", tmp_path, "--test", "mine", *WINDOW)
    assert "no exposure is of 'mine' but of 'theirs': --test names another" in report["notes"]


@pytest.mark.parametrize(("name", "days"), [("c.parquet", None), ("c.jsonl", 1)])
def test_covariates_of_the_log(tmp_path: Path, name: str, days: int | None) -> None:
    exposures, events = logged(3, "t")
    leave(tmp_path / "log", exposures, events)
    more = [] if days is None else ["--days", str(days)]
    code, out = traffic.attempt(
        "covariates", "--log", tmp_path / "log", "--before", "2026-03-02T00:00:00Z", "--output", tmp_path / name, *more
    )
    assert code == 0
    wanted = before(events, None if days is None else T0 - days * DAY)
    assert f"covariates of {len(wanted)} users" in out
    rows = duckdb.sql(f"SELECT user_id, pre_messages, pre_active_days FROM '{tmp_path / name}'").fetchall()
    assert sorted(rows) == sorted((r["user_id"], r["pre_messages"], r["pre_active_days"]) for r in wanted)


@pytest.mark.parametrize("words", [["--output", "c.csv"], ["--output", "c.jsonl", "--days", "0"]])
def test_covariates_told_what_is_wrong(tmp_path: Path, words: list[str]) -> None:
    code, _ = traffic.attempt("covariates", "--log", tmp_path, "--before", "2026-03-02", *words)
    assert code == 64


def test_a_baseline_counts_everybody_from_the_first_row_on(tmp_path: Path) -> None:
    exposures, events = logged(4, "t")
    leave(tmp_path, exposures, events)
    termination = tmp_path / "termination"
    code, out = traffic.attempt(
        "baseline", "--log", tmp_path, *WINDOW, "--termination-log", termination, "--report", tmp_path / "b.json"
    )
    assert code == 0
    baseline = BaselineReport.model_validate_json(out)
    everybody = [{**row, "arm": "control"} for row in (*exposures, *events)]
    table = reference.per_user(everybody, events, before(events), T1)["control"]
    assert baseline.users == len(table["messages"])
    found = {metric.name: metric.statistics for metric in baseline.metrics}
    assert found["messagesPerUserCuped"].mean == pytest.approx(table["messages"].mean())
    x, y = table["pre_messages"], table["messages"]
    theta = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert found["messagesPerUserCuped"].variance == pytest.approx((y - theta * x).var(ddof=1))
    assert found["errorsPerRequest"].numerator == table["errors"].sum()
    result = AnalysisResult.model_validate_json(termination.read_text())
    assert result.baseline is not None
    assert result.baseline.users == baseline.users
    code, out = traffic.attempt("baseline", "--log", tmp_path, *WINDOW, "--format", "table")
    assert code == 0
    assert "messagesPerUserCuped" in out
