"""Specs, own metrics, exploration, what is left behind, and how a run fails."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flywheel_contract.experiment import AnalysisReport, AnalysisResult
from tests.analysis import traffic
from tests.analysis.test_rules import HOUR, both, event, exposure, measured, metric
from tests.analysis.traffic import T0, WINDOW

SPEC = {
    "apiVersion": "characterflywheel.dev/v1alpha1",
    "kind": "ABTest",
    "metadata": {"name": "luna-2"},
    "spec": {
        "lineage": "luna",
        "dayLength": "1h",
        "duration": "168h",
        "allocation": {"control": 10, "treatment": 10},
        "metrics": [
            {"name": "thumbsUp", "numerator": "count(*) FILTER (WHERE type = 'thumbs_up')"},
            {
                "name": "slowShare",
                "numerator": "sum(CASE WHEN value > 250 THEN 1 ELSE 0 END)",
                "denominator": "count(*) FILTER (WHERE type = 'message')",
                "covariate": "preMessages",
            },
            {"name": "lastDay", "numerator": "max(day)"},
        ],
        "primaries": ["messagesPerUserCuped", "thumbsUp"],
        "guardrails": [{"metric": "errorsPerRequest", "margin": 0.25}, {"metric": "thumbsUp", "margin": 0.1}],
        "dimensions": ["country", "character", "planet"],
    },
}


def spec_file(folder: Path, **changes: object) -> Path:
    file = folder / "abtest.yaml"
    file.write_text(yaml.safe_dump({**SPEC, "spec": {**SPEC["spec"], **changes}}))  # type: ignore[dict-item]
    return file


def test_a_whole_run_with_a_spec(tmp_path: Path) -> None:
    exposures, events = both(6)
    for i, row in enumerate(exposures):
        row["country"] = ["NL", "JP", None][i % 3]
    events = [{**e, "character": ["luna", "sol"][i % 2]} for i, e in enumerate(events)]
    events += [
        event("control-1", T0 + HOUR, "thumbs_up"),
        event("treatment-1", T0 + 5 * HOUR, "thumbs_up", value=300.0),
    ] * 2
    log, left = tmp_path / "termination", tmp_path / "out" / "report.json"
    report = measured(
        tmp_path, exposures, events, "--spec", spec_file(tmp_path), "--report", left.as_uri(), "--termination-log", log,
        covariates=[{"user_id": "control-1", "pre_messages": 3, "pre_active_days": 2}],
    )  # fmt: skip
    assert json.loads(left.read_text()) == report
    assert AnalysisReport.model_validate(report).to_json() == report
    assert report["test"] == "luna-2"
    assert metric(report, "thumbsUp")["control"]["numerator"] == 2
    slow = metric(report, "slowShare")
    assert (slow["treatment"]["numerator"], slow["treatment"]["denominator"]) == (2, 21)
    assert slow["method"] == "log-delta, CUPED on preMessages"
    assert metric(report, "lastDay")["treatment"]["mean"] == pytest.approx((1 + 5 + 3 + 4 + 5 + 6) / 6)
    result = AnalysisResult.model_validate_json(log.read_text())
    assert [m.name for m in result.metrics] == ["messagesPerUserCuped", "thumbsUp", "errorsPerRequest"]
    assert result.report_uri == left.as_uri()
    assert result.report_digest == "sha256:" + hashlib.sha256(left.read_bytes()).hexdigest()
    parts = {(b["dimension"], b["value"]): b for b in report["exploration"]}
    assert set(parts) == {
        ("country", "NL"),
        ("country", "JP"),
        ("country", "(none)"),
        ("character", "luna"),
        ("character", "sol"),
        ("character", "(none)"),
    }
    assert parts["country", "NL"]["users"]["control"] == 2
    # All users stay in a part of the events.
    assert parts["character", "luna"]["users"]["control"] == 6
    halves = [metric(parts["character", name], "messagesPerUser")["control"]["numerator"] for name in ("luna", "sol")]
    assert sum(halves) == 21
    assert any("planet" in note for note in report["notes"])


def test_the_table_shows_every_metric(tmp_path: Path) -> None:
    exposures, events = both(6)
    code, out = traffic.attempt(
        "--exposures", traffic.write_lines([{**e, "country": "NL"} for e in exposures], tmp_path / "x.jsonl"),
        "--events", traffic.write_lines(events, tmp_path / "e.jsonl"),
        "--spec", spec_file(tmp_path, dayLength="24h"), "--format", "table", *WINDOW,
    )  # fmt: skip
    assert code == 0
    assert "messagesPerUserCuped" in out
    assert "exploration, not for deciding: country = NL (6 control, 6 treatment)" in out
    assert "note: dimension planet" in out


def test_a_reader_that_has_read_enough_is_no_failure(tmp_path: Path) -> None:
    exposures, events = both(6)
    files = (
        "--exposures", traffic.write_lines(exposures, tmp_path / "x.jsonl"),
        "--events", traffic.write_lines(events, tmp_path / "e.jsonl"),
    )  # fmt: skip
    command = [sys.executable, "-m", "flywheel_analysis", *map(str, (*files, *WINDOW))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dayLength": "soon"}, "dayLength"),
        ({"primaries": ["joy"]}, "joy is neither"),
        ({"allocation": {"control": 90}}, "allocation.control"),
        ({"metrics": [{"name": "messagesPerUser", "numerator": "count(*)"}]}, "is taken"),
        ({"metrics": [{"name": "m", "numerator": "count(*"}]}, "is no SQL"),
        ({"metrics": [{"name": "m", "numerator": "count(*); DROP TABLE x"}]}, "is no SQL"),
        ({"metrics": [{"name": "m", "numerator": "count(*) FROM x"}]}, "one expression"),
        ({"metrics": [{"name": "m", "numerator": "(SELECT count(*) FROM x)"}]}, "without subqueries"),
        ({"metrics": [{"name": "m", "numerator": "value"}]}, "must be an aggregate"),
        ({"metrics": [{"name": "m", "numerator": "sum(value) OVER ()"}]}, "window function"),
        ({"metrics": [{"name": "m", "numerator": "sum(happiness)"}]}, "happiness"),
    ],
)
def test_a_wrong_spec_is_the_users_mistake(
    tmp_path: Path, changes: dict, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    exposures, events = both(2)
    log = tmp_path / "termination"
    given = {"primaries": [], "guardrails": []} | changes
    code, _ = traffic.attempt(
        "--exposures", traffic.write_lines(exposures, tmp_path / "x.jsonl"),
        "--events", traffic.write_lines(events, tmp_path / "e.jsonl"),
        "--spec", spec_file(tmp_path, **given), "--termination-log", log, *WINDOW,
    )  # fmt: skip
    result = AnalysisResult.model_validate_json(log.read_text())
    assert (code, result.reason) == (64, "InvalidSpec")
    assert told in result.message
    assert told in caplog.text


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--start", "soon"], 64, "soon"),
        (["--end", "2026-03-01T00:00:00Z"], 64, "not after its start"),
        (["--start", "2026-03-02T00:00:00.5Z"], 64, "whole second"),
        (["--speck", "x"], 64, "unrecognized arguments"),
        (["--spec", "/nowhere.yaml"], 64, "/nowhere.yaml"),
        (["--day-length", "25h"], 64, "at most 24h"),
        (["--day-length", "x"], 64, "--day-length"),
        (["--memory-limit", "lots"], 64, "--memory-limit"),
        (["--events", "/nowhere.parquet"], 65, "there is no /nowhere.parquet"),
        (["--events", "hf://a/b"], 64, "hf://a/b"),
        (["--events", "ftp://a/b"], 64, "ftp://a/b"),
        (["--events", "postgres://nobody@127.0.0.1:9/x?table=events"], 64, "all tables as files"),
        (["--events", "pvc://claim/../x"], 64, "leaves its root"),
        (["--report", "/proc/none/report.json"], 1, "cannot be written"),
    ],
)
def test_the_command_line_is_told_what_is_wrong(tmp_path: Path, words: list[str], code: int, told: str) -> None:
    exposures, events = both(2)
    log = tmp_path / "termination"
    given = [
        "--exposures", traffic.write_lines(exposures, tmp_path / "x.jsonl"),
        "--events", traffic.write_lines(events, tmp_path / "e.jsonl"),
        *WINDOW, f"--termination-log={log}", *words,
    ]  # fmt: skip
    assert traffic.attempt(*given)[0] == code
    assert told in AnalysisResult.model_validate_json(log.read_text()).message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"user_id": "a", "ts": "never", "type": "message"}\n', "timestamp"),
        ('{"user_id": "a", "ts": 1772409600, "type": "message"}\n', "timestamp"),
        ('{"user_id": "a", "ts": \n', "Malformed JSON"),
        ("[1, 2]\n", "Expected OBJECT"),
    ],
)
def test_broken_rows_are_told_with_their_file(tmp_path: Path, text: str, told: str) -> None:
    file, log = tmp_path / "events.jsonl", tmp_path / "termination"
    file.write_text(text)
    code, _ = traffic.attempt(
        "--exposures", traffic.write_lines(both(2)[0], tmp_path / "x.jsonl"), "--events", file, *WINDOW,
        "--termination-log", log,
    )  # fmt: skip
    result = AnalysisResult.model_validate_json(log.read_text())
    assert (code, result.reason) == (65, "InvalidData")
    assert "events.jsonl" in result.message
    assert told in result.message


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "arm"} for row in both(2)[0]]
    log = tmp_path / "termination"
    code, _ = traffic.attempt(
        "--exposures", traffic.write_parquet(rows, tmp_path / "x.parquet"),
        "--events", traffic.write_parquet(both(2)[1], tmp_path / "e.parquet"), *WINDOW, "--termination-log", log,
    )  # fmt: skip
    assert code == 65
    assert "x.parquet has no column 'arm'" in AnalysisResult.model_validate_json(log.read_text()).message


def test_arms_of_other_names_are_told(tmp_path: Path) -> None:
    log = tmp_path / "termination"
    code, _ = traffic.attempt(
        "--exposures", traffic.write_lines([exposure("a", "A"), exposure("b", "B")], tmp_path / "x.jsonl"),
        "--events", traffic.write_lines(both(2)[1], tmp_path / "e.jsonl"), *WINDOW, "--termination-log", log,
    )  # fmt: skip
    assert code == 65
    assert "'A', 'B'" in AnalysisResult.model_validate_json(log.read_text()).message


def test_an_unavailable_database_may_be_tried_again(tmp_path: Path) -> None:
    log = tmp_path / "termination"
    url = "postgres://nobody:secret@127.0.0.1:9/x?connect_timeout=2&table={}"
    code, _ = traffic.attempt(
        "--exposures", url.format("exposures"), "--events", url.format("events"), *WINDOW, "--termination-log", log
    )
    result = AnalysisResult.model_validate_json(log.read_text())
    assert (code, result.reason) == (1, "SourceUnavailable")
    assert "secret" not in result.message
