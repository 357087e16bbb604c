"""Reports of an analysis for the tests of the verdict: a treatment that wins, and what may be changed of it."""

from typing import Final

from flywheel_contract.experiment import (
    AnalysisReason,
    AnalysisResult,
    Guardrail,
    MeasureStatus,
    MetricReading,
    SampleRatio,
    Users,
)
from flywheel_operator.decide.abtest import DecisionRule
from flywheel_operator.model.experiment import NO_DATA_REASONS, AbReason, AbVerdict

DAYS, MESSAGES = "activeDaysPerUserCuped", "messagesPerUserCuped"
VIOLATIONS, LATENCY = "safetyViolationsPerMessage", "latencyMean"
RULE = DecisionRule(
    primaries=(DAYS, MESSAGES),
    guardrails=(
        Guardrail(metric=VIOLATIONS, margin=0.25, absolute_margin=0.002),
        Guardrail(metric=LATENCY, margin=0.05),
    ),
    min_users_per_arm=1000,
)
LOOKS = 7


def lifted(name: str, lift: float, error: float | None = 0.01, **fields: object) -> MetricReading:
    """A metric that was measured."""
    values = {"control": 2.0, "treatment": 2.0 * (1 + lift), "control_sum": 200.0, "treatment_sum": 200 * (1 + lift)}
    return MetricReading.model_validate(
        {"name": name, "status": "Measured", "lift": lift, "log_standard_error": error, **values, **fields}
    )


def unproven(name: str, **fields: object) -> MetricReading:
    """A metric without a lift."""
    return MetricReading.model_validate({"name": name, "status": MeasureStatus.UNPROVEN, **fields})


GOOD: dict[str, MetricReading] = {
    DAYS: lifted(DAYS, 0.05),
    MESSAGES: lifted(MESSAGES, 0.0),
    VIOLATIONS: lifted(VIOLATIONS, 0.0, 0.1, difference_upper=0.001, harm_p_value=0.5),
    LATENCY: lifted(LATENCY, 0.0),
}


def report(*changed: MetricReading, without: str = "", p: float | None = 0.5, **fields: object) -> AnalysisResult:
    """A treatment that wins, but for what is changed."""
    metrics = GOOD | {reading.name: reading for reading in changed}
    return AnalysisResult.model_validate(
        {
            "reason": AnalysisReason.SUCCEEDED,
            "users": Users(control=3000, treatment=3010),
            "sample_ratio": SampleRatio(expected_treatment_share=0.5, p_value=p),
            "metrics": [reading for name, reading in metrics.items() if name != without],
            **fields,
        }
    )


REASONS: Final = {
    AbVerdict.TREATMENT_WINS: {AbReason.PRIMARY_LIFTED},
    AbVerdict.CONTROL_WINS: {AbReason.PRIMARY_DROPPED},
    AbVerdict.GUARDRAIL_BROKEN: {AbReason.GUARDRAIL_FAILED},
    AbVerdict.INCONCLUSIVE: {
        AbReason.GUARDRAIL_UNPROVEN, AbReason.NO_PRIMARY_MOVED, AbReason.METRIC_UNPROVEN, AbReason.TOO_FEW_USERS,
        AbReason.SAMPLE_RATIO_MISMATCH, AbReason.SAMPLE_RATIO_UNPROVEN, *NO_DATA_REASONS,
    },
}  # fmt: skip
"""The reasons that a verdict at the end of the window can have."""
VERDICT_OF: Final = {reason: verdict for verdict, reasons in REASONS.items() for reason in reasons}
