"""A RayCluster for a stage: KubeRay makes the pods, the Job owns the object, its driver is the stage's own pod."""

from typing import Final

from flywheel_contract.paths import RAY_ADDRESS, RAY_WORKERS
from flywheel_contract.stage_spec import StageSpec
from flywheel_contract.uris import claim_of
from flywheel_operator.manifests.common import Manifest, labels, pod_spec, resources, volumes
from flywheel_operator.manifests.stage_owner import StageOwner
from flywheel_operator.model.names import LABEL_STAGE, bounded_name
from flywheel_operator.model.objects import Metadata
from flywheel_operator.model.runtime import EnvVar, RaySpec, Resources

API_VERSION: Final = "ray.io/v1"
KIND: Final = "RayCluster"
RAY_VERSION: Final = "2.60.0"
"""The trainer image's: head, workers and driver must be of one."""
CLIENT_PORT: Final = 10001
NAME_LIMIT: Final = 41
"""KubeRay takes 53 characters, and cuts the names of pods of clusters that have more than these."""
_PROBE: Final[Manifest] = {
    # KubeRay's own probes ask the dashboard, which the image does not have.
    "exec": {"command": ["bash", "-c", 'ray health-check --address "${FQ_RAY_IP:-127.0.0.1}:6379"']},
    "initialDelaySeconds": 10,
    "periodSeconds": 30,
    "timeoutSeconds": 20,
    "failureThreshold": 10,
}
HEAD: Final = Resources(requests={"cpu": "500m", "memory": "2Gi"}, limits={"memory": "2Gi"})


def ray_cluster_name(owner: Metadata, job: str) -> str:
    """The RayCluster of a Job; it begins with a letter, as KubeRay asks."""
    return bounded_name("ray", owner.name, unique=f"{owner.uid}/{job}", limit=NAME_LIMIT)


def ray_environment(owner: Metadata, job: str, ray: RaySpec) -> list[EnvVar]:
    """What the stage's pod is told of its cluster."""
    head = f"{ray_cluster_name(owner, job)}-head-svc.{owner.namespace}.svc"
    address = f"ray://{head}:{CLIENT_PORT}"
    return [EnvVar(name=RAY_ADDRESS, value=address), EnvVar(name=RAY_WORKERS, value=str(ray.workers))]


def ray_cluster(owner: StageOwner, ray: RaySpec, spec: StageSpec, job: str, uid: str) -> Manifest:
    """The RayCluster of the Job `job`, which it goes with."""
    runtime = owner.runtime.of(spec.stage)

    def group(named: str, size: Resources) -> Manifest:
        vols, mounts = volumes({claim: False for i in spec.inputs if (claim := claim_of(i.uri))})
        container: Manifest = {
            "name": named,
            "image": owner.image,
            "resources": resources(size, 0),
            "volumeMounts": mounts,
            "readinessProbe": _PROBE,
            "livenessProbe": _PROBE,
        }
        pod = pod_spec(runtime, container, vols, owner.pull_secrets)
        # None of the labels by which a Job's own pods are found.
        return {"template": {"metadata": {"labels": {LABEL_STAGE: spec.stage.value}}, "spec": pod}}

    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": ray_cluster_name(owner.metadata, job),
            "namespace": owner.metadata.namespace,
            "labels": labels(owner.kind, owner.metadata.name, "ray", owner.lineage),
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}],
        },
        "spec": {
            "rayVersion": RAY_VERSION,
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0", "include-dashboard": "false"},
                **group("ray-head", HEAD),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": ray.workers,
                    "minReplicas": ray.workers,
                    "maxReplicas": ray.workers,
                    "rayStartParams": {},
                    **group("ray-worker", ray.resources),
                }
            ],
        },
    }
