"""What an online test measures: metric definitions, and the statistics that come back from the analysis.

The analysis measures and never decides; the operator decides from these numbers alone and never measures.
"""

import json
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from flywheel_contract.base import Digest, Record
from flywheel_contract.stage_result import TERMINATION_MESSAGE_BYTES
from flywheel_contract.uris import OutputUri

ANALYSIS_VERSION: Final = "analysis.characterflywheel.dev/v1alpha1"
MAX_PRIMARIES: Final = 3
MAX_GUARDRAILS: Final = 5
"""Together so many that their numbers fit into a termination message."""
CUPED_SUFFIX: Final = "Cuped"
"""`messagesPerUserCuped` is `messagesPerUser` adjusted by its pre-period covariate."""

MetricName = Annotated[str, Field(pattern=r"^[a-z][A-Za-z0-9]*$", max_length=40)]


class Arm(StrEnum):
    """An enrolled arm, as it stands in logs and tables."""

    CONTROL = "control"
    TREATMENT = "treatment"


class MetricKind(StrEnum):
    """How a metric is made of its users."""

    MEAN = "Mean"
    """The mean over exposed users."""
    RATIO = "Ratio"
    """A ratio of two sums over exposed users; its variance is clustered by user (delta method)."""


class Covariate(StrEnum):
    """A pre-period quantity of a user, for CUPED."""

    PRE_MESSAGES = "preMessages"
    PRE_ACTIVE_DAYS = "preActiveDays"


class BuiltinMetric(StrEnum):
    """The metrics that need no definition."""

    ACTIVE_SHARE = "activeShare"
    ACTIVE_DAYS_PER_USER = "activeDaysPerUser"
    MESSAGES_PER_USER = "messagesPerUser"
    MESSAGES_PER_USER_CAPPED = "messagesPerUserCapped"
    """Messages, at most 100 a user."""
    MESSAGES_PER_ACTIVE_USER = "messagesPerActiveUser"
    MESSAGES_PER_ACTIVE_DAY = "messagesPerActiveDay"
    SAFETY_VIOLATIONS_PER_MESSAGE = "safetyViolationsPerMessage"
    FALSE_REFUSALS_PER_MESSAGE = "falseRefusalsPerMessage"
    ERRORS_PER_REQUEST = "errorsPerRequest"
    """errors / (messages + errors)."""
    LATENCY_MEAN = "latencyMean"
    """Milliseconds per message."""


COVARIATE_OF: Final[dict[BuiltinMetric, Covariate]] = {
    BuiltinMetric.ACTIVE_SHARE: Covariate.PRE_ACTIVE_DAYS,
    BuiltinMetric.ACTIVE_DAYS_PER_USER: Covariate.PRE_ACTIVE_DAYS,
    BuiltinMetric.MESSAGES_PER_USER: Covariate.PRE_MESSAGES,
    BuiltinMetric.MESSAGES_PER_USER_CAPPED: Covariate.PRE_MESSAGES,
    BuiltinMetric.MESSAGES_PER_ACTIVE_USER: Covariate.PRE_MESSAGES,
    BuiltinMetric.MESSAGES_PER_ACTIVE_DAY: Covariate.PRE_MESSAGES,
}
"""The built-in metrics with a CUPED form, named with `Cuped` at the end, and its covariate."""

RATES: Final = frozenset(
    {
        BuiltinMetric.SAFETY_VIOLATIONS_PER_MESSAGE,
        BuiltinMetric.FALSE_REFUSALS_PER_MESSAGE,
        BuiltinMetric.ERRORS_PER_REQUEST,
    }
)
"""Counts of rare events over counts: these have exact bounds."""

BUILTIN_NAMES: Final = (*(m.value for m in BuiltinMetric), *(m.value + CUPED_SUFFIX for m in COVARIATE_OF))


class MetricDefinition(Record):
    """A metric of the user's own, in SQL over the events of one user.

    Columns: `type`, `value`, `ts`, `day` (the index of the day in the window, from 0) and whatever else the events
    have. Both expressions are aggregates, e.g. `count(*) FILTER (WHERE type = 'thumbs_up')`.
    """

    name: MetricName = Field(description="Its name in primaries and guardrails; not one of the built-in names.")
    numerator: Annotated[str, Field(min_length=1, max_length=1024)] = Field(
        description="SQL aggregate over a user's events in the window; nothing found counts 0."
    )
    denominator: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        None, description="SQL aggregate that makes it a ratio of sums; left out, it is a mean per exposed user."
    )
    covariate: Covariate | None = Field(None, description="Adjusts it by CUPED with this pre-period quantity.")

    @property
    def kind(self) -> MetricKind:
        """Mean, or Ratio where there is a denominator."""
        return MetricKind.RATIO if self.denominator is not None else MetricKind.MEAN


class Guardrail(Record):
    """What must not get worse. An increase is harm.

    It passes when the one-sided 95 % upper bound of the relative increase is below `margin`, or that of the difference
    below `absoluteMargin`.
    """

    metric: MetricName = Field(description="A built-in metric, or one of spec.metrics.")
    margin: float | None = Field(
        None, gt=0, le=10, description="Largest relative increase that is accepted, e.g. 0.25 for 25 %."
    )
    absolute_margin: float | None = Field(
        None, gt=0, le=1e9, description="Largest increase of the metric itself; what rare events need."
    )


class Allocation(Record):
    """The shares of all users that are enrolled."""

    control: float = Field(10, gt=0, le=50, description="Percent of the users in the control arm.")
    treatment: float = Field(10, gt=0, le=50, description="Percent of the users in the treatment arm.")


class AnalysisSpec(Record):
    """What to measure: the part of an ABTest that the analysis reads (`spec`, where it is given the whole object)."""

    test: str = Field("", max_length=63, description="The ABTest; rows of other tests are left out when it is set.")
    allocation: Allocation = Field(default_factory=Allocation)
    day_length_seconds: int = Field(86400, ge=1, le=86400)
    metrics: list[MetricDefinition] = Field(default_factory=list, max_length=16)
    primaries: list[MetricName] = Field(default_factory=list, max_length=MAX_PRIMARIES)
    guardrails: list[Guardrail] = Field(default_factory=list, max_length=MAX_GUARDRAILS)
    dimensions: list[str] = Field(default_factory=list, max_length=8)


class MeasureStatus(StrEnum):
    """Whether a metric could be measured."""

    MEASURED = "Measured"
    UNPROVEN = "Unproven"
    """An arm is empty, or has no event: there is no lift. Exact bounds may be there."""


class ArmStatistics(Record):
    """One arm of one metric."""

    n: int = Field(ge=0, description="Exposed users.")
    mean: float | None = Field(None, description="Mean per user, or the ratio of the sums.")
    variance: float | None = Field(
        None,
        description="Per user, so that the mean's standard error is sqrt(variance / n): the sample variance, or that "
        "of the linearised ratio.",
    )
    numerator: float = Field(0, description="Sum over users.")
    denominator: float = Field(0, description="Sum over users; the number of users where the metric is a mean.")


class MetricResult(Record):
    """One metric, treatment against control."""

    name: MetricName
    kind: MetricKind
    denominator: str = Field(description="What it is divided by, in words, e.g. `exposed users` or `messages`.")
    covariate: Covariate | None = None
    control: ArmStatistics
    treatment: ArmStatistics
    lift: float | None = Field(None, description="treatment / control - 1.")
    low: float | None = Field(None, description="Lower end of the lift's two-sided 95 % interval.")
    high: float | None = Field(None, description="Upper end.")
    log_standard_error: float | None = Field(
        None, description="Standard error of log(treatment / control); bounds of other levels are made of it."
    )
    p_value: float | None = Field(None, description="Two-sided, of no difference.")
    difference_upper: float | None = Field(
        None,
        description="One-sided 95 % upper bound of treatment - control: for rates the larger of the exact one and the "
        "user-clustered one.",
    )
    harm_p_value: float | None = Field(
        None,
        description="For rates: exact one-sided p-value that the treatment's is higher (conditional binomial); also "
        "where an arm has no event.",
    )
    method: str = Field(description="How the interval was made, e.g. `log-delta`, `log-delta, CUPED on preMessages`.")
    status: MeasureStatus
    message: str = ""


class MetricReading(Record):
    """What a decision needs of a `MetricResult`; small, because it travels in a termination message."""

    name: MetricName
    status: MeasureStatus
    control: float | None = Field(None, description="The control's mean.")
    treatment: float | None = Field(None, description="The treatment's mean.")
    control_sum: float = Field(0, description="The control's numerator, e.g. its violations.")
    treatment_sum: float = 0
    lift: float | None = None
    low: float | None = None
    high: float | None = None
    log_standard_error: float | None = None
    difference_upper: float | None = None
    harm_p_value: float | None = None

    @classmethod
    def of(cls, result: MetricResult) -> Self:
        """The reading of a result."""
        return cls(
            name=result.name,
            status=result.status,
            control=result.control.mean,
            treatment=result.treatment.mean,
            control_sum=result.control.numerator,
            treatment_sum=result.treatment.numerator,
            lift=result.lift,
            low=result.low,
            high=result.high,
            log_standard_error=result.log_standard_error,
            difference_upper=result.difference_upper,
            harm_p_value=result.harm_p_value,
        )


class SampleRatio(Record):
    """Whether the arms have the sizes that they should have (chi-square without correction)."""

    expected_treatment_share: float
    observed_treatment_share: float | None = None
    p_value: float | None = None


class Users(Record):
    """Who was counted."""

    control: int = 0
    treatment: int = 0
    in_both_arms: int = Field(0, description="Seen in both arms inside the window: excluded.")
    fallback: int = Field(0, description="Treatment users whom production served at least once; they stay.")
    fallback_events: float = Field(0, description="Share of the treatment's events that production served.")
    without_covariates: int = 0


class Window(Record):
    """[start, end) in whole days of `dayLengthSeconds`."""

    start: str
    end: str
    day_length_seconds: int = 86400
    days: int


class Breakdown(Record):
    """Exploration by one value of a dimension; never part of a verdict."""

    dimension: str
    value: str
    users: Users
    metrics: list[MetricResult]


class AnalysisReport(Record):
    """The whole measurement of a test."""

    api_version: Literal["analysis.characterflywheel.dev/v1alpha1"] = ANALYSIS_VERSION
    test: str = ""
    window: Window
    users: Users
    sample_ratio: SampleRatio
    metrics: list[MetricResult]
    exploration: list[Breakdown] = Field(
        default_factory=list, description="By dimension; for looking around, not for deciding."
    )
    notes: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)


class BaselineMetric(Record):
    """One metric over all users of the log, before a test."""

    name: MetricName
    kind: MetricKind
    covariate: Covariate | None = None
    statistics: ArmStatistics


class BaselineReport(Record):
    """What the log says of the time before the test: what the power of the test is computed from."""

    api_version: Literal["analysis.characterflywheel.dev/v1alpha1"] = ANALYSIS_VERSION
    window: Window
    users: int = Field(description="Users exposed or active inside the window.")
    metrics: list[BaselineMetric] = Field(max_length=MAX_PRIMARIES + MAX_GUARDRAILS)


class AnalysisReason(StrEnum):
    """How an analysis Job ended."""

    SUCCEEDED = "Succeeded"
    NO_DATA = "NoData"
    """There is no exposure in the window: nothing was measured."""
    INVALID_SPEC = "InvalidSpec"
    INVALID_DATA = "InvalidData"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    """The database or the store did not answer: another attempt may help."""
    FAULT = "Fault"


class AnalysisResult(Record):
    """What reaches the operator as the Job's termination message: the metrics that it decides on, nothing else."""

    api_version: Literal["analysis.characterflywheel.dev/v1alpha1"] = ANALYSIS_VERSION
    reason: AnalysisReason
    message: Annotated[str, Field(max_length=512)] = ""
    report_uri: OutputUri | None = None
    report_digest: Digest | None = None
    window: Window | None = None
    users: Users | None = None
    sample_ratio: SampleRatio | None = None
    metrics: list[MetricReading] = Field(default_factory=list, max_length=MAX_PRIMARIES + MAX_GUARDRAILS)
    baseline: BaselineReport | None = None

    @model_validator(mode="after")
    def _measured_or_not(self) -> Self:
        if self.reason is AnalysisReason.SUCCEEDED and self.users is None and self.baseline is None:
            raise ValueError("a measurement that succeeded says whom it counted")
        return self

    def to_termination_message(self) -> str:
        """Compact JSON of at most 4096 bytes, numbers with six significant digits.

        Raises:
            ValueError: it does not fit (a test builds the largest that the limits above allow).
        """
        result = _short(self.to_json())
        text = json.dumps(result, separators=(",", ":"), ensure_ascii=True)
        if len(text) > TERMINATION_MESSAGE_BYTES:
            # An escaped character takes six bytes or twelve: without the message it fits by the limits above.
            result["message"] = ""
            text = json.dumps(result, separators=(",", ":"), ensure_ascii=True)
        if len(text) > TERMINATION_MESSAGE_BYTES:
            raise ValueError(f"the result takes {len(text)} bytes, more than {TERMINATION_MESSAGE_BYTES}")
        return text


def _short(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    if isinstance(value, float):
        rounded = float(f"{value:.6g}")
        # A whole number needs no `.0`; beyond 1e16 it is written with an exponent, which is shorter still.
        return int(rounded) if rounded.is_integer() and abs(rounded) < 1e16 else rounded
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return value
