"""The status of an ABTest."""

from typing import Literal

from pydantic import Field

from flywheel_contract.base import list_map
from flywheel_operator.model.abtest import ABTestSpec
from flywheel_operator.model.experiment import AbReason, AbVerdict
from flywheel_operator.model.phases import ABTestPhase
from flywheel_operator.model.status import BaseStatus, ModelRef, StatusRecord, Time


class AbVerdictStatus(StatusRecord):
    """What came out."""

    result: AbVerdict = Field(description="The verdict.")
    reason: AbReason = Field(description="One word for machines.")
    message: str = Field(description="A sentence with the numbers.")


class MetricOutcome(StatusRecord):
    """A primary or a guardrail, as the last analysis saw it."""

    name: str = Field(description="The metric.")
    role: Literal["Primary", "Guardrail"] = Field(description="What it is to the verdict.")
    outcome: str = Field(
        "", description="At the end: Passed, Failed or Unproven; Above, Below, Inconclusive or Unproven."
    )
    control: float | None = Field(None, description="The control's mean.")
    treatment: float | None = Field(None, description="The treatment's mean.")
    lift: float | None = Field(None, description="treatment / control - 1.")
    low: float | None = Field(None, description="Low end of the lift's 95 % interval.")
    high: float | None = Field(None, description="High end.")
    message: str = Field("", description="A sentence with the numbers.")


class ExposedUsers(StatusRecord):
    """Whom an analysis counted."""

    control: int = Field(0, description="Exposed users of the control arm.")
    treatment: int = Field(0, description="Exposed users of the treatment arm.")
    in_both_arms: int = Field(0, description="Seen in both arms inside the window: excluded.")
    fallback: int = Field(0, description="Treatment users whom production served at least once; they stay.")
    sample_ratio_p_value: float | None = Field(
        None, description="Probability of arms as unequal as these, were users split as they should be."
    )


class PowerStatus(StatusRecord):
    """What the test can be expected to see, computed before its start."""

    metric: str = Field(description="The metric.")
    role: Literal["Primary", "Guardrail"] = Field(description="What it is to the verdict.")
    detectable_lift: float | None = Field(None, description="Primary: the lift that it sees with 80 % probability.")
    pass_probability: float | None = Field(
        None, description="Guardrail: the probability that it passes where nothing got worse."
    )


class AnalysisRun(StatusRecord):
    """One run of the analysis: the baseline before the start, a daily look, or the last one."""

    name: str = Field(description="baseline, day-1, day-2, ..., final.")
    state: Literal["Pending", "Running", "Succeeded", "Failed"] = Field("Pending", description="Where it is.")
    job: str | None = Field(None, description="The Job of the last attempt.")
    attempts: int = Field(0, ge=0, description="Jobs created for it.")
    failures: int = Field(0, ge=0, description="Attempts that count against the retry budget.")
    retry_time: Time | None = Field(None, description="When the next attempt is due.")
    message: str = Field("", description="Why it waits or broke, or what it said.")
    report_uri: str | None = Field(None, description="The whole report.")
    report_digest: str | None = Field(None, description="Digest of the report.")


class ABTestStatus(BaseStatus):
    """The status of an ABTest."""

    phase: ABTestPhase = Field(ABTestPhase.PENDING, description="Where it is in its life.")
    verdict: AbVerdictStatus | None = Field(None, description="What came out.")
    resolved: ABTestSpec | None = Field(None, description="The spec with every default and every prompt written out.")
    trial: bool = Field(False, description="Its days are shorter than 24h: what it says is for trying things out.")
    control: ModelRef | None = Field(None, description="What the control was when the window began.")
    treatment: ModelRef | None = Field(None, description="What the treatment was.")
    window_start: Time | None = Field(None, description="T0: users exposed from here on count.")
    window_end: Time | None = Field(None, description="T1: what happens from here on does not.")
    extensions: int = Field(0, ge=0, description="How often the window was extended.")
    day: str | None = Field(None, description="Day of days, for the column.")
    exposed: str | None = Field(None, description="Exposed users, control / treatment, for the column.")
    lift: str | None = Field(None, description="Lift of the first primary with its interval, for the column.")
    paused: bool = Field(False, description="Production serves the treatment's users for now.")
    mismatch: bool = Field(False, description="A look found the arms' sizes off: the treatment is paused.")
    router_config: str | None = Field(None, description="The ConfigMap that the router runs with.")
    server_start_time: Time | None = Field(None, description="When its servers were first asked for.")
    away_time: Time | None = Field(
        None, description="Since when users are sent to its router no more: router and arms drain from here on."
    )
    metrics: list[MetricOutcome] = Field(
        default_factory=list,
        description="Primaries and guardrails at the last look.",
        json_schema_extra=list_map("name", "role"),
    )
    power: list[PowerStatus] = Field(
        default_factory=list,
        description="What it can be expected to see.",
        json_schema_extra=list_map("metric", "role"),
    )
    runs: list[AnalysisRun] = Field(
        default_factory=list, description="The runs of the analysis.", json_schema_extra=list_map("name")
    )
    users: ExposedUsers | None = Field(None, description="Whom the last analysis counted.")
