"""What a test can be expected to see: figures that were simulated, edges, and what must hold of every log."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flywheel_contract.experiment import (
    Allocation,
    ArmStatistics,
    BaselineMetric,
    BaselineReport,
    Guardrail,
    MetricKind,
    Window,
)
from flywheel_operator.decide.abtest import DecisionRule
from flywheel_operator.decide.power import Outlook, detectable_lift, outlook, pass_probability, power_at
from flywheel_operator.model.experiment import DEFAULT_GUARDRAILS, DEFAULT_PRIMARIES

DAY = 86400
WEEK = 7 * DAY
DAYS, MESSAGES = DEFAULT_PRIMARIES
VIOLATIONS = "safetyViolationsPerMessage"
RULE = DecisionRule(DEFAULT_PRIMARIES, DEFAULT_GUARDRAILS, min_users_per_arm=100)


def mean(value: float, deviation: float, n: int = 30_000) -> ArmStatistics:
    return ArmStatistics(n=n, mean=value, variance=deviation**2, numerator=value * n, denominator=n)


def rate(value: float, messages: float = 20.0, clustering: float = 1.0, n: int = 30_000) -> ArmStatistics:
    """Events per message; their variance is `clustering` times that of independent events."""
    total = messages * n
    return ArmStatistics(
        n=n, mean=value, variance=clustering * value / messages, numerator=value * total, denominator=total
    )


# A chat product: 2.5 active days and 20 messages a user and week.
PRODUCT = {
    DAYS: mean(2.5, 1.5),
    MESSAGES: mean(20.0, 25.0),
    VIOLATIONS: rate(0.003, clustering=1.7),
    "falseRefusalsPerMessage": rate(0.015, clustering=2.0),
    "errorsPerRequest": rate(0.005, clustering=1.7),
    "latencyMean": ArmStatistics(n=30_000, mean=1200, variance=600.0**2, numerator=7.2e8, denominator=6e5),
}


def log_of(metrics: dict[str, ArmStatistics], users: int = 30_000, days: int = 7) -> BaselineReport:
    return BaselineReport(
        window=Window(start="2026-02-23T00:00:00Z", end="2026-03-02T00:00:00Z", days=days),
        users=users,
        metrics=[BaselineMetric(name=n, kind=MetricKind.MEAN, statistics=s) for n, s in metrics.items()],
    )


def seen(metrics: dict[str, ArmStatistics], users: int = 30_000, target: float = 0.05, days: int = 7) -> Outlook:
    return outlook(log_of(metrics, users, days), RULE, Allocation(), WEEK, target)


@pytest.mark.parametrize(("events", "passes"), [(20, 0.17), (110, 0.50), (250, 0.80)])
def test_a_relative_margin_of_a_quarter_needs_hundreds_of_events(events: int, passes: float) -> None:
    """Shares that were measured by simulating independent events at equal rates."""
    users, messages = 1000, 30_000
    of = rate(events / messages, messages / users, n=users)
    margin = Guardrail(metric=VIOLATIONS, margin=0.25)
    assert pass_probability(margin, of, users, users) == pytest.approx(passes, abs=0.01)


def test_the_absolute_margin_rescues_rare_events() -> None:
    users, messages = 1000, 30_000
    few = rate(20 / messages, messages / users, n=users)
    both = Guardrail(metric=VIOLATIONS, margin=0.25, absolute_margin=0.002)
    chance = pass_probability(both, few, users, users)
    assert chance is not None
    assert chance > 0.99
    # Where the margin is as wide as the bound's usual distance, half of the tests pass; the exact bound is wider.
    independent = Guardrail(metric="latencyMean", absolute_margin=1.644854 * math.sqrt(2 * 600.0**2 / 3000))
    assert pass_probability(independent, PRODUCT["latencyMean"], 3000, 3000) == pytest.approx(0.5, abs=1e-4)
    tight = Guardrail(metric=VIOLATIONS, absolute_margin=1.644854 * math.sqrt(2 * 20) / messages)
    exact = pass_probability(tight, few, users, users)
    assert exact is not None
    assert exact < 0.3


def test_no_event_at_all() -> None:
    none = ArmStatistics(n=1000, mean=0.0, variance=0.0, numerator=0, denominator=30_000)
    # The upper 97.5 % bound of a count of nothing is 3.7.
    assert pass_probability(Guardrail(metric=VIOLATIONS, absolute_margin=3.75 / 30_000), none, 1000, 1000) == 1
    assert pass_probability(Guardrail(metric=VIOLATIONS, absolute_margin=3.6 / 30_000), none, 1000, 1000) == 0
    assert pass_probability(Guardrail(metric=VIOLATIONS, margin=0.25), none, 1000, 1000) == 0


def test_the_detectable_lift_is_seen_four_times_in_five() -> None:
    of = mean(2.5, 1.5)
    lift = detectable_lift(of, 3000, 3000, 0.025)
    assert lift is not None
    # By hand: (2.2414 + 0.8416) * 0.6 * sqrt(2 / 3000) on the log scale.
    assert lift == pytest.approx(math.expm1(3.0830 * 0.6 * math.sqrt(2 / 3000)), rel=1e-4)
    assert power_at(of, 3000, 3000, 0.025, lift) == pytest.approx(0.8)
    assert power_at(of, 3000, 3000, 0.025, 0.0) == pytest.approx(0.0125)


def test_a_default_test_of_a_chat_product_can_succeed() -> None:
    expected = seen(PRODUCT)
    assert (expected.control_users, expected.treatment_users) == (3000, 3000)
    assert expected.sees_target is True
    assert expected.win_probability is not None
    assert expected.win_probability > 0.8
    assert expected.message == (
        "about 3000 users in control and 3000 in treatment; "
        "activeDaysPerUserCuped is seen from +4.89 % on, and +5 % with probability 0.8181; "
        "messagesPerUserCuped is seen from +10.5 % on, and +5 % with probability 0.2328; "
        "all guardrails pass with probability 0.9788, taken as independent; "
        "at +5 % the treatment wins with probability 0.8007 or more"
    )
    assert expected.guardrails[0].message == (
        f"{VIOLATIONS} passes with probability 0.9963 if nothing gets worse (about 180 events in control)"
    )


def test_a_test_that_cannot_see_its_target_says_so() -> None:
    small = seen(PRODUCT, users=5000)
    assert small.sees_target is False
    assert "activeDaysPerUserCuped is seen from +12.4 % on" in small.message
    assert "falseRefusalsPerMessage passes with probability" in small.message
    # Fewer users than an arm needs end Inconclusive, whatever could be seen.
    tiny = seen(PRODUCT, users=900, target=3.0)
    assert (tiny.sees_target, tiny.win_probability) == (False, 0)
    assert "fewer than the 100 that an arm needs" in tiny.message


@pytest.mark.parametrize(
    "unknown",
    [
        ArmStatistics(n=0),
        ArmStatistics(n=10, mean=None, variance=1.0, denominator=10),
        ArmStatistics(n=10, mean=0.0, variance=1.0, denominator=10),
        ArmStatistics(n=10, mean=-1.0, variance=1.0, denominator=10),
        ArmStatistics(n=10, mean=1.0, variance=None, denominator=10),
        ArmStatistics(n=10, mean=1.0, variance=0.0, denominator=10),
        ArmStatistics(n=10, mean=1.0, variance=-1.0, denominator=10),
        ArmStatistics(n=10, mean=1.0, variance=1.0, denominator=0),
    ],
)
def test_what_the_log_does_not_tell_is_unknown(unknown: ArmStatistics) -> None:
    assert detectable_lift(unknown, 3000, 3000, 0.05) is None
    assert power_at(unknown, 3000, 3000, 0.05, 0.1) is None
    expected = seen({DAYS: unknown})
    assert expected.sees_target is None
    assert (expected.win_probability, expected.all_guardrails_pass) == (None, None)
    assert "the log says nothing of activeDaysPerUserCuped" in expected.message
    assert "the log says nothing of latencyMean, so whether it can pass is unknown" in expected.message


def test_one_known_primary_is_enough_and_one_unknown_guardrail_too_much() -> None:
    expected = seen({name: of for name, of in PRODUCT.items() if name not in (MESSAGES, VIOLATIONS)})
    assert expected.sees_target is True
    assert expected.primaries[1].detectable_lift is None
    assert expected.guardrails[0].pass_probability is None
    assert (expected.all_guardrails_pass, expected.win_probability) == (None, None)
    assert seen(PRODUCT, users=0).sees_target is None


def test_the_length_of_the_window() -> None:
    """A log of two weeks holds at most twice the users of one; a log of a day holds at least its own."""
    longer, shorter = seen(PRODUCT, days=14), seen(PRODUCT, days=1)
    assert longer.control_users == 1500
    assert "the log's window is longer than the test: -50 % users" in longer.message
    assert shorter.control_users == 3000
    assert "window" not in shorter.message


def test_a_test_without_guardrails_or_primaries() -> None:
    rule = DecisionRule((DAYS,), (), min_users_per_arm=1)
    expected = outlook(log_of(PRODUCT), rule, Allocation(control=10, treatment=5), WEEK, 0.05)
    assert (expected.control_users, expected.treatment_users) == (3000, 1500)
    assert expected.all_guardrails_pass == 1
    assert "guardrails" not in expected.message
    nothing = outlook(log_of(PRODUCT), DecisionRule((), (), 1), Allocation(), WEEK, 0.05)
    assert (nothing.sees_target, nothing.win_probability) == (None, None)


def test_a_guardrail_without_margins_is_unknown() -> None:
    assert pass_probability(Guardrail(metric=VIOLATIONS), PRODUCT[VIOLATIONS], 3000, 3000) is None


numbers = st.floats(-1e3, 1e6)
statistics = st.builds(
    ArmStatistics,
    n=st.integers(0, 10**7),
    mean=st.none() | numbers,
    variance=st.none() | numbers,
    numerator=st.floats(0, 1e9),
    denominator=st.floats(0, 1e9),
)
logs = st.dictionaries(st.sampled_from(list(PRODUCT)), statistics | st.sampled_from(list(PRODUCT.values())))


NOBODY = ArmStatistics(n=0, mean=0.0, variance=None, numerator=0.0, denominator=0.0)
PER_NOTHING = ArmStatistics(n=87, mean=0.0, variance=None, numerator=7.0, denominator=5e-324)


@example({"safetyViolationsPerMessage": NOBODY}, 0, 1.0, 1)
@example({"safetyViolationsPerMessage": PER_NOTHING}, 1, 3.5, 27)
@given(logs, st.integers(0, 10**8), st.floats(0.001, 10), st.integers(1, 60))
def test_every_log_has_an_outlook(metrics: dict[str, ArmStatistics], users: int, target: float, days: int) -> None:
    expected = seen(metrics, users, target, days)
    probabilities = [g.pass_probability for g in expected.guardrails] + [p.power for p in expected.primaries]
    assert all(p is None or 0 <= p <= 1 for p in [*probabilities, expected.win_probability])
    assert all(p.detectable_lift is None or p.detectable_lift > 0 for p in expected.primaries)
    assert (expected.sees_target is None) is all(p.detectable_lift is None for p in expected.primaries)


@given(st.integers(200, 10**6), st.integers(200, 10**6))
def test_more_users_never_see_less(some: int, others: int) -> None:
    fewer, more = sorted((some, others))
    less, better = seen(PRODUCT, users=10 * fewer), seen(PRODUCT, users=10 * more)
    assert less.win_probability is not None
    assert better.win_probability is not None
    assert less.win_probability <= better.win_probability + 1e-12
