"""A stage's ConfigMap and Job."""

import json
from typing import Final

from flywheel_contract.exit_codes import USER_MISTAKES
from flywheel_contract.paths import (
    MASTER_VARIABLE,
    NODES_VARIABLE,
    RENDEZVOUS_PORT,
    REPORT_TO,
    STAGE_SPEC,
    STATUS_PORT,
)
from flywheel_contract.stage_spec import StageSpec, inputs_digest
from flywheel_contract.stages import Stage
from flywheel_contract.uris import claim_of
from flywheel_operator.manifests.common import Manifest, labels, owner_reference, pod_spec, resources, volumes
from flywheel_operator.manifests.ray import ray_environment
from flywheel_operator.manifests.stage_owner import StageOwner
from flywheel_operator.model.names import LABEL_QUEUE, LABEL_STAGE, NAME_LIMIT, bounded_name
from flywheel_operator.model.objects import Metadata
from flywheel_operator.model.runtime import EmptyDir, EnvVar, PodTemplate, PodVolume, Runtime

CONTAINER: Final = "stage"
PEERS: Final = "nodes"
JOB_NAME_LIMIT: Final = NAME_LIMIT - len(PEERS) - 1
"""So that the name of its headless Service, and of its last pod (`-63`), are DNS labels too."""
FINISHED_JOB_TTL_SECONDS: Final = 86400
"""Finished Jobs stay a day for their logs; their outcome has long been in status."""


def config_map_name(owner: Metadata, stage: Stage, digest: str) -> str:
    """The ConfigMap that holds the StageSpec with this inputs digest."""
    return bounded_name(owner.name, stage.value, unique=f"{owner.uid}/{stage.value}/{digest}")


def job_name(owner: Metadata, stage: Stage, attempt: int, digest: str) -> str:
    """The Job of an attempt."""
    unique = f"{owner.uid}/{stage.value}/{attempt}/{digest}"
    return bounded_name(owner.name, stage.value, str(attempt), unique=unique, limit=JOB_NAME_LIMIT)


def peers_name(job: str) -> str:
    """The headless Service by which the pods of a Job on several nodes find each other."""
    return f"{PEERS}-{job}"


def config_map(owner: StageOwner, spec: StageSpec) -> Manifest:
    """The immutable ConfigMap with the StageSpec."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": config_map_name(owner.metadata, spec.stage, inputs_digest(spec)),
            "namespace": owner.metadata.namespace,
            "labels": _labels(owner, spec.stage),
            "ownerReferences": [owner_reference(owner.kind, owner.metadata)],
        },
        "immutable": True,
        "data": {"stage.json": json.dumps(spec.to_json(), indent=1)},
    }


def job(owner: StageOwner, spec: StageSpec, attempt: int) -> Manifest:
    """The Job of attempt number `attempt`. It runs each pod once: retries are ours, so that status can count them.

    On several nodes it is an Indexed Job, which ends as a whole: one pod that is lost is the end of all.
    """
    digest = inputs_digest(spec)
    name = job_name(owner.metadata, spec.stage, attempt, digest)
    runtime = owner.runtime.of(spec.stage)
    template = runtime.pod_template
    several: Manifest = {}
    subdomain: Manifest = {}
    disruption = "Ignore"
    if runtime.nodes > 1:
        several = {"completionMode": "Indexed", "completions": runtime.nodes, "parallelism": runtime.nodes}
        subdomain = {"subdomain": peers_name(name)}
        # Another pod in its place could not join those that have begun, and they cannot go on without it.
        disruption = "FailJob"
        first = f"{name}-0.{peers_name(name)}.{owner.metadata.namespace}.svc"
        told = {NODES_VARIABLE: str(runtime.nodes), MASTER_VARIABLE: first}
        env = [*runtime.env, *(EnvVar(name=key, value=value) for key, value in told.items())]
        runtime = runtime.model_copy(update={"env": env})
    if owner.ray is not None and spec.stage is Stage.CURATE:
        runtime = runtime.model_copy(update={"env": [*runtime.env, *ray_environment(owner.metadata, name, owner.ray)]})
    marks = _labels(owner, spec.stage)
    queue = {LABEL_QUEUE: owner.runtime.queue_name} if owner.runtime.queue_name else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": owner.metadata.namespace,
            "labels": {**marks, **queue},
            "ownerReferences": [owner_reference(owner.kind, owner.metadata)],
        },
        "spec": {
            # With a queue, Kueue admits the Job by unsuspending it; the field is its own from then on.
            "suspend": bool(queue),
            "backoffLimit": 0,
            **several,
            "ttlSecondsAfterFinished": FINISHED_JOB_TTL_SECONDS,
            "podFailurePolicy": {
                "rules": [
                    # Preemption and drains are no failures: the Job controller starts another pod by itself.
                    {"action": disruption, "onPodConditions": [{"type": "DisruptionTarget"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": list(USER_MISTAKES)},
                    },
                ]
            },
            "template": {
                "metadata": {"labels": template.labels | marks, **_annotations(template)},
                "spec": {
                    "restartPolicy": "Never",
                    **subdomain,
                    **_pod(owner, runtime, spec, config_map_name(owner.metadata, spec.stage, digest)),
                },
            },
        },
    }


def peers(owner: StageOwner, spec: StageSpec, job: str, uid: str) -> Manifest:
    """The headless Service of the Job `job`, which it goes with: a DNS name for each pod, from the start."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": peers_name(job),
            "namespace": owner.metadata.namespace,
            "labels": _labels(owner, spec.stage),
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}],
        },
        "spec": {
            "clusterIP": "None",
            # A pod is Ready only after its image was pulled and its process started; the others look for it before.
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": job},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def _annotations(template: PodTemplate) -> Manifest:
    return {"annotations": template.annotations} if template.annotations else {}


def _labels(owner: StageOwner, stage: Stage) -> dict[str, str]:
    return labels(owner.kind, owner.metadata.name, "stage", owner.lineage) | {LABEL_STAGE: stage.value}


def _pod(owner: StageOwner, runtime: Runtime, spec: StageSpec, config: str) -> Manifest:
    """The pod; `runtime` is that of this very stage."""
    vols, mounts = volumes(_claims(spec))
    vols.append({"name": "spec", "configMap": {"name": config}})
    mounts.append({"name": "spec", "mountPath": STAGE_SPEC.rsplit("/", 1)[0], "readOnly": True})
    arguments = [spec.stage.value, "--spec", STAGE_SPEC]
    container: Manifest = {
        "name": CONTAINER,
        "image": owner.image,
        "args": arguments,
        "ports": [{"name": "progress", "containerPort": STATUS_PORT}],
        "terminationMessagePolicy": "File",
        "resources": resources(runtime.resources, runtime.gpus),
        "volumeMounts": mounts,
    }
    if runtime.nodes > 1:
        container["ports"].append({"name": "rendezvous", "containerPort": RENDEZVOUS_PORT})
    if runtime.gpus > 1:
        # The trainer starts a process for each accelerator. NCCL and the data loaders talk through shared memory,
        # of which a container has 64 MiB by default.
        vols.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    for volume in runtime.pod_template.volumes:
        name = f"user-{volume.name}"
        vols.append({"name": name, **_source(volume)})
        mounts.append({"name": name, "mountPath": volume.mount_path, "readOnly": volume.empty_dir is None})
    own = {
        "runtimeClassName": runtime.pod_template.runtime_class_name,
        "schedulerName": runtime.pod_template.scheduler_name,
    }
    chosen = {key: value for key, value in own.items() if value is not None}
    if runtime.report_to:
        trackers = EnvVar(name=REPORT_TO, value=",".join(runtime.report_to))
        runtime = runtime.model_copy(update={"env": [*runtime.env, trackers]})
    return pod_spec(runtime, container, vols, owner.pull_secrets) | chosen


def _source(volume: PodVolume) -> Manifest:
    if volume.claim is not None:
        return {"persistentVolumeClaim": {"claimName": volume.claim, "readOnly": True}}
    if volume.config_map is not None:
        return {"configMap": {"name": volume.config_map}}
    if volume.secret is not None:
        return {"secret": {"secretName": volume.secret}}
    room = volume.empty_dir or EmptyDir()
    return {"emptyDir": {key: value for key, value in room.to_json().items() if value != ""}}


def _claims(spec: StageSpec) -> dict[str, bool]:
    claims = {claim: False for i in spec.inputs if (claim := claim_of(i.uri))}
    target = claim_of(spec.artifacts)
    return claims | ({target: True} if target else {})
