"""The verdict of an online test: each rule at its edge."""

import math

import pytest

from flywheel_contract.experiment import AnalysisReason, AnalysisResult, Guardrail, MeasureStatus, MetricReading, Users
from flywheel_operator.decide.abtest import Decision, DecisionRule, Look, final_verdict, harm_look
from flywheel_operator.model.experiment import (
    DEFAULT_GUARDRAILS,
    DEFAULT_PRIMARIES,
    AbReason,
    AbVerdict,
    GuardrailOutcome,
    LookOutcome,
    PrimaryOutcome,
)
from tests.unit.abtest_reports import (
    DAYS,
    LATENCY,
    LOOKS,
    MESSAGES,
    RULE,
    VERDICT_OF,
    VIOLATIONS,
    lifted,
    report,
    unproven,
)


def outcome(decision: Decision, metric: str) -> str:
    return next(f.outcome for f in (*decision.guardrails, *decision.primaries) if f.metric == metric)


def unlifted() -> MetricReading:
    """Measured, as it says, and without a lift."""
    return MetricReading(name=DAYS, status=MeasureStatus.MEASURED, log_standard_error=0.01)


def at_bound(z: float, error: float, bound: float = 0.0) -> float:
    """The lift whose bound, `z` standard errors away, is exactly `bound`."""
    return math.expm1(math.log1p(bound) - z * error)


# Two primaries share 5 %: each interval is one of 97.5 %.
Z_975, Z_WIN, Z_ONE_SIDED = 1.959964, 2.241403, 1.644854


@pytest.mark.parametrize(
    ("result", "reason", "said"),
    [
        (report(), "PrimaryLifted", f"{DAYS} +5 % (97.5 % interval +2.67 % to +7.38 %)"),
        (report(), "PrimaryLifted", "all 2 guardrails passed"),
        # The corrected interval decides a win, the plain one a loss.
        (report(lifted(DAYS, at_bound(-Z_WIN, 0.01) + 1e-6)), "PrimaryLifted", DAYS),
        (report(lifted(DAYS, at_bound(-Z_WIN, 0.01) - 1e-6)), "NoPrimaryMoved", "+2.27 %"),
        (report(lifted(MESSAGES, at_bound(Z_975, 0.01) - 1e-6)), "PrimaryDropped", f"{MESSAGES} -1.94 %"),
        (report(lifted(MESSAGES, at_bound(Z_975, 0.01) + 1e-6)), "PrimaryLifted", DAYS),
        # A gain does not make up for a loss.
        (report(lifted(MESSAGES, -0.03)), "PrimaryDropped", "95 % interval"),
        # Guardrails: by the relative margin, by the absolute one, broken, or neither.
        (report(lifted(LATENCY, at_bound(Z_ONE_SIDED, 0.01, 0.05) - 1e-6)), "PrimaryLifted", ""),
        (report(lifted(LATENCY, 0.034, 0.02)), "GuardrailUnproven", "neither shown"),
        (report(lifted(LATENCY, 0.06)), "GuardrailFailed", f"{LATENCY} control 2, treatment 2.12 (rel"),
        (report(lifted(VIOLATIONS, 0.6, 0.1, difference_upper=0.0019)), "PrimaryLifted", ""),
        (report(lifted(VIOLATIONS, 0.6, 0.1, difference_upper=0.002)), "GuardrailFailed", "(200 events)"),
        (report(lifted(VIOLATIONS, 0.1, 0.1, difference_upper=0.003)), "GuardrailUnproven", "0.003"),
        (report(lifted(VIOLATIONS, 0.6, 0.1), lifted(DAYS, -0.1)), "GuardrailFailed", VIOLATIONS),
        # A certain rise within the margin is accepted.
        (report(lifted(LATENCY, 0.02, 0.001)), "PrimaryLifted", ""),
        # Without events: the exact bound may pass, the exact test may break it, else nothing is proven.
        (report(unproven(VIOLATIONS, control=0, treatment=0, difference_upper=0.001)), "PrimaryLifted", ""),
        (report(unproven(VIOLATIONS, control=0, treatment=0, difference_upper=0.01)), "GuardrailUnproven", ""),
        (report(unproven(VIOLATIONS, control=0, treatment=0.01, harm_p_value=0.024)), "GuardrailFailed", "exact p"),
        (report(unproven(VIOLATIONS, control=0, treatment=0.01, harm_p_value=0.025)), "GuardrailUnproven", ""),
        # An empty arm bounds nothing, whatever was computed from it.
        (
            report(unproven(VIOLATIONS, control=0.001, difference_upper=-0.1)),
            "GuardrailUnproven",
            "treatment unmeasured",
        ),
        (report(without=LATENCY), "GuardrailUnproven", "latencyMean was not measured"),
        # Primaries that were not measured.
        (report(unproven(DAYS)), "NoPrimaryMoved", f"{DAYS} was not measured"),
        (report(unproven(DAYS), without=MESSAGES), "MetricUnproven", f"{MESSAGES} was not measured"),
        (report(lifted(DAYS, 0.05, None)), "NoPrimaryMoved", ""),
        (report(unlifted()), "NoPrimaryMoved", ""),
        (report(lifted(DAYS, -1.0)), "NoPrimaryMoved", "was not measured"),
        (report(lifted(DAYS, 0.05, -0.1)), "NoPrimaryMoved", "was not measured"),
        # The same value for every user: equal arms are equal, anything else is not believed.
        (report(lifted(DAYS, 0.05, 0.0)), "NoPrimaryMoved", "was not measured"),
        (report(lifted(LATENCY, 0.0, 0.0)), "PrimaryLifted", ""),
        # An interval beyond what a float holds.
        (report(lifted(DAYS, 0.05, 1e6)), "NoPrimaryMoved", "over +100000 %"),
        # The split and the number of users come first.
        (report(p=0.0009), "SampleRatioMismatch", "3000 users in control and 3010 in treatment"),
        (report(p=0.001), "PrimaryLifted", ""),
        (report(p=None), "SampleRatioUnproven", "not checked"),
        (report(sample_ratio=None), "SampleRatioUnproven", "not checked"),
        (report(users=Users(control=1000, treatment=1000)), "PrimaryLifted", ""),
        (report(users=Users(control=999, treatment=3000)), "TooFewUsers", "at least 1000"),
        (report(users=Users(control=3000, treatment=999)), "TooFewUsers", "999 in treatment"),
        (report(users=Users(control=0, treatment=3000), p=1e-99), "SampleRatioMismatch", ""),
        # No data.
        (report(users=Users()), "NoData", "no user was exposed"),
        (AnalysisResult(reason=AnalysisReason.NO_DATA), "NoData", "no user was exposed"),
        (AnalysisResult(reason=AnalysisReason.NO_DATA, message="empty"), "NoData", "empty"),
        (None, "AnalysisFailed", "left no result"),
        (AnalysisResult(reason=AnalysisReason.FAULT, message="broke"), "AnalysisFailed", "Fault: broke"),
        (AnalysisResult(reason=AnalysisReason.SOURCE_UNAVAILABLE), "AnalysisFailed", "measured nothing"),
    ],
)
def test_each_rule_at_its_edge(result: AnalysisResult | None, reason: str, said: str) -> None:
    decision = final_verdict(result, RULE)
    assert (decision.verdict, decision.reason) == (VERDICT_OF[AbReason(reason)], reason), decision.message
    assert said in decision.message
    assert [f.metric for f in decision.guardrails] == [VIOLATIONS, LATENCY]
    assert [f.metric for f in decision.primaries] == [DAYS, MESSAGES]


def test_findings_are_reported_whatever_the_verdict() -> None:
    decision = final_verdict(report(lifted(MESSAGES, -0.1), lifted(LATENCY, 0.2), p=1e-6), RULE)
    assert decision.verdict is AbVerdict.INCONCLUSIVE
    assert outcome(decision, DAYS) == PrimaryOutcome.ABOVE
    assert outcome(decision, MESSAGES) == PrimaryOutcome.BELOW
    assert outcome(decision, LATENCY) == GuardrailOutcome.FAILED
    assert outcome(decision, VIOLATIONS) == GuardrailOutcome.PASSED


def test_rules_without_guardrails_primaries_or_margins() -> None:
    bare = DecisionRule(primaries=(DAYS,), guardrails=(), min_users_per_arm=1)
    assert "there are no guardrails" in final_verdict(report(), bare).message
    assert final_verdict(report(), bare).verdict is AbVerdict.TREATMENT_WINS
    # One primary needs no correction.
    assert "95 % interval" in final_verdict(report(), bare).message
    nothing = DecisionRule(primaries=(), guardrails=(), min_users_per_arm=1)
    decision = final_verdict(report(), nothing)
    assert (decision.reason, decision.message) == (AbReason.METRIC_UNPROVEN, "there is no primary metric")
    assert harm_look(report(), nothing, 1, LOOKS).outcome is LookOutcome.CONTINUE
    no_margin = DecisionRule(primaries=(DAYS,), guardrails=(Guardrail(metric=LATENCY),), min_users_per_arm=1)
    assert final_verdict(report(), no_margin).reason is AbReason.GUARDRAIL_UNPROVEN
    constant = report(lifted(LATENCY, 0.0, 0.0))
    assert harm_look(constant, no_margin, 1, LOOKS).outcome is LookOutcome.CONTINUE


def test_an_extension_shares_the_chance_of_error() -> None:
    """What just wins a test that is decided once does not win one that may be decided twice."""
    lift = at_bound(-Z_WIN, 0.01) + 1e-4
    once, twice = RULE, DecisionRule(RULE.primaries, RULE.guardrails, RULE.min_users_per_arm, decisions=2)
    assert final_verdict(report(lifted(DAYS, lift)), once).verdict is AbVerdict.TREATMENT_WINS
    assert final_verdict(report(lifted(DAYS, lift)), twice).reason is AbReason.NO_PRIMARY_MOVED
    assert (once.success_alpha, twice.success_alpha) == (0.025, 0.0125)


ALPHA_LOOK = 0.01 / (LOOKS * 4)
Z_LOOK = 3.3855
"""The normal quantile of it: seven days, four metrics."""


@pytest.mark.parametrize(
    ("result", "stops"),
    [
        (report(), None),
        (report(lifted(DAYS, 0.5)), None),
        (report(lifted(DAYS, at_bound(Z_LOOK + 0.01, 0.01))), "ControlWins"),
        (report(lifted(DAYS, at_bound(Z_LOOK - 0.01, 0.01))), None),
        (report(lifted(LATENCY, at_bound(-Z_LOOK - 0.01, 0.02), 0.02)), "GuardrailBroken"),
        (report(lifted(LATENCY, at_bound(-Z_LOOK + 0.01, 0.02), 0.02)), None),
        (report(lifted(DAYS, -0.2), lifted(LATENCY, 0.2)), "GuardrailBroken"),
        # A certain rise within its margin.
        (report(lifted(LATENCY, 0.02, 0.001)), None),
        # A rate needs both tests: clustered and exact.
        (report(lifted(VIOLATIONS, 1.0, 0.1, difference_upper=0.01, harm_p_value=1e-5)), "GuardrailBroken"),
        (report(lifted(VIOLATIONS, 1.0, 0.1, difference_upper=0.01, harm_p_value=1e-3)), None),
        (report(lifted(VIOLATIONS, 1.0, 0.5, difference_upper=0.01, harm_p_value=1e-5)), None),
        (report(lifted(VIOLATIONS, 1.0, 0.1, difference_upper=0.0019, harm_p_value=1e-5)), None),
        # Without an event in control the exact one speaks alone.
        (report(unproven(VIOLATIONS, control=0.0, treatment=0.1, harm_p_value=ALPHA_LOOK * 0.99)), "GuardrailBroken"),
        (report(unproven(VIOLATIONS, control=0.0, treatment=0.1, harm_p_value=ALPHA_LOOK * 1.01)), None),
        # What was not measured cannot stop.
        (report(unproven(VIOLATIONS), unproven(DAYS)), None),
        (report(without=VIOLATIONS), None),
        (report(lifted(LATENCY, 0.0, 0.0), lifted(DAYS, 0.0, 0.0)), None),
    ],
)
def test_a_daily_look_stops_for_harm_only(result: AnalysisResult, stops: str | None) -> None:
    look = harm_look(result, RULE, 2, LOOKS)
    assert look.message.startswith("day 2 of 7: ")
    if stops is None:
        assert look == Look(LookOutcome.CONTINUE, AbReason.NO_HARM, look.message)
        assert "0.0003571" in look.message
    else:
        assert look.outcome is LookOutcome.STOP
        assert look.decision is not None
        assert (look.decision.verdict, look.decision.reason) == (stops, AbReason.HARM_AT_DAILY_LOOK)
        assert look.decision.message == look.message
        assert len(look.decision.guardrails) == len(look.decision.primaries) == 2


@pytest.mark.parametrize(
    ("result", "does", "reason"),
    [
        (report(lifted(LATENCY, 9.0), p=1e-4), LookOutcome.PAUSE, AbReason.SAMPLE_RATIO_MISMATCH),
        (report(lifted(LATENCY, 9.0), p=None), LookOutcome.CONTINUE, AbReason.SAMPLE_RATIO_UNPROVEN),
        (
            report(lifted(LATENCY, 9.0), users=Users(control=9, treatment=9)),
            LookOutcome.CONTINUE,
            AbReason.TOO_FEW_USERS,
        ),
        (report(users=Users()), LookOutcome.CONTINUE, AbReason.NO_DATA),
        (None, LookOutcome.CONTINUE, AbReason.ANALYSIS_FAILED),
    ],
)
def test_a_look_at_an_unsound_test(result: AnalysisResult | None, does: LookOutcome, reason: AbReason) -> None:
    look = harm_look(result, RULE, 1, LOOKS)
    assert (look.outcome, look.reason, look.decision) == (does, reason, None)


def test_the_defaults_can_be_decided_on() -> None:
    assert set(DEFAULT_PRIMARIES).isdisjoint({g.metric for g in DEFAULT_GUARDRAILS})
    assert all(g.margin is not None for g in DEFAULT_GUARDRAILS)
