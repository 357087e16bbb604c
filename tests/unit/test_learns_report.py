"""What the benchmark calls an improvement: an interval on the right side, and nothing less."""

import pytest

from benchmarks.learns_report import Claim, verdict
from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric

WINS = Claim("wins", Metric.WIN_RATE, 0.5)
SMALLER = Claim("predicts better", Metric.PERPLEXITY_RATIO, 1.0, lower_is_better=True)
BEYOND = Claim("beyond length", Metric.REWARD_ACCURACY, Metric.LENGTH_ONLY_ACCURACY)


def interval(low: float, high: float) -> Measurement:
    return Measurement(value=(low + high) / 2, low=low, high=high, n=80)


@pytest.mark.parametrize(
    ("claim", "found", "said"),
    [
        (WINS, interval(0.51, 0.6), "yes"),
        (WINS, interval(0.49, 0.6), "not shown"),
        (WINS, interval(0.3, 0.4), "no, the opposite"),
        (SMALLER, interval(0.8, 0.9), "yes"),
        (SMALLER, interval(0.9, 1.1), "not shown"),
        (SMALLER, interval(1.1, 1.2), "no, the opposite"),
        (WINS, Measurement(value=0.9, n=80), "no interval: not shown"),
    ],
)
def test_an_improvement_is_an_interval_beyond_the_bound(claim: Claim, found: Measurement, said: str) -> None:
    assert verdict(claim, {claim.metric.value: found}) == said


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.61, 0.7, "yes"), (0.55, 0.7, "not shown"), (0.3, 0.39, "no, the opposite")]
)
def test_against_another_metric_both_intervals_count(low: float, high: float, said: str) -> None:
    metrics = {Metric.REWARD_ACCURACY.value: interval(low, high), Metric.LENGTH_ONLY_ACCURACY.value: interval(0.4, 0.6)}
    assert verdict(BEYOND, metrics) == said


def test_what_was_not_measured_says_nothing() -> None:
    assert verdict(WINS, {}) is None
    assert verdict(BEYOND, {Metric.REWARD_ACCURACY.value: interval(0.6, 0.7)}) is None
