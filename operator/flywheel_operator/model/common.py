"""Spec pieces that Generation and RewardModel share."""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from flywheel_contract.base import Name, Record, list_map
from flywheel_contract.judging import StyleParams
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_spec import MAX_DAYS, DateRange
from flywheel_contract.stages import DISTRIBUTED, Origin, Stage
from flywheel_contract.uris import ArtifactUri

Quantity = Annotated[
    int | str,
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            # Kubernetes' own pattern of a resource.Quantity.
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
            r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
        }
    ),
]
ShortText = Annotated[str, Field(max_length=253)]
LabelText = Annotated[str, Field(max_length=63)]
AnnotationText = Annotated[str, Field(max_length=4096)]
MAX_NODES: Final = 64
"""So many that the name of the last pod, a Job's with its number, is a DNS label."""
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
"""Short enough to be the name of a stage's input with its role before it."""


def cel(rule: str, message: str, field_path: str | None = None) -> dict[str, str]:
    """One entry of `x-kubernetes-validations`."""
    return {"rule": rule, "message": message} | ({"fieldPath": field_path} if field_path else {})


def validations(*rules: dict[str, str]) -> dict[str, Any]:
    """The schema extension that carries CEL rules."""
    return {"x-kubernetes-validations": list(rules)}


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


def unique_list(key: str) -> dict[str, Any]:
    """The schema extension of a list, told apart by `key`, below an object that may be left empty (`abTest: {}`).

    Server-side apply takes an object away that is applied empty a second time, where defaults have put a list of type
    `map` into it. An atomic list does not have that.
    """
    rule = cel(f"self.all(a, self.exists_one(b, b.{key} == a.{key}))", f"two entries have the same {key}")
    return {"x-kubernetes-list-type": "atomic", **validations(rule)}


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


class Toleration(Record):
    """A pod toleration."""

    key: ShortText | None = Field(None, description="Taint key; left out with operator Exists it matches all.")
    operator: Literal["Exists", "Equal"] = Field("Equal", description="How value is compared.")
    value: ShortText | None = Field(None, description="Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="Taint effect.")


class EnvVar(Record):
    """A plain environment variable; secrets go into secretEnv."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128, description="Name of the variable.")
    value: str = Field("", max_length=4096, description="Its value.")


class EmptyDir(Record):
    """An emptyDir volume."""

    medium: Literal["", "Memory"] = Field("", description="Memory: in main memory, which counts against the limit.")
    size_limit: Quantity | None = Field(None, description="How large it may grow.")


class Resources(Record):
    """Compute resources of a container."""

    requests: dict[str, Quantity] | None = Field(None, description="What the scheduler sets aside.")
    limits: dict[str, Quantity] | None = Field(None, description="What the container may use at most.")


class PodVolume(Record):
    """A volume of the user's own, of the kinds that Pod Security `restricted` allows."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "[has(self.claim), has(self.configMap), has(self.secret), has(self.emptyDir)].filter(x, x).size() == 1",
                "set exactly one of claim, configMap, secret and emptyDir",
            ),
            cel(
                "!['/mnt/claims/', '/etc/flywheel/'].exists(p, (self.mountPath + '/').startsWith(p))",
                "/mnt/claims and /etc/flywheel are the operator's: mount it somewhere else",
                ".mountPath",
            ),
        )
    )
    name: Name = Field(description="Name of the volume; the pod's own are named user-<name>.", max_length=50)
    mount_path: str = Field(
        pattern=r"^(/[A-Za-z0-9_.-]*[A-Za-z0-9_-])+$", max_length=253, description="Where it is mounted, read only."
    )
    claim: Name | None = Field(None, description="A PersistentVolumeClaim.")
    config_map: Name | None = Field(None, description="A ConfigMap.")
    secret: Name | None = Field(None, description="A Secret; the operator never reads it.")
    empty_dir: EmptyDir | None = Field(None, description="Room for the pod's life; the only kind that is writable.")


class PodTemplate(Record):
    """What is added to the pods of stages. What the operator sets itself stays as it is."""

    labels: dict[str, LabelText] = Field(
        default_factory=dict, max_length=32, description="Labels, for cost reports and policies."
    )
    annotations: dict[str, AnnotationText] = Field(
        default_factory=dict, max_length=32, description="Annotations, e.g. of a service mesh or a topology."
    )
    node_selector: dict[str, LabelText] = Field(
        default_factory=dict, max_length=32, description="Labels that a node must have, beside runtime.nodeSelector."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=16, description="Taints that are tolerated, beside runtime.tolerations."
    )
    volumes: list[PodVolume] = Field(
        default_factory=list, max_length=8, description="Volumes.", json_schema_extra=unique_list("name")
    )
    runtime_class_name: Name | None = Field(None, description="RuntimeClass, e.g. of the accelerator's vendor.")
    scheduler_name: Name | None = Field(None, description="Scheduler, e.g. one that places gangs.")

    def and_then(self, other: "PodTemplate") -> "PodTemplate":
        """Both; where they disagree, `other` counts."""
        volumes = {v.name: v for v in (*self.volumes, *other.volumes)}
        return PodTemplate(
            labels=self.labels | other.labels,
            annotations=self.annotations | other.annotations,
            node_selector=self.node_selector | other.node_selector,
            tolerations=[*self.tolerations, *other.tolerations],
            volumes=list(volumes.values()),
            runtime_class_name=other.runtime_class_name or self.runtime_class_name,
            scheduler_name=other.scheduler_name or self.scheduler_name,
        )


class StageRuntime(Record):
    """What one stage needs that the others do not."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                f"!has(self.nodes) || self.nodes == 1 || self.stage in {[s.value for s in DISTRIBUTED]}",
                f"only these stages share their work among nodes: {', '.join(DISTRIBUTED)}",
                ".nodes",
            )
        )
    )
    stage: Stage = Field(description="The stage.")
    nodes: int | None = Field(None, ge=1, le=MAX_NODES, description="Pods that share this stage.")
    gpus: int | None = Field(None, ge=0, le=64, description="GPUs of each of this stage's pods.")
    resources: Resources | None = Field(None, description="Resources of this stage's pods, instead of the common ones.")
    service_account_name: Name | None = Field(None, description="ServiceAccount of this stage's pods.")
    pod_template: PodTemplate | None = Field(None, description="Added to this stage's pods, beside the common one.")


class Runtime(Record):
    """How the pods of the stages run."""

    image: ShortText | None = Field(None, description="Trainer image; left out, the operator's default.")
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = Field("IfNotPresent", description="As in a Pod.")
    image_pull_secrets: list[Name] = Field(
        default_factory=list, max_length=8, description="Names of Secrets for private registries."
    )
    service_account_name: Name | None = Field(None, description="ServiceAccount of the pods (cloud identities).")
    secret_env: list[Name] = Field(
        default_factory=list,
        max_length=8,
        description="Secrets whose keys become environment variables (S3 keys, HF_TOKEN); never read by the operator.",
    )
    env: list[EnvVar] = Field(
        default_factory=list,
        max_length=64,
        description="Plain environment variables.",
        json_schema_extra=list_map("name"),
    )
    report_to: list[Literal["WandB", "MLflow", "TensorBoard"]] = Field(
        default_factory=list,
        max_length=3,
        description="Experiment trackers of the training stages. Credentials come by secretEnv (WANDB_API_KEY, "
        "MLFLOW_TRACKING_TOKEN); a tracker that is away never fails a training, and status says so.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    queue_name: Name | None = Field(None, description="Kueue LocalQueue; Jobs are then created suspended.")
    priority_class_name: Name | None = Field(None, description="PriorityClass of the pods.")
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels that a node must have.")
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32, description="Taints that are tolerated.")
    nodes: int = Field(
        1,
        ge=1,
        le=MAX_NODES,
        description="Pods that share each training stage; they need a claim that all of them can write. Other stages "
        "have one.",
    )
    gpus: int = Field(0, ge=0, le=64, description="GPUs per pod (nvidia.com/gpu); training starts a process for each.")
    resources: Resources = Field(default_factory=Resources, description="Resources of every stage's pod.")
    termination_grace_period_seconds: int = Field(
        120, ge=0, le=86400, description="Seconds between SIGTERM, on which a checkpoint is saved, and the end."
    )
    stages: list[StageRuntime] = Field(
        default_factory=list,
        max_length=8,
        description="Differences of single stages.",
        json_schema_extra=list_map("stage"),
    )
    pod_template: PodTemplate = Field(default_factory=PodTemplate, description="Added to the pods of the stages.")

    def of(self, stage: Stage) -> "Runtime":
        """How the pods of `stage` run: the common runtime with that stage's differences, and without any others."""
        special = next((s for s in self.stages if s.stage == stage), StageRuntime(stage=stage))
        template = self.pod_template.and_then(special.pod_template or PodTemplate())
        own = {
            "nodes": special.nodes,
            "gpus": special.gpus,
            "resources": special.resources,
            "service_account_name": special.service_account_name,
        }
        return self.model_copy(
            update={
                **{name: value for name, value in own.items() if value is not None},
                **({} if stage in DISTRIBUTED else {"nodes": 1}),
                "node_selector": self.node_selector | template.node_selector,
                "tolerations": [*self.tolerations, *template.tolerations],
                "pod_template": template,
                "stages": [],
            }
        )


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


def frozen_rules(frozen: dict[str, bool], kind: str) -> list[dict[str, str]]:
    """CEL rules for the root of the object: the `frozen` spec fields keep their values once status.startTime is set."""
    rules = []
    for name, always in frozen.items():
        key = "".join(w if i == 0 else w.capitalize() for i, w in enumerate(name.split("_")))
        new, old = f"self.spec.{key}", f"oldSelf.spec.{key}"
        same = f"{new} == {old}" if always else f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"
        rules.append(
            cel(
                f"!has(oldSelf.status) || !has(oldSelf.status.startTime) || ({same})",
                f"spec.{key} cannot change once the {kind} has started: create a new {kind} instead",
                f".spec.{key}",
            )
        )
    return rules
