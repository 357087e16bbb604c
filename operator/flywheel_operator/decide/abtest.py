"""The verdict of an online test, from the reported statistics alone. docs/abtest.md explains the rule to its readers.

Success is decided once, at the end of the window. Looks before it may stop for harm only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from flywheel_contract.experiment import RATES, AnalysisReason, AnalysisResult, Guardrail, MetricReading, Users
from flywheel_operator.decide.bounds import lift_of, number, percent
from flywheel_operator.model.experiment import (
    AbReason,
    AbVerdict,
    GuardrailOutcome,
    LookOutcome,
    PrimaryOutcome,
)

ALPHA: Final = 0.05
"""Of two-sided intervals and one-sided guardrail bounds. Not a setting: `differenceUpper` is reported at this level."""
SAMPLE_RATIO_ALPHA: Final = 0.001
HARM_ALPHA: Final = 0.01
"""Chance that all daily looks of a test together stop a treatment that does no harm, at most."""


@dataclass(frozen=True, slots=True)
class DecisionRule:
    """What a test is judged by."""

    primaries: tuple[str, ...]
    guardrails: tuple[Guardrail, ...]
    min_users_per_arm: int
    decisions: int = 1
    """How often it may be decided: 1, and one more for each extension allowed. They share the chance of error."""

    @property
    def success_alpha(self) -> float:
        """Two-sided, of each primary at each decision (Bonferroni)."""
        return ALPHA / (max(len(self.primaries), 1) * self.decisions)

    def harm_alpha(self, looks: int) -> float:
        """One-sided, of each metric at each of `looks` looks (Bonferroni)."""
        return HARM_ALPHA / (looks * max(len(self.primaries) + len(self.guardrails), 1))


@dataclass(frozen=True, slots=True)
class GuardrailFinding:
    """How one guardrail came out."""

    metric: str
    outcome: GuardrailOutcome
    message: str


@dataclass(frozen=True, slots=True)
class PrimaryFinding:
    """How one primary came out. Above is at the corrected level, Below at the plain one: harm weighs more."""

    metric: str
    outcome: PrimaryOutcome
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What came out, why, and how each metric did."""

    verdict: AbVerdict
    reason: AbReason
    message: str
    guardrails: tuple[GuardrailFinding, ...] = field(default=())
    primaries: tuple[PrimaryFinding, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Look:
    """What a daily look came to; `decision` is there exactly when it stops the test."""

    outcome: LookOutcome
    reason: AbReason
    message: str
    decision: Decision | None = None


def final_verdict(result: AnalysisResult | None, rule: DecisionRule) -> Decision:
    """The verdict at the end of the window. None: the analysis left no result at all."""
    guardrails, primaries = _findings(result, rule)

    def decided(verdict: AbVerdict, reason: AbReason, message: str) -> Decision:
        return Decision(verdict, reason, message, guardrails, primaries)

    # 1. Without a sound split and enough users no number below means anything.
    unsound = _unsound(result, rule)
    if unsound is not None:
        return decided(AbVerdict.INCONCLUSIVE, *unsound)

    # 2. A guardrail that broke outweighs every gain.
    failed = [g.message for g in guardrails if g.outcome is GuardrailOutcome.FAILED]
    if failed:
        return decided(AbVerdict.GUARDRAIL_BROKEN, AbReason.GUARDRAIL_FAILED, "; ".join(failed))

    # 3. One primary for sure lower outweighs another one higher.
    below = [p.message for p in primaries if p.outcome is PrimaryOutcome.BELOW]
    if below:
        return decided(AbVerdict.CONTROL_WINS, AbReason.PRIMARY_DROPPED, "; ".join(below))

    # 4. To win takes a gain, and every guardrail shown to hold.
    above = [p.message for p in primaries if p.outcome is PrimaryOutcome.ABOVE]
    unproven = [g.message for g in guardrails if g.outcome is not GuardrailOutcome.PASSED]
    if above and not unproven:
        kept = f"; all {len(guardrails)} guardrails passed" if guardrails else "; there are no guardrails"
        return decided(AbVerdict.TREATMENT_WINS, AbReason.PRIMARY_LIFTED, "; ".join(above) + kept)

    # 5. The rest cannot be told.
    if above:
        message = "; ".join(above) + "; but " + "; ".join(unproven)
        return decided(AbVerdict.INCONCLUSIVE, AbReason.GUARDRAIL_UNPROVEN, message)
    if all(p.outcome is PrimaryOutcome.UNPROVEN for p in primaries):
        message = "; ".join(p.message for p in primaries) or "there is no primary metric"
        return decided(AbVerdict.INCONCLUSIVE, AbReason.METRIC_UNPROVEN, message)
    return decided(AbVerdict.INCONCLUSIVE, AbReason.NO_PRIMARY_MOVED, "; ".join(p.message for p in primaries))


def harm_look(result: AnalysisResult | None, rule: DecisionRule, look: int, looks: int) -> Look:
    """What look number `look` (from 1) of the `looks` days of the whole test, extensions included, does.

    It can stop the test for harm, pause the treatment or let it run; it never promotes. What it could not see it does
    not act on: the looks to come and the verdict at the end do.
    """
    unsound = _unsound(result, rule)
    if unsound is not None:
        reason, message = unsound
        paused = reason is AbReason.SAMPLE_RATIO_MISMATCH
        return Look(LookOutcome.PAUSE if paused else LookOutcome.CONTINUE, reason, message)
    readings = _readings(result)
    guardrails, primaries = _findings(result, rule)
    alpha = rule.harm_alpha(looks)
    at = f"day {look} of {looks}: "

    def stopped(verdict: AbVerdict, harms: list[str]) -> Look:
        message = at + "; ".join(harms)
        decision = Decision(verdict, AbReason.HARM_AT_DAILY_LOOK, message, guardrails, primaries)
        return Look(LookOutcome.STOP, decision.reason, message, decision)

    harms = [
        f"{finding.message} (p {number(p)} < {number(alpha)})"
        for finding in guardrails
        # A rise that stays inside its margin for sure is no harm, however certain the rise.
        if finding.outcome is not GuardrailOutcome.PASSED and (p := _rise(readings.get(finding.metric))) < alpha
    ]
    if harms:
        return stopped(AbVerdict.GUARDRAIL_BROKEN, harms)
    harms = [
        f"{finding.message} (p {number(p)} < {number(alpha)})"
        for finding in primaries
        if (p := _fall(readings.get(finding.metric))) < alpha
    ]
    if harms:
        return stopped(AbVerdict.CONTROL_WINS, harms)
    return Look(LookOutcome.CONTINUE, AbReason.NO_HARM, f"{at}no harm seen at p < {number(alpha)} for each metric")


def _unsound(result: AnalysisResult | None, rule: DecisionRule) -> tuple[AbReason, str] | None:
    """Why nothing may be concluded from `result`; None: the metrics may be read."""
    if result is None:
        return AbReason.ANALYSIS_FAILED, "the analysis left no result"
    if result.reason is AnalysisReason.NO_DATA:
        return AbReason.NO_DATA, result.message or "no user was exposed in the window"
    if result.reason is not AnalysisReason.SUCCEEDED or result.users is None:
        said = result.message or "it measured nothing"
        return AbReason.ANALYSIS_FAILED, f"the analysis ended {result.reason}: {said}"
    users = result.users
    if users.control == 0 and users.treatment == 0:
        return AbReason.NO_DATA, "no user was exposed in the window"
    p = result.sample_ratio.p_value if result.sample_ratio is not None else None
    if result.sample_ratio is not None and p is not None and p < SAMPLE_RATIO_ALPHA:
        expected = result.sample_ratio.expected_treatment_share
        return AbReason.SAMPLE_RATIO_MISMATCH, (
            f"{_counted(users)}: the treatment should hold {100 * expected:.1f} % of them, "
            f"sample ratio p {number(p)} < {SAMPLE_RATIO_ALPHA}"
        )
    if min(users.control, users.treatment) < rule.min_users_per_arm:
        return AbReason.TOO_FEW_USERS, f"{_counted(users)}: each arm needs at least {rule.min_users_per_arm}"
    if p is None:
        return AbReason.SAMPLE_RATIO_UNPROVEN, f"{_counted(users)}: their ratio was not checked"
    return None


def _findings(
    result: AnalysisResult | None, rule: DecisionRule
) -> tuple[tuple[GuardrailFinding, ...], tuple[PrimaryFinding, ...]]:
    readings = _readings(result)
    return (
        tuple(_judge_guardrail(guardrail, readings.get(guardrail.metric)) for guardrail in rule.guardrails),
        tuple(_judge_primary(name, readings.get(name), rule.success_alpha) for name in rule.primaries),
    )


def _readings(result: AnalysisResult | None) -> Mapping[str, MetricReading]:
    return {reading.name: reading for reading in result.metrics} if result is not None else {}


def _judge_primary(name: str, reading: MetricReading | None, alpha: float) -> PrimaryFinding:
    lift = lift_of(reading)
    if lift is None:
        return PrimaryFinding(name, PrimaryOutcome.UNPROVEN, f"{name} was not measured")
    low, high = lift.lower(alpha / 2), lift.upper(alpha / 2)
    if low > 0:
        outcome = PrimaryOutcome.ABOVE
    elif lift.upper(ALPHA / 2) < 0:
        outcome, alpha = PrimaryOutcome.BELOW, ALPHA
        low, high = lift.lower(ALPHA / 2), lift.upper(ALPHA / 2)
    else:
        outcome = PrimaryOutcome.INCONCLUSIVE
    level = f"{100 * (1 - alpha):.4g} % interval"
    return PrimaryFinding(name, outcome, f"{name} {percent(lift.lift)} ({level} {percent(low)} to {percent(high)})")


def _judge_guardrail(guardrail: Guardrail, reading: MetricReading | None) -> GuardrailFinding:
    name = guardrail.metric
    if reading is None:
        return GuardrailFinding(name, GuardrailOutcome.UNPROVEN, f"{name} was not measured")
    bounds: list[str] = []
    passed = False
    lift = lift_of(reading)
    if lift is not None and guardrail.margin is not None:
        upper = lift.upper(ALPHA)
        passed = upper < guardrail.margin
        bounds.append(f"relative increase at most {percent(upper)}, margin {percent(guardrail.margin)}")
    both = reading.control is not None and reading.treatment is not None  # an empty arm bounds nothing
    if both and reading.difference_upper is not None and guardrail.absolute_margin is not None:
        passed = passed or reading.difference_upper < guardrail.absolute_margin
        bounds.append(
            f"increase at most {number(reading.difference_upper)}, margin {number(guardrail.absolute_margin)}"
        )
    said = f"{name} {_arms(reading)}" + (f" ({'; '.join(bounds)})" if bounds else "")
    if passed:
        return GuardrailFinding(name, GuardrailOutcome.PASSED, f"{said} keeps its margin")
    if lift is not None:
        # Zero p and zero error belong to equal arms; everything else has a bound.
        worse, why = lift.lower(ALPHA / 2) > 0, f"at least {percent(lift.lower(ALPHA / 2))}"
    else:
        # An arm without an event has no relative increase; the exact test of the counts speaks instead.
        p = reading.harm_p_value
        worse, why = p is not None and p < ALPHA / 2, f"exact p {number(p)}" if p is not None else ""
    if worse:
        return GuardrailFinding(name, GuardrailOutcome.FAILED, f"{said} got worse: {why}")
    return GuardrailFinding(name, GuardrailOutcome.UNPROVEN, f"{said} is neither shown to keep its margin nor broken")


def _arms(reading: MetricReading) -> str:
    """Both arms' values, for rates with the events behind them."""
    arms = (
        ("control", reading.control, reading.control_sum),
        ("treatment", reading.treatment, reading.treatment_sum),
    )
    counted = reading.name in RATES
    return ", ".join(
        f"{arm} unmeasured" if value is None else f"{arm} {number(value)}" + f" ({total:.0f} events)" * counted
        for arm, value, total in arms
    )


def _rise(reading: MetricReading | None) -> float:
    """One-sided p-value that a guardrail did not rise; 1 where nothing can be said.

    The larger of the user-clustered and the exact one, where both are there: the first is too bold with a handful of
    events, the second where few users cause many.
    """
    lift = lift_of(reading)
    exact = reading.harm_p_value if reading is not None else None
    known = [p for p in (lift.increase_p_value() if lift is not None else None, exact) if p is not None]
    return max(known, default=1.0)


def _fall(reading: MetricReading | None) -> float:
    """One-sided p-value that a primary did not fall; 1 where nothing can be said."""
    lift = lift_of(reading)
    return lift.decrease_p_value() if lift is not None else 1.0


def _counted(users: Users) -> str:
    return f"{users.control} users in control and {users.treatment} in treatment"
