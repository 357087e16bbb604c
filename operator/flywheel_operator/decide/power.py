"""What a test can be expected to see, computed before its start from the users' log. docs/abtest.md explains it.

Everything here is an estimate from the time before the test. It decides nothing: it tells whoever waits for a week
whether the week can end in an answer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flywheel_contract.experiment import RATES, Allocation, ArmStatistics, BaselineReport, Guardrail
from flywheel_operator.decide.abtest import ALPHA, DecisionRule
from flywheel_operator.decide.bounds import NORMAL, number, percent

POWER: Final = 0.80
"""What a test should have: the probability to see what is there."""
_ONE_SIDED_Z: Final = -NORMAL.inv_cdf(ALPHA)
_EACH_ARM_Z: Final = -NORMAL.inv_cdf(ALPHA / 2)


@dataclass(frozen=True, slots=True)
class PrimaryPower:
    """What can be seen of one primary; None where the log says nothing of it."""

    metric: str
    detectable_lift: float | None
    """The relative lift that is seen with 80 % probability."""
    power: float | None
    """The probability to see the target."""
    message: str


@dataclass(frozen=True, slots=True)
class GuardrailPower:
    """How likely one guardrail passes where nothing got worse; None where the log says nothing of it."""

    metric: str
    pass_probability: float | None
    message: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """What can be expected of a test."""

    control_users: float
    treatment_users: float
    primaries: tuple[PrimaryPower, ...]
    guardrails: tuple[GuardrailPower, ...]
    all_guardrails_pass: float | None
    """Where nothing got worse, taking the guardrails as independent; None: one of them is unknown."""
    win_probability: float | None
    """At least this, where every primary rises by the target and nothing gets worse."""
    sees_target: bool | None
    """Whether some primary's detectable lift is within the target; None: the log says nothing of any."""
    message: str


def outlook(
    baseline: BaselineReport, rule: DecisionRule, allocation: Allocation, duration_seconds: int, target_lift: float
) -> Outlook:
    """What a test of `duration_seconds` with these shares can be expected to see of a relative lift `target_lift`."""
    share = _share_of_users(baseline, duration_seconds)
    control = baseline.users * allocation.control / 100 * share
    treatment = baseline.users * allocation.treatment / 100 * share
    measured = {metric.name: metric.statistics for metric in baseline.metrics}
    primaries = tuple(
        _primary_power(name, measured, control, treatment, rule.success_alpha, target_lift) for name in rule.primaries
    )
    guardrails = tuple(_guardrail_power(guardrail, measured, control, treatment) for guardrail in rule.guardrails)
    chances = [guardrail.pass_probability for guardrail in guardrails]
    known = [chance for chance in chances if chance is not None]
    all_pass = math.prod(known) if len(known) == len(chances) else None
    best = max((p.power for p in primaries if p.power is not None), default=None)
    enough = min(control, treatment) >= rule.min_users_per_arm
    win = None if best is None or all_pass is None else best * all_pass * enough
    lifts = [p.detectable_lift for p in primaries if p.detectable_lift is not None]
    sees = enough and min(lifts) <= target_lift if lifts else None
    said = [f"about {control:.0f} users in control and {treatment:.0f} in treatment"]
    if share < 1:
        said.append(f"the log's window is longer than the test: {percent(share - 1)} users")
    if not enough:
        said.append(f"fewer than the {rule.min_users_per_arm} that an arm needs")
    said += [p.message for p in primaries]
    said += [g.message for g in guardrails if g.pass_probability is None or g.pass_probability < POWER]
    if all_pass is not None and len(guardrails) > 1:
        said.append(f"all guardrails pass with probability {number(all_pass)}, taken as independent")
    if win is not None:
        said.append(f"at {percent(target_lift)} the treatment wins with probability {number(win)} or more")
    return Outlook(control, treatment, primaries, guardrails, all_pass, win, sees, "; ".join(said))


def detectable_lift(statistics: ArmStatistics, control: float, treatment: float, alpha: float) -> float | None:
    """The relative lift whose interval (two-sided, `alpha`) lies above zero with 80 % probability; None: unknown."""
    error = _log_error(statistics, control, treatment)
    if error is None:
        return None
    return math.expm1(min((NORMAL.inv_cdf(1 - alpha / 2) + NORMAL.inv_cdf(POWER)) * error, 700.0))


def power_at(statistics: ArmStatistics, control: float, treatment: float, alpha: float, lift: float) -> float | None:
    """The probability that the interval (two-sided, `alpha`) lies above zero where the true lift is `lift`."""
    error = _log_error(statistics, control, treatment)
    if error is None:
        return None
    return NORMAL.cdf(math.log1p(lift) / error - NORMAL.inv_cdf(1 - alpha / 2))


def pass_probability(guardrail: Guardrail, statistics: ArmStatistics, control: float, treatment: float) -> float | None:
    """The probability that `guardrail` passes where the arms do not differ; None: unknown.

    It passes by either margin. What passes by the narrower one nearly always passes by the other, so the better of
    both chances stands for their union (it is at least that).
    """
    chances = [
        chance
        for chance in (
            _relative_chance(guardrail.margin, statistics, control, treatment),
            _absolute_chance(guardrail, statistics, control, treatment),
        )
        if chance is not None
    ]
    return max(chances, default=None)


def _primary_power(
    name: str,
    measured: Mapping[str, ArmStatistics],
    control: float,
    treatment: float,
    alpha: float,
    target: float,
) -> PrimaryPower:
    statistics = measured.get(name)
    lift = detectable_lift(statistics, control, treatment, alpha) if statistics is not None else None
    power = power_at(statistics, control, treatment, alpha, target) if statistics is not None else None
    if lift is None or power is None:
        return PrimaryPower(name, None, None, f"the log says nothing of {name}, so what it can see is unknown")
    said = f"{name} is seen from {percent(lift)} on, and {percent(target)} with probability {number(power)}"
    return PrimaryPower(name, lift, power, said)


def _guardrail_power(
    guardrail: Guardrail, measured: Mapping[str, ArmStatistics], control: float, treatment: float
) -> GuardrailPower:
    name = guardrail.metric
    statistics = measured.get(name)
    chance = pass_probability(guardrail, statistics, control, treatment) if statistics is not None else None
    if statistics is None or chance is None:
        return GuardrailPower(name, None, f"the log says nothing of {name}, so whether it can pass is unknown")
    said = f"{name} passes with probability {number(chance)} if nothing gets worse"
    if name in RATES:
        said += f" (about {statistics.numerator / statistics.n * control:.0f} events in control)"
    return GuardrailPower(name, chance, said)


def _relative_chance(margin: float | None, statistics: ArmStatistics, control: float, treatment: float) -> float | None:
    if margin is None or statistics.n == 0:
        return None
    if statistics.mean == 0:
        return 0.0  # without an event there is no relative increase, and so no bound of it
    error = _log_error(statistics, control, treatment)
    return NORMAL.cdf(math.log1p(margin) / error - _ONE_SIDED_Z) if error is not None else None


def _absolute_chance(guardrail: Guardrail, statistics: ArmStatistics, control: float, treatment: float) -> float | None:
    """The bound's usual distance above the difference, held against the margin and the difference's own scatter."""
    if guardrail.absolute_margin is None or not _measurable(statistics, control, treatment):
        return None
    if guardrail.metric in RATES and statistics.denominator < 1:
        return None  # a rate of nothing: what it is counted per did not happen once
    variance = statistics.variance or 0.0
    distance = _ONE_SIDED_Z * math.sqrt(variance / control + variance / treatment)
    scatter = distance / _ONE_SIDED_Z
    if guardrail.metric in RATES:
        # The reported bound is the larger of the clustered and the exact one.
        distance = max(distance, _exact_distance(statistics, control, treatment))
    if scatter == 0:
        return float(distance < guardrail.absolute_margin)
    return NORMAL.cdf((guardrail.absolute_margin - distance) / scatter)


def _exact_distance(statistics: ArmStatistics, control: float, treatment: float) -> float:
    """How far the exact bound of a rate's difference lies above a difference of zero: upper less lower bound.

    Each is of 97.5 %, as the analysis takes them, so that both hold together with 95 %. They are those of Poisson
    counts, by the approximation of Wilson and Hilferty (1931).
    """
    per_user = statistics.denominator / statistics.n
    rate = statistics.numerator / statistics.denominator
    upper = _poisson_upper(rate * per_user * treatment) / (per_user * treatment)
    lower = _poisson_lower(rate * per_user * control) / (per_user * control)
    return upper - lower


def _poisson_upper(count: float) -> float:
    more = count + 1
    return more * (1 - 1 / (9 * more) + _EACH_ARM_Z / (3 * math.sqrt(more))) ** 3


def _poisson_lower(count: float) -> float:
    if count < 1:
        return 0.0
    return count * (1 - 1 / (9 * count) - _EACH_ARM_Z / (3 * math.sqrt(count))) ** 3


def _log_error(statistics: ArmStatistics, control: float, treatment: float) -> float | None:
    """Expected standard error of log(treatment / control); None where there is no lift to speak of."""
    variance, mean = statistics.variance, statistics.mean
    if not _measurable(statistics, control, treatment) or not variance or mean is None or mean <= 0:
        return None
    return math.sqrt(variance / control + variance / treatment) / mean


def _measurable(statistics: ArmStatistics, control: float, treatment: float) -> bool:
    known = statistics.n > 0 and statistics.denominator > 0 and (statistics.variance or 0.0) >= 0
    return known and statistics.mean is not None and control > 0 and treatment > 0


def _share_of_users(baseline: BaselineReport, duration_seconds: int) -> float:
    """The part of the log's users that can be expected in the test.

    A shorter test sees at least its share of them. A longer one sees more, by how much nobody can tell: they count as
    they are.
    """
    return min(1.0, duration_seconds / (baseline.window.days * baseline.window.day_length_seconds))
