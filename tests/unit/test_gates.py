"""Gates: bounds exactly met, what was not measured, and the two launches of the paper."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import REWARD_METRICS, Metric
from flywheel_operator.decide.gates import (
    GENERATION_GATES,
    PAIRWISE_GATES,
    REWARD_MODEL_GATES,
    describe_failures,
    evaluate_gates,
    generation_gates,
    passed,
    rules_in_force,
)
from flywheel_operator.model.common import GateRule, GatesSpec
from flywheel_operator.model.generation import GENERATION_METRICS, EvaluationSpec
from flywheel_operator.model.reward_model import REWARD_MODEL_METRICS
from tests.unit.build import HEALTHY, OVERFITTED


def rule(**fields: object) -> GateRule:
    return GateRule.model_validate({"name": "gate", "metric": "winRate", **fields})


def measured(value: float, low: float | None = None, high: float | None = None, n: int | None = 100) -> Measurement:
    return Measurement(value=value, low=low, high=high, n=n)


@pytest.mark.parametrize(
    ("gate", "measurement", "verdict", "said"),
    [
        # Exactly on the bound keeps it; beyond it by the smallest step does not.
        (rule(min=0.5), measured(0.6, 0.5, 0.7), "Passed", "winRate 0.6 [0.5, 0.7], n=100: is >= 0.5 at its low end"),
        (rule(min=0.5), measured(0.6, 0.4999, 0.7), "Failed", "is not >= 0.5 at its low end"),
        (rule(max=0.7), measured(0.6, 0.5, 0.7), "Passed", "is <= 0.7 at its high end"),
        (rule(max=0.7), measured(0.6, 0.5, 0.7001), "Failed", "is not <= 0.7 at its high end"),
        (rule(min=0.5, max=0.7), measured(0.6, 0.5, 0.7), "Passed", "is >= 0.5 at its low end and <= 0.7 at its high"),
        (rule(min=0.5, max=0.7), measured(0.6, 0.5, 0.71), "Failed", "0.71"),
        (rule(min=0.5, max=0.7), measured(0.6, 0.49, 0.7), "Failed", "0.49"),
        (rule(max=0.65, compare="Estimate"), measured(0.65, 0.5, 0.9), "Passed", "is <= 0.65"),
        (rule(max=0.65, compare="Estimate"), measured(0.651), "Failed", "winRate 0.651, n=100: is not <= 0.65"),
        (rule(min=0.5, compare="Estimate"), measured(0.5), "Passed", "is >= 0.5"),
        # Too few, or nobody knows how many.
        (rule(min=0.5), measured(0.9, 0.8, 1.0, n=49), "NotMeasured", "needs at least 50 samples"),
        (rule(min=0.5), measured(0.9, 0.8, 1.0, n=50), "Passed", "n=50"),
        (rule(min=0.5), measured(0.9, 0.8, 1.0, n=None), "NotMeasured", "needs at least 50 samples"),
        (rule(min=0.5, minSamples=0), measured(0.9, 0.8, 1.0, n=None), "Passed", "[0.8, 1]"),
        # No interval, or half of one.
        (rule(min=0.5), measured(0.9), "NotMeasured", "has no interval"),
        (rule(min=0.5), measured(0.9, None, 0.95), "NotMeasured", "has no interval"),
        (rule(max=0.95), measured(0.9, 0.85, None), "NotMeasured", "has no interval"),
        (rule(min=0.5), measured(0.9, 0.85, None), "Passed", "winRate 0.9, n=100"),
    ],
)
def test_one_gate(gate: GateRule, measurement: Measurement, verdict: str, said: str) -> None:
    [status] = evaluate_gates([gate], {"winRate": measurement})
    assert status.verdict == verdict
    assert said in status.message
    assert passed([status]) is (verdict == "Passed")
    assert (status.value, status.low, status.high, status.n) == (
        measurement.value, measurement.low, measurement.high, measurement.n,
    )  # fmt: skip


def test_what_was_not_measured_did_not_pass() -> None:
    [status] = evaluate_gates([rule(min=0.5)], {})
    assert (status.verdict, status.value) == ("NotMeasured", None)
    assert not passed([status])
    assert describe_failures([status]) == "gate: winRate was not measured, so it cannot be >= 0.5 at its low end"


def test_the_healthy_launch_passes_the_default_gates() -> None:
    gates = evaluate_gates(GENERATION_GATES, HEALTHY)
    assert describe_failures(gates) == ""
    assert passed(gates)


def test_the_launch_that_lost_online_is_stopped_by_the_guard() -> None:
    gates = evaluate_gates(GENERATION_GATES, OVERFITTED)
    assert {g.name for g in gates if g.verdict == "Failed"} == {"win-rate-ceiling-user", "win-rate-gap"}
    assert "winRateUser 0.707" in describe_failures(gates)
    assert "winRateGap 0.27" in describe_failures(gates)


def test_a_healthy_win_rate_alone_is_no_pass() -> None:
    """Each default gate needs its own metric: leaving any one out stops the launch."""
    for metric in HEALTHY:
        gates = evaluate_gates(GENERATION_GATES, {m: v for m, v in HEALTHY.items() if m is not metric})
        assert [g.verdict for g in gates if g.verdict != "Passed"] == ["NotMeasured"], metric


def test_a_win_rate_whose_interval_holds_one_half_is_not_better() -> None:
    gates = evaluate_gates(GENERATION_GATES, HEALTHY | {Metric.WIN_RATE: measured(0.53, 0.49, 0.57, n=600)})
    assert [g.name for g in gates if g.verdict == "Failed"] == ["win-rate"]


def test_the_users_gates_are_added_or_take_the_place_of_a_default() -> None:
    mine = [rule(name="mine", min=0.1), rule(name="perplexity", metric="perplexity", max=40)]
    names = [r.name for r in rules_in_force(GatesSpec(rules=mine), GENERATION_GATES)]
    assert names == [*(g.name for g in GENERATION_GATES), "mine"]
    in_force = {r.name: r for r in rules_in_force(GatesSpec(rules=mine), GENERATION_GATES)}
    assert in_force["perplexity"].metric is Metric.PERPLEXITY
    assert rules_in_force(GatesSpec(defaults="Disabled", rules=mine), GENERATION_GATES) == mine
    assert rules_in_force(GatesSpec(defaults="Disabled"), GENERATION_GATES) == []
    assert passed([])


def test_default_gates_name_what_their_stages_report() -> None:
    assert {g.metric.value for g in GENERATION_GATES} <= set(GENERATION_METRICS)
    for kind, gates in REWARD_MODEL_GATES.items():
        assert {g.metric for g in gates} <= set(REWARD_METRICS[kind])
        assert {m.value for m in REWARD_METRICS[kind]} <= set(REWARD_MODEL_METRICS)
    assert len({g.name for g in GENERATION_GATES}) == len(GENERATION_GATES)


RATE = st.floats(0, 1)


@given(RATE, RATE)
def test_the_band_and_the_gap_decide_together(user: float, internal: float) -> None:
    """Healthy is: better than the baseline, nowhere above 65 %, and no wider apart than ten points."""
    both, gap = (user + internal) / 2, abs(user - internal)
    metrics = HEALTHY | {
        Metric.WIN_RATE: measured(both, both, both),
        Metric.WIN_RATE_USER: measured(user, user, user),
        Metric.WIN_RATE_INTERNAL: measured(internal, internal, internal),
        Metric.WIN_RATE_GAP: measured(gap, gap, gap),
    }
    healthy = both >= 0.5 and user <= 0.65 and internal <= 0.65 and gap <= 0.10
    assert passed(evaluate_gates(GENERATION_GATES, metrics)) is healthy


@pytest.mark.parametrize(
    ("user", "internal", "stopped_by"),
    [
        (0.60, 0.58, set()),
        (0.65, 0.55, set()),
        (0.6501, 0.56, {"win-rate-ceiling-user"}),
        (0.60, 0.4999, {"win-rate-gap"}),
        (0.707, 0.437, {"win-rate-ceiling-user", "win-rate-gap"}),
    ],
)
def test_border_cases_of_the_guard(user: float, internal: float, stopped_by: set[str]) -> None:
    gap = round(abs(user - internal), 6)
    metrics = HEALTHY | {
        Metric.WIN_RATE_USER: measured(user),
        Metric.WIN_RATE_INTERNAL: measured(internal),
        Metric.WIN_RATE_GAP: measured(gap),
    }
    assert {g.name for g in evaluate_gates(GENERATION_GATES, metrics) if g.verdict != "Passed"} == stopped_by


@pytest.mark.parametrize(
    ("metric", "value", "stopped_by"),
    [
        (Metric.STYLE_JUMPS, 1, "style-jumps"),
        (Metric.KL_WITHOUT_REWARD, 0.0501, "kl-without-reward"),
        (Metric.PAIRWISE_WIN_RATE_USER, 0.6501, "pairwise-ceiling-user"),
        (Metric.PAIRWISE_WIN_RATE_INTERNAL, 0.6501, "pairwise-ceiling-internal"),
        (Metric.PAIRWISE_WIN_RATE_GAP, 0.1001, "pairwise-gap"),
        (Metric.PAIRWISE_DISAGREEMENT, 0.4001, "pairwise-disagreement"),
        (Metric.JUDGE_AGREEMENT, 0.39, "judge-agreement"),
        (Metric.BENCHMARK_CHANGE, -0.0301, "benchmarks"),
    ],
)
def test_what_an_evaluation_asks_for_has_gates_of_its_own(metric: Metric, value: float, stopped_by: str) -> None:
    asks = EvaluationSpec.model_validate(
        {"judge": {}, "benchmarks": {"tasks": ["sums"], "tolerance": 0.03}, "pairwise": {"rewardModel": "rm-2"}}
    )
    rules = generation_gates(asks)
    whole = HEALTHY | {
        Metric.PAIRWISE_WIN_RATE_USER: measured(0.6),
        Metric.PAIRWISE_WIN_RATE_INTERNAL: measured(0.58),
        Metric.PAIRWISE_WIN_RATE_GAP: measured(0.02),
        Metric.PAIRWISE_DISAGREEMENT: measured(0.3),
        Metric.JUDGE_AGREEMENT: measured(0.4, n=48),
        Metric.BENCHMARK_CHANGE: measured(-0.03),
    }
    assert passed(evaluate_gates(rules, whole))
    stopped = evaluate_gates(rules, whole | {metric: measured(value)})
    assert [g.name for g in stopped if g.verdict != "Passed"] == [stopped_by]
    missing = evaluate_gates(rules, {m: v for m, v in whole.items() if m is not metric})
    assert [(g.name, g.verdict) for g in missing if g.verdict != "Passed"] == [(stopped_by, "NotMeasured")]


def test_what_is_not_asked_for_is_not_gated() -> None:
    assert generation_gates(EvaluationSpec()) == list(GENERATION_GATES)
    assert {g.name for g in PAIRWISE_GATES}.isdisjoint(g.name for g in generation_gates(EvaluationSpec()))
