"""The decision's error rates, on a part of the simulation, and that the simulation measures as the analysis does.

Counts are held against binomial bounds that a rule within its limits crosses once in 10,000 runs: a failure is a drift
of the rule, not chance. The seeds are fixed, so that the same code always gives the same answer.
"""

import dataclasses
import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from tea_tasting.aggr import Aggregates

from benchmarks.abtest_errors import (
    MAX_FALSE_HARM_STOP,
    MAX_FALSE_PROMOTION,
    MIN_POWER,
    Scenario,
    default_rule,
    harm_stops,
    predict,
    rate,
    simulate,
    summary,
)
from benchmarks.abtest_measure import baseline, exact_difference_upper, exact_harm, moments, readings, split
from benchmarks.abtest_population import DAYS, Behaviour, Effect, Habits, behave, draw_traits
from flywheel_analysis import bounds, lifts
from flywheel_analysis.bounds import Rate
from flywheel_analysis.lifts import Sufficient
from flywheel_analysis.metrics import BUILTIN, Counting
from flywheel_contract.experiment import Guardrail, MeasureStatus, MetricReading, Users
from flywheel_operator.decide.abtest import DecisionRule, final_verdict
from flywheel_operator.model.experiment import (
    DEFAULT_GUARDRAILS,
    DEFAULT_PRIMARIES,
    DEFAULT_TARGET_LIFT,
    AbReason,
    AbVerdict,
)

CHANCE = 1e-4
TESTS = 1500
USERS = 1000
"""Fewer than the benchmark's: arms of this size take a third of the time, and err more if anything."""


def at_most(count: int, tests: int, limit: float) -> bool:
    """Whether `count` in `tests` is what a rate within `limit` gives, but for one run in 10,000."""
    return bool(stats.binom.sf(count - 1, tests, limit) > CHANCE)


def at_least(count: int, tests: int, limit: float) -> bool:
    return bool(stats.binom.cdf(count, tests, limit) > CHANCE)


def test_a_treatment_that_does_nothing_is_neither_promoted_nor_stopped() -> None:
    counts = simulate(Scenario(USERS, peeking=True), TESTS, seed=1)
    assert at_most(counts[AbVerdict.TREATMENT_WINS], TESTS, MAX_FALSE_PROMOTION), counts
    assert at_most(counts["primaryAbove"], TESTS, MAX_FALSE_PROMOTION), counts
    assert at_most(harm_stops(counts), TESTS, MAX_FALSE_HARM_STOP), counts
    # A loss is called at the plain level, for each of two primaries.
    assert at_most(counts[AbVerdict.CONTROL_WINS], TESTS, 0.05 + MAX_FALSE_HARM_STOP), counts
    assert counts["peeking"] >= counts[AbVerdict.TREATMENT_WINS]
    # The bounds have teeth: a rule that promotes twice as often would be caught.
    assert not at_most(round(2 * MAX_FALSE_PROMOTION * TESTS), TESTS, MAX_FALSE_PROMOTION)


def test_the_planned_lift_is_seen_as_often_as_was_said_before() -> None:
    scenario, tests = Scenario(effect=Effect(lift=DEFAULT_TARGET_LIFT)), 500
    won = simulate(scenario, tests, seed=2)[AbVerdict.TREATMENT_WINS]
    assert at_least(won, tests, MIN_POWER)
    said = predict(Scenario(), DEFAULT_TARGET_LIFT, seed=3)
    assert said.sees_target is True
    assert said.win_probability is not None
    assert said.win_probability >= MIN_POWER
    # What was said is a lower bound (of the better primary alone), and no wild one.
    assert at_least(won, tests, said.win_probability - 0.02)
    assert at_most(won, tests, said.win_probability + 0.06)


@pytest.mark.parametrize(
    ("effect", "verdict", "share"),
    [
        (Effect(lift=-0.1), AbVerdict.CONTROL_WINS, 0.80),
        (Effect(lift=0.15, violations=3.0), AbVerdict.GUARDRAIL_BROKEN, 0.90),
        (Effect(lift=0.15, latency=1.2), AbVerdict.GUARDRAIL_BROKEN, 0.95),
        (Effect(lift=0.15, refusals=3.0), AbVerdict.GUARDRAIL_BROKEN, 0.95),
        (Effect(lift=0.15, errors=4.0), AbVerdict.GUARDRAIL_BROKEN, 0.95),
    ],
)
def test_harm_is_seen_and_never_promoted(effect: Effect, verdict: AbVerdict, share: float) -> None:
    tests = 100
    counts = simulate(Scenario(USERS, effect), tests, seed=4)
    assert counts[AbVerdict.TREATMENT_WINS] == 0
    assert at_least(counts[verdict], tests, share), counts
    assert harm_stops(counts) > tests / 4, "most of it shows before the end"


def test_a_broken_split_is_paused_and_not_concluded_from() -> None:
    counts = simulate(Scenario(USERS, Effect(lift=0.15), treatment_share=0.4), 100, seed=5)
    assert counts[f"{AbVerdict.INCONCLUSIVE}/{AbReason.SAMPLE_RATIO_MISMATCH}"] == 100
    assert counts["paused"] == 100


def test_rare_events_pass_by_the_absolute_margin_alone() -> None:
    """At 20 events an arm a relative margin passes one test in six."""
    rare = Habits(violation_rate=0.001, violation_shape=50.0)
    metric = DEFAULT_GUARDRAILS[0].metric
    relative = DecisionRule(DEFAULT_PRIMARIES, (Guardrail(metric=metric, margin=0.25),), 100)
    counts = simulate(Scenario(USERS, habits=rare), 600, seed=6, rule=relative)
    assert at_most(counts[f"{metric}/Passed"], 600, 0.17)
    assert at_least(counts[f"{metric}/Passed"], 600, 0.17)
    counts = simulate(Scenario(USERS, habits=rare), 600, seed=6, rule=default_rule(USERS))
    assert at_least(counts[f"{metric}/Passed"], 600, 0.98)


COLUMNS = {
    "active_days": "active_days", "messages": "messages", "safety_violations": "violations",
    "false_refusals": "refusals", "errors": "errors", "latency_sum": "latency", "latency_count": "messages",
    "pre_active_days": "pre_active_days", "pre_messages": "pre_messages",
}  # fmt: skip
"""The analysis's per-user columns -> ours."""


def counted(week: Behaviour, users: NDArray[np.int64], day: int) -> Sufficient:
    """What the analysis reads of these users' rows."""
    seen = users[week.exposed[users, day] == 1]
    rows = {name: getattr(week, ours)[seen] for name, ours in COLUMNS.items()}
    rows = {name: values if values.ndim == 1 else values[:, day] for name, values in rows.items()}
    rows["requests"] = rows["messages"] + rows["errors"]
    aggregates = Aggregates(
        count_=len(seen),
        mean_={name: values.mean() for name, values in rows.items()},
        var_={name: values.var(ddof=1) for name, values in rows.items()},
        cov_={(a, b): np.cov(rows[a], rows[b])[0, 1] for a, b in itertools.combinations(sorted(rows), 2)},
    )
    return Sufficient(len(seen), {name: values.sum() for name, values in rows.items()}, aggregates)


@pytest.mark.parametrize("day", [1, DAYS - 1])
def test_the_simulation_reports_what_the_analysis_would(day: int) -> None:
    rng = np.random.default_rng(7)
    week = behave(rng, draw_traits(rng, 600, Habits()), Habits(), Effect())
    moment = moments(week)
    names = [*DEFAULT_PRIMARIES, *(guardrail.metric for guardrail in DEFAULT_GUARDRAILS)]
    [test] = readings(split(np.random.default_rng(8), moment, moment, 600), names)
    # The same generator draws the same split twice.
    draws = np.random.default_rng(8)
    order, treated = draws.permutation(600), draws.random(600) < 0.5
    control, treatment = counted(week, order[~treated], day), counted(week, order[treated], day)
    ratio = lifts.sample_ratio(control.n, treatment.n, 10, 10)
    assert test[day].sample_ratio is not None
    assert test[day].sample_ratio.p_value == pytest.approx(ratio.p_value)
    assert test[day].users == Users(control=control.n, treatment=treatment.n)
    known = {metric.name: metric for metric in BUILTIN}
    for ours in test[day].metrics:
        theirs = MetricReading.of(lifts.measure(known[ours.name], control, treatment))
        assert ours.status is theirs.status is MeasureStatus.MEASURED
        assert ours.model_dump(exclude={"name", "status"}) == pytest.approx(
            theirs.model_dump(exclude={"name", "status"})
        )


def test_the_baseline_is_what_the_analysis_would_report() -> None:
    rng = np.random.default_rng(11)
    week = behave(rng, draw_traits(rng, 500, Habits()), Habits(), Effect())
    report = baseline(moments(week).sum(axis=0), [*DEFAULT_PRIMARIES, *(g.metric for g in DEFAULT_GUARDRAILS)])
    everybody = counted(week, np.arange(500), DAYS - 1)
    known = {metric.name: metric for metric in BUILTIN}
    for ours in report.metrics:
        theirs = lifts.single(known[ours.name], everybody)
        assert ours.statistics.model_dump() == pytest.approx(theirs.model_dump())


def test_exact_bounds_are_those_of_the_analysis() -> None:
    events, trials = np.array([[[0.0, 5.0], [3.0, 12.0]]]), np.array([[[900.0, 1000.0], [1000.0, 900.0]]])
    for counting, counts in ((Counting.POISSON, True), (Counting.BINOMIAL, False)):
        upper = exact_difference_upper(events, trials, counts)
        for day in range(2):
            control, treatment = (Rate(events[0, arm, day], trials[0, arm, day]) for arm in range(2))
            assert upper[0, day] == pytest.approx(bounds.difference_upper(treatment, control, counting))
            assert exact_harm(events, trials)[0, day] == pytest.approx(bounds.harm_p_value(treatment, control))


def test_a_metric_without_events_is_unproven() -> None:
    rng = np.random.default_rng(9)
    silent = dataclasses.replace(Habits(), violation_rate=0.0)
    moment = moments(behave(rng, draw_traits(rng, 400, silent), silent, Effect()))
    [test] = readings(split(rng, moment, moment, 400), [DEFAULT_GUARDRAILS[0].metric])
    assert len(test) == DAYS
    [reading] = test[-1].metrics
    assert (reading.status, reading.lift, reading.harm_p_value) == (MeasureStatus.UNPROVEN, None, 1.0)
    assert reading.difference_upper is not None
    assert final_verdict(test[-1], default_rule(200)).verdict is AbVerdict.INCONCLUSIVE


def test_the_summary() -> None:
    counts = simulate(Scenario(100, Effect(lift=-0.2)), 20, seed=10)
    found = summary(counts)
    assert found["tests"] == 20
    assert sum(found[verdict.value]["rate"] for verdict in AbVerdict) == pytest.approx(1)
    assert rate(0, 20) == {"rate": 0.0, "low": 0.0, "high": 0.16843}
    with pytest.raises(ValueError, match="chance to write"):
        simulate(Scenario(100, Effect(lift=0.5)), 1, seed=1)
