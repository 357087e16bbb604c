"""A stage's ConfigMap and Job."""

import json
from dataclasses import dataclass
from typing import Final

from flywheel_contract.exit_codes import USER_MISTAKES
from flywheel_contract.paths import REPORT_TO, STAGE_SPEC, STATUS_PORT
from flywheel_contract.stage_spec import StageSpec, inputs_digest
from flywheel_contract.stages import Stage
from flywheel_contract.uris import claim_of
from flywheel_operator.manifests.common import Manifest, labels, owner_reference, pod_spec, resources, volumes
from flywheel_operator.model.common import EnvVar, Runtime
from flywheel_operator.model.names import LABEL_QUEUE, LABEL_STAGE, bounded_name
from flywheel_operator.model.objects import Metadata

CONTAINER: Final = "stage"
FINISHED_JOB_TTL_SECONDS: Final = 86400
"""Finished Jobs stay a day for their logs; their outcome has long been in status."""


@dataclass(frozen=True, slots=True)
class StageOwner:
    """Whose stage it is and how its pods run."""

    kind: str
    metadata: Metadata
    lineage: str | None
    runtime: Runtime
    image: str
    pull_secrets: tuple[str, ...] = ()


def config_map_name(owner: Metadata, stage: Stage, digest: str) -> str:
    """The ConfigMap that holds the StageSpec with this inputs digest."""
    return bounded_name(owner.name, stage.value, unique=f"{owner.uid}/{stage.value}/{digest}")


def job_name(owner: Metadata, stage: Stage, attempt: int, digest: str) -> str:
    """The Job of an attempt."""
    return bounded_name(owner.name, stage.value, str(attempt), unique=f"{owner.uid}/{stage.value}/{attempt}/{digest}")


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
    """The Job of attempt number `attempt`. It runs one pod once: retries are ours, so that status can count them."""
    digest = inputs_digest(spec)
    marks = _labels(owner, spec.stage)
    queue = {LABEL_QUEUE: owner.runtime.queue_name} if owner.runtime.queue_name else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(owner.metadata, spec.stage, attempt, digest),
            "namespace": owner.metadata.namespace,
            "labels": {**marks, **queue},
            "ownerReferences": [owner_reference(owner.kind, owner.metadata)],
        },
        "spec": {
            # With a queue, Kueue admits the Job by unsuspending it; the field is its own from then on.
            "suspend": bool(queue),
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": FINISHED_JOB_TTL_SECONDS,
            "podFailurePolicy": {
                "rules": [
                    # Preemption and drains are no failures: the Job controller starts another pod by itself.
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": list(USER_MISTAKES)},
                    },
                ]
            },
            "template": {
                "metadata": {"labels": marks},
                "spec": {
                    "restartPolicy": "Never",
                    **_pod(owner, spec, config_map_name(owner.metadata, spec.stage, digest)),
                },
            },
        },
    }


def _labels(owner: StageOwner, stage: Stage) -> dict[str, str]:
    return labels(owner.kind, owner.metadata.name, "stage", owner.lineage) | {LABEL_STAGE: stage.value}


def _pod(owner: StageOwner, spec: StageSpec, config: str) -> Manifest:
    runtime = owner.runtime
    special = next((s for s in runtime.stages if s.stage == spec.stage), None)
    gpus = runtime.gpus if special is None or special.gpus is None else special.gpus
    wanted = runtime.resources if special is None or special.resources is None else special.resources
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
        "resources": resources(wanted, gpus),
        "volumeMounts": mounts,
    }
    if gpus > 1:
        # The trainer starts a process for each accelerator. NCCL and the data loaders talk through shared memory,
        # of which a container has 64 MiB by default.
        vols.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if runtime.report_to:
        trackers = EnvVar(name=REPORT_TO, value=",".join(runtime.report_to))
        runtime = runtime.model_copy(update={"env": [*runtime.env, trackers]})
    return pod_spec(runtime, container, vols, owner.pull_secrets)


def _claims(spec: StageSpec) -> dict[str, bool]:
    claims = {claim: False for i in spec.inputs if (claim := claim_of(i.uri))}
    target = claim_of(spec.artifacts)
    return claims | ({target: True} if target else {})
