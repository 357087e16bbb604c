"""What can come out of an online test, in closed sets, and what a test measures where nothing else is said."""

from enum import StrEnum
from typing import Final

from flywheel_contract.experiment import CUPED_SUFFIX, BuiltinMetric, Guardrail


class AbVerdict(StrEnum):
    """What came out of an ABTest."""

    TREATMENT_WINS = "TreatmentWins"
    CONTROL_WINS = "ControlWins"
    GUARDRAIL_BROKEN = "GuardrailBroken"
    INCONCLUSIVE = "Inconclusive"


class AbReason(StrEnum):
    """Why; one word for machines, next to a sentence with the numbers."""

    PRIMARY_LIFTED = "PrimaryLifted"
    PRIMARY_DROPPED = "PrimaryDropped"
    GUARDRAIL_FAILED = "GuardrailFailed"
    HARM_AT_DAILY_LOOK = "HarmAtDailyLook"
    """Before the end of the window a guardrail rose, or a primary fell, beyond what chance does."""
    GUARDRAIL_UNPROVEN = "GuardrailUnproven"
    """A primary rose, but a guardrail has not been shown to keep its margin."""
    NO_PRIMARY_MOVED = "NoPrimaryMoved"
    METRIC_UNPROVEN = "MetricUnproven"
    """No primary could be measured."""
    SAMPLE_RATIO_MISMATCH = "SampleRatioMismatch"
    SAMPLE_RATIO_UNPROVEN = "SampleRatioUnproven"
    """Users were counted, but whether the arms have the sizes that they should have is not known."""
    TOO_FEW_USERS = "TooFewUsers"
    NO_DATA = "NoData"
    ANALYSIS_FAILED = "AnalysisFailed"
    """There may be data, but it could not be measured."""
    CONTROL_MOVED = "ControlMoved"
    """What the treatment was compared with went out of production before the end."""
    NO_HARM = "NoHarm"
    """Of a daily look only: it looked and the test goes on."""


NO_DATA_REASONS: Final = frozenset({AbReason.NO_DATA, AbReason.ANALYSIS_FAILED})
"""An Inconclusive for one of these is a matter of `onNoData`; every other one of `onInconclusive`."""


class LookOutcome(StrEnum):
    """What a daily look, which cannot promote, may do."""

    CONTINUE = "Continue"
    PAUSE = "Pause"
    """Production serves the treatment's users until somebody has found out why the arms differ in size."""
    STOP = "Stop"


class GuardrailOutcome(StrEnum):
    """How a guardrail came out. Only Passed is a pass."""

    PASSED = "Passed"
    FAILED = "Failed"
    UNPROVEN = "Unproven"
    """Neither kept nor broken for sure: too few events, too wide an interval, or not measured."""


class PrimaryOutcome(StrEnum):
    """How a primary came out."""

    ABOVE = "Above"
    BELOW = "Below"
    INCONCLUSIVE = "Inconclusive"
    """Its interval holds zero."""
    UNPROVEN = "Unproven"
    """It was not measured."""


DEFAULT_TARGET_LIFT: Final = 0.05
"""The relative lift that a test is planned to see."""

DEFAULT_PRIMARIES: Final = (
    BuiltinMetric.ACTIVE_DAYS_PER_USER + CUPED_SUFFIX,
    BuiltinMetric.MESSAGES_PER_USER + CUPED_SUFFIX,
)
"""Breadth and depth of engagement, each adjusted by what the same users did before."""

DEFAULT_GUARDRAILS: Final = (
    Guardrail(metric=BuiltinMetric.SAFETY_VIOLATIONS_PER_MESSAGE, margin=0.25, absolute_margin=0.002),
    Guardrail(metric=BuiltinMetric.FALSE_REFUSALS_PER_MESSAGE, margin=0.25, absolute_margin=0.005),
    Guardrail(metric=BuiltinMetric.ERRORS_PER_REQUEST, margin=0.25, absolute_margin=0.005),
    Guardrail(metric=BuiltinMetric.LATENCY_MEAN, margin=0.05),
)
"""What must not get worse.

The figures come from benchmarks/abtest_errors.py. Rates pass by either margin: the relative one serves where events
are many, the absolute one (two more violations, five more refusals or errors per thousand) where they are rare.
"""
