"""How pods run: the common runtime, and what single stages have of their own."""

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from flywheel_contract.base import Name, Record, list_map
from flywheel_contract.stages import DISTRIBUTED, Stage
from flywheel_operator.model.rules import cel, unique_list, validations

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


class RaySpec(Record):
    """A Ray cluster that comes and goes with a stage; KubeRay makes it."""

    workers: int = Field(2, ge=1, le=1000, description="Pods that do the work; the head does none.")
    resources: Resources = Field(
        default_factory=lambda: Resources(requests={"cpu": 2, "memory": "4Gi"}, limits={"memory": "4Gi"}),
        description="Resources of each worker; its CPUs are the rows' filters that run at a time.",
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


class PodRuntime(Record):
    """How pods of any kind run."""

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
    queue_name: Name | None = Field(None, description="Kueue LocalQueue; Jobs are then created suspended.")
    priority_class_name: Name | None = Field(None, description="PriorityClass of the pods.")
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels that a node must have.")
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32, description="Taints that are tolerated.")
    termination_grace_period_seconds: int = Field(
        120, ge=0, le=86400, description="Seconds between SIGTERM, on which a checkpoint is saved, and the end."
    )


class Runtime(PodRuntime):
    """How the pods of the stages run."""

    report_to: list[Literal["WandB", "MLflow", "TensorBoard"]] = Field(
        default_factory=list,
        max_length=3,
        description="Experiment trackers of the training stages. Credentials come by secretEnv (WANDB_API_KEY, "
        "MLFLOW_TRACKING_TOKEN); a tracker that is away never fails a training, and status says so.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    nodes: int = Field(
        1,
        ge=1,
        le=MAX_NODES,
        description="Pods that share each training stage; they need a claim that all of them can write. Other stages "
        "have one.",
    )
    gpus: int = Field(0, ge=0, le=64, description="GPUs per pod (nvidia.com/gpu); training starts a process for each.")
    resources: Resources = Field(default_factory=Resources, description="Resources of every stage's pod.")
    stages: list[StageRuntime] = Field(
        default_factory=list,
        max_length=8,
        description="Differences of single stages.",
        json_schema_extra=list_map("stage"),
    )
    pod_template: PodTemplate = Field(default_factory=PodTemplate, description="Added to the pods of the stages.")

    @property
    def of_pods(self) -> PodRuntime:
        """What of it holds for pods that are no stages."""
        return PodRuntime.model_validate(self.model_dump(include=set(PodRuntime.model_fields)))

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
