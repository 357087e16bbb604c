"""`Observed`: all that a pass knows of the cluster. Taken once at its start; the planner looks at nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from flywheel_contract.experiment import AnalysisResult
from flywheel_contract.progress import Progress
from flywheel_contract.stage_result import StageResult
from flywheel_operator.model.objects import ABTest, Generation, RewardModel
from flywheel_operator.model.production import Production
from flywheel_operator.model.snapshot import Snapshot


class JobState(StrEnum):
    """What a Job does, in the words that the planner needs."""

    SUSPENDED = "Suspended"
    """spec.suspend is true: a queue holds it."""
    PENDING = "Pending"
    """No pod of it runs yet."""
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    DELETING = "Deleting"
    """It is on its way out; its name is not free yet."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A Job and the pod that tells of it: the latest, or, of several nodes, the one that failed first."""

    name: str
    state: JobState
    uid: str = ""
    nodes: int = 1
    peers: bool = True
    """Its pods can find each other: there is one only, or their headless Service is there."""
    result: StageResult | None = None
    """From the termination message; None where the pod is gone or wrote none that can be read."""
    analysis: AnalysisResult | None = None
    """Likewise, of a Job that runs the analysis of an ABTest."""
    exit_code: int | None = None
    fault: str = ""
    """For failures without an exit code of ours: OOMKilled, Evicted, DisruptionTarget, PodLost, DeadlineExceeded ..."""
    disrupted: bool = False
    """The pod was taken away (preemption, drain, deletion): no fault of the stage."""
    waiting: str = ""
    """Why no pod runs, in the words of the scheduler, the kubelet or the queue."""
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class ServerView:
    """The Deployment of a Generation's model server."""

    generation: str
    model_digest: str
    replicas: int
    ready_replicas: int
    """Pods that are Ready, which they become only after answering a real request."""
    up_to_date: bool = True
    """The controller has seen the newest spec."""
    message: str = ""
    """Why it is not ready, where something says so."""
    config_lost: bool = False
    """The gateway's ConfigMap that its pods mount is gone: those that run go on, and new ones do not start. Looked at
    for the Generation's own server while it is up, not for those of its mates."""

    def is_as_wanted(self, model_digest: str, replicas: int) -> bool:
        """Whether there is nothing to ask for: so many pods of this model, and what they mount."""
        return self.model_digest == model_digest and self.replicas == replicas and not self.config_lost


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """A Deployment of an ABTest: its router, or the server of an arm."""

    name: str
    config: str
    """The ConfigMap that its pods run with."""
    replicas: int
    ready_replicas: int
    up_to_date: bool = True
    """The controller has seen the newest spec, and no pod of a former one is left to wait for."""
    message: str = ""
    """Why it is not ready, where something says so."""

    @property
    def ready(self) -> bool:
        """All pods that were asked for are there."""
        return self.up_to_date and self.ready_replicas >= self.replicas


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator itself is set to."""

    trainer_image: str
    gateway_image: str = ""
    router_image: str = ""
    analysis_image: str = ""
    image_pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ObservedGeneration:
    """Everything around one Generation."""

    generation: Generation
    now: datetime
    settings: Settings
    generations: Mapping[str, Generation] = field(default_factory=dict)
    """All Generations of the namespace by name (ancestors, mates of the lineage)."""
    reward_models: Mapping[str, RewardModel] = field(default_factory=dict)
    """The RewardModels that it names and that exist."""
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Data of the ConfigMaps that its characters name and that exist."""
    snapshot: Snapshot | None = None
    jobs: Mapping[str, JobView] = field(default_factory=dict)
    servers: Mapping[str, ServerView] = field(default_factory=dict)
    """Model servers of the lineage by Generation."""
    production: Production | None = None
    """The lineage's public Service; None where it does not exist."""
    service_taken: bool = False
    """A Service of the lineage's name exists and is not ours."""
    tests: Mapping[str, ABTest] = field(default_factory=dict)
    """The ABTests of the lineage by name."""
    ray_clusters: frozenset[str] | None = frozenset()
    """The RayClusters of its own that stay; None where the cluster does not know the kind."""
    namespace_terminating: bool = False


@dataclass(frozen=True, slots=True)
class ObservedABTest:
    """Everything around one ABTest."""

    test: ABTest
    now: datetime
    settings: Settings
    generations: Mapping[str, Generation] = field(default_factory=dict)
    """The Generations of the namespace by name."""
    tests: Mapping[str, ABTest] = field(default_factory=dict)
    """The ABTests of the lineage by name, this one included."""
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Data of the ConfigMaps that its characters name and that exist."""
    jobs: Mapping[str, JobView] = field(default_factory=dict)
    deployments: Mapping[str, DeploymentView] = field(default_factory=dict)
    """Its own Deployments by name."""
    servers: Mapping[str, ServerView] = field(default_factory=dict)
    """Model servers of the lineage by Generation."""
    production: Production | None = None
    service_taken: bool = False
    namespace_terminating: bool = False


@dataclass(frozen=True, slots=True)
class ObservedRewardModel:
    """Everything around one RewardModel."""

    reward_model: RewardModel
    now: datetime
    settings: Settings
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    jobs: Mapping[str, JobView] = field(default_factory=dict)
