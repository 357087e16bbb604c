"""The kinds that we read and write, as a fixed table: no discovery requests, no cache file, no surprises."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flywheel_operator.model.names import API_VERSION

Raw = dict[str, Any]
"""An object as the API server speaks of it in JSON."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind with its place in the API."""

    api_version: str
    kind: str
    plural: str

    @property
    def group(self) -> str:
        """The API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """The version within the group."""
        return self.api_version.rpartition("/")[2]


GENERATION: Final = Kind(API_VERSION, "Generation", "generations")
REWARD_MODEL: Final = Kind(API_VERSION, "RewardModel", "rewardmodels")
ABTEST: Final = Kind(API_VERSION, "ABTest", "abtests")
JOB: Final = Kind("batch/v1", "Job", "jobs")
POD: Final = Kind("v1", "Pod", "pods")
CONFIG_MAP: Final = Kind("v1", "ConfigMap", "configmaps")
DEPLOYMENT: Final = Kind("apps/v1", "Deployment", "deployments")
SERVICE: Final = Kind("v1", "Service", "services")
EVENT: Final = Kind("events.k8s.io/v1", "Event", "events")
PDB: Final = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
SECRET: Final = Kind("v1", "Secret", "secrets")
"""Created where absent; never read, listed or watched: the operator is not allowed to."""
NAMESPACE: Final = Kind("v1", "Namespace", "namespaces")
LEASE: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")
RAY_CLUSTER: Final = Kind("ray.io/v1", "RayCluster", "rayclusters")
WORKLOAD: Final = Kind("kueue.x-k8s.io/v1beta1", "Workload", "workloads")

OWN: Final = {kind.kind: kind for kind in (GENERATION, REWARD_MODEL, ABTEST)}
"""Our own kinds by name."""
CHILDREN: Final = (JOB, POD, DEPLOYMENT, SERVICE, CONFIG_MAP)
"""The kinds of what we create, watched by label."""

_BY_TYPE: Final = {
    (kind.api_version, kind.kind): kind
    for kind in (*OWN.values(), *CHILDREN, RAY_CLUSTER, PDB, SECRET, EVENT, NAMESPACE, LEASE)
}


def kind_of(api_version: str, kind: str) -> Kind:
    """The entry of the table.

    Raises:
        LookupError: it has none; a planner asks for something that this operator is not made (nor allowed) to handle.
    """
    try:
        return _BY_TYPE[api_version, kind]
    except KeyError:
        raise LookupError(f"{api_version} {kind} is not among the kinds that the operator handles") from None


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """One of our objects: what the queue holds and what a pass is about."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


def selector(labels: Mapping[str, str]) -> str:
    """A label selector that wants all of `labels`."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
