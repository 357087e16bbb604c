"""Spec pieces that the kinds share: where data lies, what is retried, what gates there are."""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from flywheel_contract.base import Name, Record, list_map
from flywheel_contract.judging import StyleParams
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_spec import MAX_DAYS, DateRange
from flywheel_contract.stages import Origin
from flywheel_contract.uris import ArtifactUri
from flywheel_operator.model.rules import cel, validations
from flywheel_operator.model.runtime import Runtime

SourceName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
"""Short enough to be the name of a stage's input with its role before it."""


SafeUri = Annotated[
    ArtifactUri,
    Field(
        json_schema_extra=validations(
            cel(
                "!self.matches('(^|/)[.]{1,2}(/|$)|[^:/]//')",
                "the URI leaves its root or has an empty part: write a plain path without '..', '.' and '//'",
            )
        )
    ),
]
"""What `parse_uri` takes, refused at admission otherwise."""


class ArtifactsSpec(Record):
    """Where outputs go."""

    uri: SafeUri = Field(description="Root of all outputs, e.g. pvc://artifacts/runs or s3://bucket/prefix.")


class DataSource(Record):
    """A file, or a folder of files, in JSON Lines or Parquet."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.dates) || (self.dates.first <= self.dates.last && "
                f"self.dates.last - self.dates.first < duration('{24 * MAX_DAYS}h'))",
                f"dates.last must not be before dates.first, nor {MAX_DAYS} days or more after it",
                ".dates.last",
            ),
            cel(
                "!self.feedback || (has(self.dates) && self.uri.endsWith('/turns'))",
                "feedback is read from a lineage's own log: name its folder <artifacts>/<lineage>/traffic/turns, and "
                "dates",
                ".feedback",
            ),
        )
    )

    name: SourceName = Field(description="Name of the source in status and reports.")
    origin: Origin = Field(description="Internal (employees, annotators) or User (production).")
    uri: SafeUri = Field(description="Where the rows lie.")
    dates: DateRange | None = Field(
        None,
        description="Only these days of a folder with date=YYYY-MM-DD folders, such as a lineage's log "
        "(<artifacts>/<lineage>/traffic/turns). Today's files still change, so a log needs it.",
    )
    feedback: bool = Field(
        False,
        description="Of a lineage's own log: also reads the events of these days, and makes what a user sent about a "
        "reply a signal of its row (thumbsUp, thumbsDown, regenerate, continue, share, report).",
    )


class ModelUri(Record):
    """A model by URI."""

    uri: SafeUri = Field(description="Folder with config.json, tokenizer and safetensors weights.")


class RetryPolicy(Record):
    """What happens when a stage breaks through no fault of its inputs."""

    max_retries: int = Field(3, ge=0, le=100, description="New attempts per stage. Interruptions do not count.")
    backoff_seconds: int = Field(
        10, ge=0, le=86400, description="Wait before the first new attempt; doubled each time."
    )


SHARED_ARTIFACTS: Final = cel(
    "self.artifacts.uri.startsWith('pvc://') || (self.runtime.nodes == 1 && "
    "!self.runtime.stages.exists(s, has(s.nodes) && s.nodes > 1))",
    "stages on several nodes need artifacts that all of them can write: name a pvc:// claim with ReadWriteMany",
    ".artifacts.uri",
)
"""Checkpoints of several nodes are written by all of them, and to a bucket they would be copied piece by piece."""


class GateRule(Record):
    """A bound on a metric. What was not measured, or on too few samples, does not pass."""

    name: Name = Field(description="Name of the gate; a rule named like a default one replaces it.")
    metric: Metric = Field(description="The metric that a stage reports.")
    min: float | None = Field(None, description="The metric must be at least this.")
    max: float | None = Field(None, description="The metric must be at most this.")
    compare: Literal["Bound", "Estimate"] = Field(
        "Bound",
        description="Bound: the cautious end of the interval must keep the limit (low for min, high for max). "
        "Estimate: the value itself.",
    )
    min_samples: int = Field(50, ge=0, le=1_000_000_000, description="Fewer units than this count as not measured.")


GATE_RULES: dict[str, Any] = validations(
    cel("has(self.min) || has(self.max)", "a gate needs min or max, or both"),
    cel("!has(self.min) || !has(self.max) || self.min <= self.max", "min must not be greater than max"),
)
GateRule.model_config["json_schema_extra"] = GATE_RULES


class GatesSpec(Record):
    """The gates."""

    defaults: Literal["Enabled", "Disabled"] = Field(
        "Enabled", description="Disabled drops the default gates, the overfitting guard among them; status says so."
    )
    rules: list[GateRule] = Field(
        default_factory=list,
        max_length=32,
        description="Your own gates, added to the defaults or replacing those of the same name.",
        json_schema_extra=list_map("name"),
    )


class RunSpec(Record):
    """What every kind with stages has: where outputs go, how its pods run, when it stops."""

    model_config = ConfigDict(json_schema_extra=validations(SHARED_ARTIFACTS))
    artifacts: ArtifactsSpec = Field(description="Where outputs go.")
    runtime: Runtime = Field(default_factory=Runtime, description="How the pods run.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of all draws.")
    style: StyleParams = Field(
        default_factory=StyleParams, description="Style artefacts that the reports look for in replies."
    )
    suspend: bool = Field(False, description="Stop the running Job (a checkpoint is saved) and start no other.")
    retry_policy: RetryPolicy = Field(default_factory=RetryPolicy, description="Retries of broken stages.")
    active_deadline_seconds: int | None = Field(
        None, ge=1, le=31_536_000, description="It fails when it is not done after this time; suspended time is free."
    )
    ttl_seconds_after_finished: int | None = Field(
        None, ge=0, le=315_360_000, description="Jobs and stage ConfigMaps are removed this long after its end."
    )
