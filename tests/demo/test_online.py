"""The demo's online test: what is drawn and said of it."""

from pathlib import Path

import yaml

from e2e.demo import manifests, online
from e2e.population.tally import Tally
from flywheel_contract.experiment import (
    AnalysisReport,
    ArmStatistics,
    MeasureStatus,
    MetricKind,
    MetricResult,
    SampleRatio,
    Users,
    Window,
)
from flywheel_operator.model.objects import ABTest


def report(lift: float | None) -> AnalysisReport:
    arm = ArmStatistics(n=30, mean=1.0, variance=1.0, numerator=30, denominator=30)
    metric = MetricResult(
        name="messagesPerUserCuped", kind=MetricKind.MEAN, denominator="exposed users", control=arm, treatment=arm,
        lift=lift, low=None if lift is None else lift - 0.1, high=None if lift is None else lift + 0.1,
        method="log-delta", status=MeasureStatus.MEASURED,
    )  # fmt: skip
    window = Window(start="2026-03-02T00:00:00Z", end="2026-03-02T00:02:00Z", day_length_seconds=30, days=4)
    ratio = SampleRatio(expected_treatment_share=0.5, observed_treatment_share=0.5, p_value=1.0)
    return AnalysisReport(window=window, users=Users(control=30, treatment=30), sample_ratio=ratio, metrics=[metric])


def test_the_picture_needs_a_lift(tmp_path: Path) -> None:
    primaries = ["activeDaysPerUserCuped", "messagesPerUserCuped"]
    assert online.draw({1: report(0.2), 2: report(0.1)}, primaries, tmp_path / "abtest.png")
    assert (tmp_path / "abtest.png").read_bytes().startswith(b"\x89PNG")
    assert not online.draw({1: report(None)}, primaries, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_manifest_is_a_trial_of_its_own_lineage() -> None:
    raw = yaml.safe_load((manifests.FOLDER / online.FILE).read_text())
    raw["metadata"] |= {"namespace": "demo", "uid": "u"}
    test = ABTest.model_validate(raw)
    assert test.spec.day_length == "20s"
    assert test.spec.lineage not in {manifests.load(f)["spec"]["lineage"] for f in manifests.GENERATIONS}


def test_what_came_out_is_said_in_sentences() -> None:
    raw = yaml.safe_load((manifests.FOLDER / online.FILE).read_text())
    raw["metadata"] |= {"namespace": "demo", "uid": "u"}
    raw["status"] = {
        "phase": "Completed",
        "exposed": "30/28",
        "verdict": {"result": "Inconclusive", "reason": "NoPrimaryMoved", "message": "messages +3 % (-9 % to +17 %)"},
    }
    tally = Tally(users=58, answered=140, failed={"503": 2})
    said = online.Online(ABTest.model_validate(raw), tally, None).lines()
    assert said[0] == "luna-online: Inconclusive, NoPrimaryMoved: messages +3 % (-9 % to +17 %)"
    assert "140 replies to 58 simulated users, 2 requests failed, 0 users saw two arms" in said[1]
