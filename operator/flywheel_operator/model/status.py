"""What we write into status: a contract with our users, as much as spec is."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from flywheel_contract.base import Record, list_map
from flywheel_contract.manifest import Measurement
from flywheel_contract.stages import Stage
from flywheel_operator.model.generation import GenerationSpec
from flywheel_operator.model.phases import Phase, RewardModelPhase, StageState, Verdict
from flywheel_operator.model.reward_model import RewardModelSpec

Time = Annotated[datetime, Field(json_schema_extra={"format": "date-time"})]


class StatusRecord(Record):
    """A part of status; fields that a newer operator wrote are skipped, not refused."""

    model_config = ConfigDict(extra="ignore")


class Condition(StatusRecord):
    """A metav1.Condition."""

    type: str = Field(max_length=316, description="Kind of condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: str = Field(max_length=1024, description="One word for machines.")
    message: str = Field("", max_length=32768, description="A sentence for people.")
    observed_generation: int = Field(0, ge=0, description="metadata.generation that it speaks of.")
    last_transition_time: Time = Field(description="When status last changed.")


class StageProgress(StatusRecord):
    """How far a running stage is."""

    percent: int = Field(0, ge=0, le=100, description="Done, in percent.")
    step: int | None = Field(None, description="Steps done.")
    total_steps: int | None = Field(None, description="Steps in all.")
    loss: float | None = Field(None, description="The last logged loss.")
    reward: float | None = Field(None, description="The last logged mean reward.")
    eta_seconds: int | None = Field(None, description="Estimated seconds until the stage ends.")
    message: str | None = Field(None, description="What it does at the moment.")


class Output(StatusRecord):
    """Something that a stage left."""

    name: str = Field(description="Name of the output.")
    uri: str = Field(description="Where it lies.")
    digest: str = Field(description="Digest over its files.")
    rows: int | None = Field(None, description="In a dry run: rows of data.")
    tokens: int | None = Field(None, description="In a dry run: tokens of data, estimated from a sample of rows.")
    parameters: int | None = Field(None, description="In a dry run: parameters of a model.")


class MetricStatus(Measurement):
    """A measured metric with its name."""

    name: str = Field(description="Name of the metric.")


class StageStatus(StatusRecord):
    """One stage."""

    name: Stage = Field(description="The stage.")
    state: StageState = Field(StageState.PENDING, description="Where it is.")
    attempts: int = Field(0, ge=0, description="Jobs created for it.")
    failures: int = Field(0, ge=0, description="Attempts that count against the retry budget.")
    job: str | None = Field(None, description="The Job of the last attempt.")
    progress: StageProgress | None = Field(None, description="How far it is.")
    message: str = Field("", description="What it says of itself, or why it waits or broke.")
    reason: str = Field("", description="One word for the message.")
    start_time: Time | None = Field(None, description="When the first attempt was created.")
    completion_time: Time | None = Field(None, description="When it succeeded or failed for good.")
    retry_time: Time | None = Field(None, description="When the next attempt is due.")
    rerun: int = Field(0, ge=0, description="How often it was asked to run anew (the annotation rerun-from).")
    reused: bool = Field(False, description="Its result lay in the artefact store already; nothing was done again.")
    inputs_digest: str | None = Field(None, description="Digest of all that its result depends on.")
    manifest_uri: str | None = Field(None, description="Its manifest.")
    outputs: list[Output] = Field(default_factory=list, description="What it left.", json_schema_extra=list_map("name"))
    metrics: list[MetricStatus] = Field(
        default_factory=list, description="What it measured.", json_schema_extra=list_map("name")
    )


class GateStatus(StatusRecord):
    """One gate and how it came out."""

    name: str = Field(description="Name of the gate.")
    metric: str = Field(description="The metric.")
    verdict: Literal["Passed", "Failed", "NotMeasured"] = Field(description="Only Passed is a pass.")
    value: float | None = Field(None, description="The measured value.")
    low: float | None = Field(None, description="Low end of the interval.")
    high: float | None = Field(None, description="High end of the interval.")
    n: int | None = Field(None, description="Units behind it.")
    bound: str = Field(description="What it was held against, e.g. '>= 0.5 (low end)'.")
    message: str = Field(description="A sentence with the numbers.")


class ResolvedInput(StatusRecord):
    """Something named by URI, and what it was when the generation started."""

    name: str = Field(description="Name of the input.")
    uri: str = Field(description="Where it lies.")
    digest: str = Field(description="Its digest.")


class SnapshotRef(StatusRecord):
    """The immutable ConfigMap that the stages run from."""

    name: str = Field(description="Name of the ConfigMap.")
    digest: str = Field(description="Digest of what it holds.")


class ModelRef(StatusRecord):
    """A model and where it came from."""

    generation: str | None = Field(None, description="The Generation that made it, if one did.")
    uri: str = Field(description="Where it lies.")
    digest: str = Field(description="Its digest.")


class VerdictStatus(StatusRecord):
    """What came out."""

    result: Verdict = Field(description="The verdict.")
    reason: str = Field(description="One word for machines.")
    message: str = Field(description="A sentence with the numbers.")


class EstimatedStage(StatusRecord):
    """What a stage would do, as far as it can be estimated."""

    name: Stage = Field(description="The stage.")
    rows: int = Field(description="Conversations, pairs or replies.")
    tokens: int = Field(description="Tokens trained on or generated, prompts included.")
    steps: int | None = Field(None, description="Optimiser steps.")
    gpu_hours: float = Field(description="GPU-hours.")
    hours: float | None = Field(None, description="Hours by the clock on the GPUs that spec.runtime asks for.")


class EstimateStatus(StatusRecord):
    """What a dry run found."""

    gpu_hours: float = Field(description="GPU-hours of all stages.")
    stages: list[EstimatedStage] = Field(
        default_factory=list, description="Stage by stage.", json_schema_extra=list_map("name")
    )


class CommandStatus(StatusRecord):
    """A one-shot annotation that was acted on."""

    name: str = Field(description="promote, rollback, retire, abort or rerun-from.")
    value: str = Field(description="The annotation's value.")
    time: Time = Field(description="When it was acted on.")
    outcome: str = Field(description="What came of it.")


class BaseStatus(StatusRecord):
    """What the statuses of all kinds share."""

    observed_generation: int = Field(0, ge=0, description="metadata.generation that this status speaks of.")
    start_time: Time | None = Field(None, description="When it started; spec is frozen from then on.")
    completion_time: Time | None = Field(None, description="When it ended.")
    commands: list[CommandStatus] = Field(
        default_factory=list, description="Annotations acted on.", json_schema_extra=list_map("name")
    )
    conditions: list[Condition] = Field(
        default_factory=list, description="Ready, Progressing, Serving, ...", json_schema_extra=list_map("type")
    )
    stage: str | None = Field(None, description="What it does now.")


class ObjectStatus(BaseStatus):
    """What the statuses of the kinds with stages share."""

    suspend_time: Time | None = Field(None, description="Since when it is suspended.")
    suspended_seconds: int = Field(0, ge=0, description="Time spent suspended before now.")
    progress: str | None = Field(None, description="Progress of that stage and of the whole.")
    inputs: list[ResolvedInput] = Field(
        default_factory=list, description="What the URIs of the spec stood for.", json_schema_extra=list_map("name")
    )
    stages: list[StageStatus] = Field(
        default_factory=list, description="The stages in order.", json_schema_extra=list_map("name")
    )
    gates: list[GateStatus] = Field(
        default_factory=list, description="The gates and their verdicts.", json_schema_extra=list_map("name")
    )


class GenerationStatus(ObjectStatus):
    """The status of a Generation."""

    phase: Phase = Field(Phase.PENDING, description="Where it is in its life.")
    verdict: VerdictStatus | None = Field(None, description="What came out.")
    estimate: EstimateStatus | None = Field(None, description="What a dry run found.")
    win_rate: str | None = Field(None, description="Win rate against the baseline, for the column.")
    report: str | None = Field(None, description="URI of the evaluation's report, a page to read (report.html).")
    snapshot: SnapshotRef | None = Field(None, description="What it runs from.")
    resolved: GenerationSpec | None = Field(None, description="The spec with every default written out.")
    trainer_image: str | None = Field(None, description="The trainer image that it runs with.")
    baseline: ModelRef | None = Field(None, description="The model that the candidate is judged against.")
    production_digest: str | None = Field(
        None, description="Digest in production when it started; promotion demands that it still is. Empty: none was."
    )
    candidate: ModelRef | None = Field(None, description="The model that it made.")
    promotion_hash: str | None = Field(
        None, description="Value of the annotation characterflywheel.dev/promote that promotes just what was judged."
    )
    ab_test: str | None = Field(None, description="The ABTest that tries the candidate on live users.")
    ab_test_won: bool = Field(False, description="The candidate has won it; nothing else lets a tested one through.")
    server_start_time: Time | None = Field(None, description="When its model server was first asked for.")
    superseded_time: Time | None = Field(None, description="Since when another Generation serves in its place.")


class RewardModelStatus(ObjectStatus):
    """The status of a RewardModel."""

    phase: RewardModelPhase = Field(RewardModelPhase.PENDING, description="Where it is in its life.")
    resolved: RewardModelSpec | None = Field(None, description="The spec with every default written out.")
    trainer_image: str | None = Field(None, description="The trainer image that it runs with.")
    accuracy: str | None = Field(None, description="Accuracy on held-out pairs, for the column.")
    auc: str | None = Field(None, description="Area under the ROC curve on held-out replies, for the column.")
    model: ModelRef | None = Field(None, description="The trained model, once it is Ready.")
