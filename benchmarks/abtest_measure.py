"""Measures many simulated tests at once and writes down, for each test and day, what the analysis would report.

Sums and sums of products per arm are all that lifts, CUPED, the clustered delta method and the exact bounds need. They
are additive over users, so that one matrix product sums up all tests that a pool of users is cut into.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import special

from benchmarks.abtest_population import DAYS, Behaviour, Floats
from flywheel_contract.experiment import (
    RATES,
    AnalysisReason,
    AnalysisResult,
    ArmStatistics,
    BaselineMetric,
    BaselineReport,
    BuiltinMetric,
    MeasureStatus,
    MetricKind,
    MetricReading,
    SampleRatio,
    Users,
    Window,
)
from flywheel_operator.model.experiment import DEFAULT_PRIMARIES

Z: Final = 1.959963984540054
ONE_SIDED_Z: Final = 1.6448536269514722
EACH_ARM: Final = 0.025
"""Both exact bounds of a difference hold together with 95 %."""
VARIABLES: Final = (
    "exposed", "active_days", "messages", "pre_active_days", "pre_messages", "violations", "refusals", "errors",
    "requests", "latency",
)  # fmt: skip
PAIRS: Final = (
    *((name, name) for name in VARIABLES[1:]),
    ("active_days", "pre_active_days"), ("messages", "pre_messages"), ("violations", "messages"),
    ("refusals", "messages"), ("errors", "requests"), ("latency", "messages"),
)  # fmt: skip
COLUMNS: Final = (*VARIABLES, *PAIRS)
COLUMN: Final = {name: position for position, name in enumerate(COLUMNS)}
RATIOS: Final = {
    BuiltinMetric.SAFETY_VIOLATIONS_PER_MESSAGE.value: ("violations", "messages"),
    BuiltinMetric.FALSE_REFUSALS_PER_MESSAGE.value: ("refusals", "messages"),
    BuiltinMetric.ERRORS_PER_REQUEST.value: ("errors", "requests"),
    BuiltinMetric.LATENCY_MEAN.value: ("latency", "messages"),
}
ADJUSTED: Final = dict(
    zip(DEFAULT_PRIMARIES, (("active_days", "pre_active_days"), ("messages", "pre_messages")), strict=True)
)


def moments(behaviour: Behaviour) -> Floats:
    """Each user's contribution to every sum, at the end of each day: users x days x COLUMNS."""
    seen = behaviour.exposed
    values = {name: getattr(behaviour, name) for name in VARIABLES if name != "requests"}
    values["requests"] = values["messages"] + values["errors"]
    for name in ("pre_active_days", "pre_messages"):
        values[name] = values[name][:, None] * seen
    out = np.empty((*seen.shape, len(COLUMNS)))
    for position, column in enumerate(COLUMNS):
        # Events come after the exposure, so that products of unexposed users are zero by themselves.
        out[..., position] = values[column] if isinstance(column, str) else values[column[0]] * values[column[1]]
    return out


def split(
    rng: np.random.Generator, control: Floats, treatment: Floats, users: int, treatment_share: float = 0.5
) -> Floats:
    """Cuts a pool into tests of `users` users each, drawn anew, and sums up: tests x arms x days x COLUMNS.

    `control` and `treatment` are the moments of the same users in either arm.
    """
    tests = len(control) // users
    order = rng.permutation(len(control))[: tests * users]
    treated = rng.random(tests * users) < treatment_share
    groups = np.repeat(np.arange(tests), users)
    sums = []
    for moment, inside in ((control, ~treated), (treatment, treated)):
        weights = np.zeros((tests, len(moment)))
        weights[groups[inside], order[inside]] = 1.0
        sums.append((weights @ moment.reshape(len(moment), -1)).reshape(tests, DAYS, len(COLUMNS)))
    return np.stack(sums, axis=1)


class Statistics:
    """The statistics of an array of tests: the last axis of `sums` is COLUMNS, the second one the two arms."""

    def __init__(self, sums: Floats) -> None:
        self._sums = sums
        self.n = self.total("exposed")

    def total(self, name: str | tuple[str, str]) -> Floats:
        """A sum over users: tests x arms x days."""
        return self._sums[..., COLUMN[name]]

    def mean(self, name: str) -> Floats:
        """The mean over exposed users."""
        return self.total(name) / self.n

    def covariance(self, one: str, other: str) -> Floats:
        """The sample covariance over exposed users."""
        product = self.total((one, other)) if (one, other) in COLUMN else self.total((other, one))
        return (product - self.total(one) * self.total(other) / self.n) / (self.n - 1)

    def adjusted(self, name: str, covariate: str) -> tuple[Floats, Floats]:
        """Mean and its standard error by CUPED (Deng et al., WSDM 2013): one coefficient for both arms together."""
        pooled = Statistics(self._sums.sum(axis=1, keepdims=True))
        spread = pooled.covariance(covariate, covariate)
        theta = pooled.covariance(name, covariate) / np.where(spread > 0, spread, 1.0)
        mean = self.mean(name) - theta * (self.mean(covariate) - pooled.mean(covariate))
        variance = (
            self.covariance(name, name)
            - 2 * theta * self.covariance(name, covariate)
            + theta**2 * self.covariance(covariate, covariate)
        )
        return mean, np.sqrt(np.maximum(variance, 0.0) / self.n)

    def ratio(self, name: str, by: str) -> tuple[Floats, Floats]:
        """Ratio of sums and its standard error, clustered by user (delta method)."""
        ratio = self.total(name) / self.total(by)
        variance = (
            self.covariance(name, name) - 2 * ratio * self.covariance(name, by) + ratio**2 * self.covariance(by, by)
        )
        return ratio, np.sqrt(np.maximum(variance, 0.0) / self.n) / self.mean(by)


def exact_difference_upper(events: Floats, trials: Floats, counts: bool) -> Floats:
    """Upper bound of the treatment's rate less the lower one of control's, 97.5 % each; the arms are axis 1.

    Poisson (Garwood) for `counts`, which may exceed one per trial; else binomial (Clopper-Pearson).
    """
    some = np.maximum(events[:, 0], 1e-9)
    if counts:
        upper = special.gammaincinv(events[:, 1] + 1, 1 - EACH_ARM) / trials[:, 1]
        lower = special.gammaincinv(some, EACH_ARM) / trials[:, 0]
    else:
        upper = special.betaincinv(events[:, 1] + 1, np.maximum(trials[:, 1] - events[:, 1], 1e-9), 1 - EACH_ARM)
        lower = special.betaincinv(some, trials[:, 0] - events[:, 0] + 1, EACH_ARM)
    return np.asarray(upper - np.where(events[:, 0] > 0, lower, 0.0))


def exact_harm(events: Floats, trials: Floats) -> Floats:
    """One-sided p-value that the treatment's rate is not higher: binomial, given all events."""
    share = trials[:, 1] / trials.sum(axis=1)
    tail = special.betainc(np.maximum(events[:, 1], 1e-9), events[:, 0] + 1, share)
    return np.asarray(np.where(events[:, 1] > 0, tail, 1.0))


def readings(sums: Floats, metrics: Sequence[str]) -> list[list[AnalysisResult]]:
    """What the analysis would report of each test at the end of each day.

    Raises:
        KeyError: a metric that this simulation does not have.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        statistics = Statistics(sums)
        columns = {name: _reading_columns(statistics, name) for name in metrics}
        n = statistics.n
        chi_square = (n[:, 1] - n[:, 0]) ** 2 / (n[:, 1] + n[:, 0])
        ratio_p = special.erfc(np.sqrt(chi_square / 2))
    build = functools.partial(_result, n, ratio_p, columns)
    return [[build(test, day) for day in range(DAYS)] for test in range(len(sums))]


def baseline(sums: Floats, metrics: Sequence[str]) -> BaselineReport:
    """What the analysis would report of a log before a test: `sums` over all its users, days x COLUMNS."""
    statistics = Statistics(sums[None, None])
    n = int(statistics.n[0, 0, -1])
    found = []
    for name in metrics:
        mean, error, of, by = _measured(statistics, name)
        denominator = statistics.total(by)[0, 0, -1] if by else n
        values = ArmStatistics(
            n=n,
            mean=float(mean[0, 0, -1]),
            variance=float(error[0, 0, -1] ** 2 * n),
            numerator=float(statistics.total(of)[0, 0, -1]),
            denominator=float(denominator),
        )
        kind = MetricKind.RATIO if by else MetricKind.MEAN
        found.append(BaselineMetric(name=name, kind=kind, statistics=values))
    window = Window(start="2026-02-23T00:00:00Z", end="2026-03-02T00:00:00Z", days=DAYS)
    return BaselineReport(window=window, users=n, metrics=found)


def _measured(statistics: Statistics, name: str) -> tuple[Floats, Floats, str, str | None]:
    """A metric's value and standard error in each arm, what is counted, and by what it is divided."""
    if name in ADJUSTED:
        of, covariate = ADJUSTED[name]
        return (*statistics.adjusted(of, covariate), of, None)
    of, by = RATIOS[name]
    return (*statistics.ratio(of, by), of, by)


def _reading_columns(statistics: Statistics, name: str) -> dict[str, Floats]:
    mean, error, of, by = _measured(statistics, name)
    sums = statistics.total(of)
    scatter = np.sqrt(error[:, 0] ** 2 + error[:, 1] ** 2)
    exact = {"difference_upper": mean[:, 1] - mean[:, 0] + ONE_SIDED_Z * scatter}
    if by and name in RATES:
        trials = statistics.total(by)
        exact["difference_upper"] = np.fmax(
            exact["difference_upper"], exact_difference_upper(sums, trials, counts=by == "messages")
        )
        exact["harm_p_value"] = exact_harm(sums, trials)
    log_error = np.sqrt((error[:, 0] / mean[:, 0]) ** 2 + (error[:, 1] / mean[:, 1]) ** 2)
    lift = mean[:, 1] / mean[:, 0] - 1
    return {
        "control": mean[:, 0], "treatment": mean[:, 1], "control_sum": sums[:, 0], "treatment_sum": sums[:, 1],
        "lift": lift, "log_standard_error": log_error,
        "low": (1 + lift) * np.exp(-Z * log_error) - 1, "high": (1 + lift) * np.exp(Z * log_error) - 1,
        **exact,
    }  # fmt: skip


def _result(n: Floats, ratio_p: Floats, columns: dict[str, dict[str, Floats]], test: int, day: int) -> AnalysisResult:
    control, treatment = int(n[test, 0, day]), int(n[test, 1, day])
    return AnalysisResult(
        reason=AnalysisReason.SUCCEEDED,
        users=Users(control=control, treatment=treatment),
        sample_ratio=SampleRatio(expected_treatment_share=0.5, p_value=float(ratio_p[test, day])),
        metrics=[_reading(name, values, test, day) for name, values in columns.items()],
    )


def _reading(name: str, columns: dict[str, Floats], test: int, day: int) -> MetricReading:
    values = {key: float(column[test, day]) for key, column in columns.items()}
    known = {key: value for key, value in values.items() if np.isfinite(value)}
    if min(known.get("control", 0.0), known.get("treatment", 0.0)) > 0:
        return MetricReading(name=name, status=MeasureStatus.MEASURED, **known)
    # Without an event in an arm there is no lift; means, sums and exact bounds stay.
    relative = {"lift", "log_standard_error", "low", "high"}
    return MetricReading(
        name=name,
        status=MeasureStatus.UNPROVEN,
        **dict(itertools.filterfalse(lambda item: item[0] in relative, known.items())),
    )
