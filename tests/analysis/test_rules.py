"""Who and what counts, one rule at a time, by hand-made rows."""

import datetime as dt
import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from flywheel_contract.experiment import AnalysisResult
from tests.analysis import traffic
from tests.analysis.traffic import T0, T1, WINDOW

HOUR = dt.timedelta(hours=1)
Row = dict[str, Any]


def exposure(user: str | None, arm: str | None, at: dt.datetime = T0, **more: object) -> Row:
    return {"user_id": user, "arm": arm, "ts": at, **more}


def event(user: str | None, at: dt.datetime, kind: str = "message", value: float | None = 100.0, **more: object) -> Row:
    return {"user_id": user, "ts": at, "type": kind, "value": value, **more}


def people(arm: str, count: int) -> list[Row]:
    return [exposure(f"{arm}-{i}", arm) for i in range(count)]


def chats(arm: str, count: int) -> list[Row]:
    """User number i writes i + 1 messages."""
    return [event(f"{arm}-{i}", T0 + (n + 1) * HOUR) for i in range(count) for n in range(i + 1)]


def measured(
    folder: Path, exposures: list[Row], events: list[Row], *more: str | Path, covariates: list[Row] | None = None
) -> dict:
    words: list[str | Path] = []
    if covariates is not None:
        words = ["--covariates", traffic.write_lines(covariates, folder / "covariates.jsonl")]
    return traffic.run(
        "--exposures", traffic.write_lines(exposures, folder / "exposures.jsonl"),
        "--events", traffic.write_lines(events, folder / "events.jsonl"),
        *words, *WINDOW, *more,
    )  # fmt: skip


def both(count: int = 5) -> tuple[list[Row], list[Row]]:
    return people("control", count) + people("treatment", count), chats("control", count) + chats("treatment", count)


def metric(report: dict, name: str) -> dict:
    return traffic.by_name(report)[name]


def test_the_window_and_the_first_exposure(tmp_path: Path) -> None:
    tick = dt.timedelta(microseconds=1)
    exposures = [
        exposure("a", "control", T0 + 2 * HOUR),
        exposure("a", "control", T0 + HOUR + tick),
        exposure("a", "treatment", T0 - tick),
        exposure("a", "treatment", T1),
        exposure("late", "control", T1),
        exposure("early", "treatment", T0 - tick),
        exposure("twice", "control", T0),
        exposure("twice", "treatment", T1 - tick),
        exposure(None, "control", T0),
        exposure("b", "treatment", T0),
    ]
    events = [
        event("a", T0 + HOUR),
        event("a", T0 + HOUR + tick),
        event("a", T1 - tick),
        event("a", T1),
        event("late", T1),
        event("early", T0),
        event("twice", T0 + HOUR),
        event(None, T0 + HOUR),
        event("stranger", T0 + HOUR),
    ]
    report = measured(tmp_path, exposures, events)
    assert report["users"] | {"inBothArms": 0} == {
        "control": 1, "treatment": 1, "inBothArms": 0, "fallback": 0, "fallbackEvents": 0.0, "withoutCovariates": 2,
    }  # fmt: skip
    assert report["users"]["inBothArms"] == 1
    assert metric(report, "messagesPerUser")["control"]["numerator"] == 2
    assert metric(report, "activeDaysPerUser")["control"]["mean"] == 2
    assert metric(report, "messagesPerUser")["treatment"]["mean"] == 0


def test_days_are_utc_dates_whatever_the_zone_of_the_writer(tmp_path: Path) -> None:
    tokyo = dt.timezone(9 * HOUR)
    events = [
        # One UTC day and two in Tokyo; the other way round for the second user.
        event("control-0", dt.datetime(2026, 3, 3, 8, tzinfo=tokyo)),
        event("control-0", dt.datetime(2026, 3, 2, 23, tzinfo=tokyo)),
        event("control-1", dt.datetime(2026, 3, 3, 8, 59, 59, 999000, tzinfo=tokyo)),
        event("control-1", dt.datetime(2026, 3, 3, 9, 0, 0, tzinfo=tokyo)),
    ]
    report = measured(tmp_path, people("control", 2) + people("treatment", 2), events)
    assert metric(report, "activeDaysPerUser")["control"]["numerator"] == 3


def test_messages_are_capped_and_a_missing_latency_is_neither_above_nor_below(tmp_path: Path) -> None:
    exposures, events = both()
    events += [event("control-0", T0 + HOUR * (i + 1) / 9, value=None) for i in range(150)]
    events += [event("control-1", T0 + HOUR, "error", value=5.0), event("control-1", T0 + HOUR, value=400.0)]
    report = measured(tmp_path, exposures, events)
    assert metric(report, "messagesPerUserCapped")["control"]["numerator"] == 100 + 3 + 3 + 4 + 5
    latency = metric(report, "latencyMean")["control"]
    assert (latency["numerator"], latency["denominator"]) == (15 * 100 + 400, 16)


def test_duplicates_count_once_and_rows_without_an_id_all_count(tmp_path: Path) -> None:
    exposures, _ = both()
    one = event("control-0", T0 + HOUR, event_id="x")
    events = [
        one,
        dict(one),
        one | {"ts": T0 + 30 * HOUR},
        event("control-0", T0 + HOUR),
        event("control-0", T0 + HOUR),
    ]
    report = measured(tmp_path, exposures, events)
    assert metric(report, "messagesPerUser")["control"]["numerator"] == 3
    assert metric(report, "activeDaysPerUser")["control"]["numerator"] == 1


def test_numbers_of_other_types_and_columns_that_nobody_knows(tmp_path: Path) -> None:
    exposures = [{**row, "user_id": i, "extra": {"a": [1]}} for i, row in enumerate(both()[0])]
    events = [event(str(i), T0 + HOUR, value=v) for i, v in enumerate(["12.5", 3, 4.0, "soon", "NaN"])]  # type: ignore[arg-type]
    events[0]["arm"], events[1]["day"] = "control", "Monday"
    latency = metric(measured(tmp_path, exposures, events), "latencyMean")["control"]
    assert (latency["numerator"], latency["denominator"]) == (19.5, 3)


def test_hostile_ids_are_ids_like_others(tmp_path: Path) -> None:
    hostile = ["a\nb", "'; DROP TABLE users; --", "../../etc/passwd", "x" * 10_000, "🌙", "a\u0000b"]
    exposures = [exposure(h, "control") for h in hostile] + [exposure(h + "2", "treatment") for h in hostile]
    report = measured(tmp_path, exposures, [event(h, T0 + HOUR) for h in hostile])
    assert report["users"]["control"] == report["users"]["treatment"] == len(hostile)
    assert metric(report, "activeShare")["control"]["mean"] == 1


def test_only_enrolled_users_of_this_test_count(tmp_path: Path) -> None:
    exposures, events = both(3)
    exposures = [{**row, "test": "mine", "enrolled": True} for row in exposures]
    exposures += [
        exposure("o", "control", test="theirs", enrolled=True),
        exposure("control-0", "treatment", test="theirs", enrolled=True),
        exposure("n", None, test="mine", enrolled=False),
        exposure("m", "control", test="mine", enrolled=False),
        exposure("k", "none", test="mine"),
    ]
    events.append(event("control-0", T0 + HOUR, test="theirs"))
    report = measured(tmp_path, exposures, events, "--test", "mine")
    assert (report["users"]["control"], report["users"]["treatment"], report["users"]["inBothArms"]) == (3, 3, 0)
    assert metric(report, "messagesPerUser")["control"]["numerator"] == 6


def test_fallback_users_stay_and_are_told(tmp_path: Path) -> None:
    exposures, events = both(4)
    exposures[4]["fallback"] = True
    events = [{**e, "fallback": e["user_id"] == "treatment-1"} for e in events]
    users = measured(tmp_path, exposures, events)["users"]
    assert (users["treatment"], users["fallback"], users["fallbackEvents"]) == (4, 2, pytest.approx(2 / 10))


def test_missing_covariates_are_zero(tmp_path: Path) -> None:
    exposures, events = both()
    covariates = [
        {"user_id": "control-0", "pre_messages": None, "pre_active_days": 3},
        {"user_id": None, "pre_active_days": 1},
    ]
    report = measured(tmp_path, exposures, events, covariates=covariates)
    assert report["users"]["withoutCovariates"] == 9
    result = metric(report, "messagesPerUserCuped")
    assert result["method"] == "log-delta"
    assert result["message"] == "pre_messages does not vary over the users: the plain estimate stands"
    plain = metric(report, "messagesPerUser")
    assert [result[k] for k in ("lift", "low", "high", "pValue")] == [
        plain[k] for k in ("lift", "low", "high", "pValue")
    ]


def test_a_covariates_file_that_is_not_there_is_noted(tmp_path: Path) -> None:
    exposures, events = both()
    report = measured(tmp_path, exposures, events, "--covariates", tmp_path / "none.parquet")
    assert any("none.parquet" in note for note in report["notes"])
    assert report["users"]["withoutCovariates"] == 10


@pytest.mark.parametrize("name", ["safetyViolationsPerMessage", "falseRefusalsPerMessage", "errorsPerRequest"])
def test_without_events_only_exact_bounds_are_there(tmp_path: Path, name: str) -> None:
    exposures, events = both(20)
    result = metric(measured(tmp_path, exposures, events), name)
    assert result["status"] == "Unproven"
    assert "lift" not in result
    n = 210
    upper = 1 - 0.025 ** (1 / n) if name == "errorsPerRequest" else -math.log(0.025) / n
    assert result["differenceUpper"] == pytest.approx(upper)
    assert result["harmPValue"] == 1


def test_exact_bounds_and_harm_with_events_in_one_arm(tmp_path: Path) -> None:
    exposures, events = both(20)
    events += [event("treatment-3", T0 + HOUR, "safety_violation"), event("treatment-9", T0 + HOUR, "error")] * 3
    report = measured(tmp_path, exposures, events)
    poisson = metric(report, "safetyViolationsPerMessage")
    assert poisson["harmPValue"] == pytest.approx(stats.binomtest(3, 3, 0.5, alternative="greater").pvalue)
    assert poisson["differenceUpper"] == pytest.approx(stats.chi2.ppf(0.975, 8) / 2 / 210)
    binomial = metric(report, "errorsPerRequest")
    assert binomial["treatment"]["denominator"] == 213
    assert binomial["differenceUpper"] == pytest.approx(stats.beta.ppf(0.975, 4, 210))
    assert binomial["harmPValue"] == pytest.approx(stats.binomtest(3, 3, 213 / 423, alternative="greater").pvalue)


def test_sample_ratio_is_a_chi_square_without_correction(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"allocation": {"control": 10, "treatment": 20}}))
    report = measured(tmp_path, people("control", 30) + people("treatment", 42), [], "--spec", spec)
    assert report["sampleRatio"]["expectedTreatmentShare"] == pytest.approx(2 / 3)
    assert report["sampleRatio"]["observedTreatmentShare"] == pytest.approx(42 / 72)
    assert report["sampleRatio"]["pValue"] == pytest.approx(stats.chisquare([30, 42], [24, 48]).pvalue)


def test_an_empty_arm_is_unproven(tmp_path: Path) -> None:
    report = measured(tmp_path, people("control", 3), chats("control", 3))
    for result in report["metrics"]:
        assert result["status"] == "Unproven"
        assert result["message"].endswith("the treatment arm has 0 users: two are the least")
    assert report["sampleRatio"]["pValue"] < 0.1


def test_users_who_do_not_differ_give_no_standard_error(tmp_path: Path) -> None:
    exposures, _ = both(3)
    events = [event(row["user_id"], T0 + HOUR) for row in exposures]
    result = metric(measured(tmp_path, exposures, events), "messagesPerUser")
    assert (result["status"], result["lift"]) == ("Unproven", 0.0)
    assert "low" not in result


def test_no_exposure_is_told_and_no_failure(tmp_path: Path) -> None:
    log = tmp_path / "termination"
    report = measured(tmp_path, [exposure("a", "control", T1)], [], "--termination-log", log, "--test", "t")
    assert report["users"]["control"] == 0
    assert {m["status"] for m in report["metrics"]} == {"Unproven"}
    result = AnalysisResult.model_validate_json(log.read_text())
    assert result.reason == "NoData"
    assert result.message == "no exposure of t from 2026-03-02T00:00:00Z to 2026-03-09T00:00:00Z"


def test_a_window_of_parts_of_days_is_noted(tmp_path: Path) -> None:
    exposures, events = both()
    report = measured(tmp_path, exposures, events, "--start", "2026-03-02T12:00:00")
    assert report["window"]["days"] == 7
    assert any("whole days" in note for note in report["notes"])
