"""Statistics of one metric from the sufficient ones of both arms.

Ratios by the delta method over users (Deng, Knoblich, Lu: "Applying the Delta Method in Metric Analytics", KDD 2018),
CUPED by Deng, Xu, Kohavi, Walker: "Improving the Sensitivity of Online Controlled Experiments by Utilizing
Pre-Experiment Data", WSDM 2013. Estimates and intervals are tea-tasting's, with the normal distribution.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import tea_tasting
from tea_tasting.aggr import Aggregates

from flywheel_analysis import bounds
from flywheel_analysis.bounds import Rate
from flywheel_analysis.metrics import Metric
from flywheel_contract.experiment import ArmStatistics, MeasureStatus, MetricResult, SampleRatio

LOG_DELTA: Final = "log-delta"
_NOTHING: Final = 1e-10
"""A relative standard error below this is what rounding leaves of zero."""


@dataclass(frozen=True, slots=True)
class Sufficient:
    """All that the statistics need of an arm: exact sums, and means, variances and covariances over its users."""

    n: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    moments: Aggregates = field(default_factory=Aggregates)

    def total(self, column: str | None) -> float:
        """The sum of a column; of no column, the number of users."""
        return float(self.n) if column is None else self.sums.get(column, 0.0)


@dataclass(frozen=True, slots=True)
class _Arm:
    """An estimate of one arm: `variance` is per user."""

    mean: float | None = None
    variance: float | None = None


def measure(metric: Metric, control: Sufficient, treatment: Sufficient) -> MetricResult:
    """Treatment against control."""
    coefficient, note = _coefficient(metric, control, treatment)
    arms = [_arm(metric, arm, coefficient, control, treatment) for arm in (control, treatment)]
    result = MetricResult(
        name=metric.name,
        kind=metric.kind,
        denominator=metric.per,
        covariate=metric.covariate,
        control=_statistics(metric, control, arms[0]),
        treatment=_statistics(metric, treatment, arms[1]),
        difference_upper=_difference_upper(metric, control, treatment, arms[0], arms[1]),
        harm_p_value=_harm_p_value(metric, control, treatment),
        method=f"{LOG_DELTA}, CUPED on {metric.covariate.value}" if metric.covariate and coefficient else LOG_DELTA,
        status=MeasureStatus.UNPROVEN,
        message=note,
    )
    problem = _problem(control, treatment, arms[0], arms[1])
    if problem:
        return result.model_copy(update={"message": f"{note}; {problem}" if note else problem})
    return _with_lift(result, metric, control, treatment, coefficient)


def single(metric: Metric, arm: Sufficient) -> ArmStatistics:
    """The statistics of users who are in no test."""
    coefficient, _ = _coefficient(metric, arm, Sufficient())
    return _statistics(metric, arm, _arm(metric, arm, coefficient, arm, Sufficient()))


def sample_ratio(control: int, treatment: int, control_percent: float, treatment_percent: float) -> SampleRatio:
    """Whether the arms have the sizes that their shares promise: chi-square with one degree of freedom."""
    expected = treatment_percent / (control_percent + treatment_percent)
    if not control + treatment:
        return SampleRatio(expected_treatment_share=expected)
    # The square of its normal statistic is the chi-square one; without a method it would be exact below 1000 users.
    test = tea_tasting.SampleRatio(treatment_percent / control_percent, method="norm", correction=False)
    sizes: dict[object, Aggregates] = {0: Aggregates(control), 1: Aggregates(treatment)}
    return SampleRatio(
        expected_treatment_share=expected,
        observed_treatment_share=treatment / (control + treatment),
        p_value=test.analyze(sizes, 0, 1).pvalue,
    )


def _coefficient(metric: Metric, control: Sufficient, treatment: Sufficient) -> tuple[float, str]:
    """CUPED's factor over both arms, 0 for the plain estimate, and why it is that."""
    column = metric.covariate_column
    if column is None:
        return 0.0, ""
    filled = [arm for arm in (control, treatment) if arm.n > 1]
    if len(filled) < 1 or any(not arm.total(metric.denominator) for arm in filled):
        return 0.0, ""
    moments = filled[0].moments + filled[1].moments if len(filled) > 1 else filled[0].moments
    variance = moments.var(column)
    if not variance > (_NOTHING * moments.mean(column)) ** 2:
        return 0.0, f"{column} does not vary over the users: the plain estimate stands"
    return moments.ratio_cov(metric.numerator, metric.denominator, column, None) / variance, ""


def _arm(metric: Metric, arm: Sufficient, coefficient: float, control: Sufficient, treatment: Sufficient) -> _Arm:
    below = arm.total(metric.denominator)
    if not below:
        return _Arm()
    mean = arm.total(metric.numerator) / below
    column = metric.covariate_column
    if column is not None and coefficient:
        everywhere = (control.total(column) + treatment.total(column)) / (control.n + treatment.n)
        mean -= coefficient * (arm.total(column) / arm.n - everywhere)
    if arm.n < 2:
        return _Arm(mean)
    variance = arm.moments.ratio_var(metric.numerator, metric.denominator)
    if column is not None and coefficient:
        together = arm.moments.ratio_cov(metric.numerator, metric.denominator, column, None)
        variance += coefficient * (coefficient * arm.moments.var(column) - 2 * together)
    return _Arm(mean, max(0.0, variance))


def _statistics(metric: Metric, arm: Sufficient, estimate: _Arm) -> ArmStatistics:
    return ArmStatistics(
        n=arm.n,
        mean=estimate.mean,
        variance=estimate.variance,
        numerator=arm.total(metric.numerator),
        denominator=arm.total(metric.denominator),
    )


def _problem(control: Sufficient, treatment: Sufficient, first: _Arm, second: _Arm) -> str:
    """Why there is no lift; empty where there is one."""
    for name, arm in (("control", control), ("treatment", treatment)):
        if arm.n < 2:
            return f"the {name} arm has {arm.n} users: two are the least"
    for name, estimate in (("control", first), ("treatment", second)):
        if estimate.mean is None:
            return f"the {name} arm has nothing to divide by"
        if estimate.mean <= 0:
            return f"the {name} arm's mean is {estimate.mean:.6g}: a lift needs one above zero"
    return ""


def _with_lift(
    result: MetricResult, metric: Metric, control: Sufficient, treatment: Sufficient, coefficient: float
) -> MetricResult:
    error = _log_standard_error(result.control, result.treatment)
    if error < _NOTHING:
        lift = _mean(result.treatment) / _mean(result.control) - 1
        why = "no user differs from another: there is no standard error"
        return result.model_copy(
            update={"lift": lift, "message": f"{result.message}; {why}" if result.message else why}
        )
    covariate = metric.covariate_column if coefficient else None
    estimate = tea_tasting.RatioOfMeans(
        metric.numerator, metric.denominator, covariate, confidence_level=0.95, equal_var=False, use_t=False
    ).analyze_aggregates(control.moments, treatment.moments)
    return result.model_copy(
        update={
            "lift": float(estimate.rel_effect_size),
            "low": float(estimate.rel_effect_size_ci_lower),
            "high": float(estimate.rel_effect_size_ci_upper),
            "log_standard_error": error,
            # On the log scale like the interval, so that p < 0.05 just where the interval leaves out zero.
            "p_value": bounds.two_sided_p_value(math.log1p(estimate.rel_effect_size) / error),
            "status": MeasureStatus.MEASURED,
        }
    )


def _log_standard_error(control: ArmStatistics, treatment: ArmStatistics) -> float:
    """By the delta method: each arm's relative standard error, squared and added."""
    return math.sqrt(sum((arm.variance or 0.0) / arm.n / _mean(arm) ** 2 for arm in (control, treatment)))


def _mean(arm: ArmStatistics) -> float:
    if arm.mean is None:
        raise ValueError("an arm without a mean has no lift")
    return arm.mean


def _rates(metric: Metric, control: Sufficient, treatment: Sufficient) -> tuple[Rate, Rate] | None:
    """Treatment's and control's, where the metric is a rate and both arms have something to divide by."""
    if metric.counting is None or not (control.total(metric.denominator) and treatment.total(metric.denominator)):
        return None
    found = [Rate(arm.total(metric.numerator), arm.total(metric.denominator)) for arm in (treatment, control)]
    return found[0], found[1]


def _difference_upper(
    metric: Metric, control: Sufficient, treatment: Sufficient, first: _Arm, second: _Arm
) -> float | None:
    ends = []
    if None not in (first.mean, first.variance, second.mean, second.variance):
        error = math.sqrt((first.variance or 0.0) / control.n + (second.variance or 0.0) / treatment.n)
        ends.append((second.mean or 0.0) - (first.mean or 0.0) + bounds.ONE_SIDED_95 * error)
    rates = _rates(metric, control, treatment)
    if rates is not None and metric.counting is not None:
        ends.append(bounds.difference_upper(*rates, metric.counting))
    return max(ends, default=None)


def _harm_p_value(metric: Metric, control: Sufficient, treatment: Sufficient) -> float | None:
    rates = _rates(metric, control, treatment)
    return None if rates is None else bounds.harm_p_value(*rates)
