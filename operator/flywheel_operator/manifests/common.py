"""What all our objects and pods have in common."""

from collections.abc import Mapping
from typing import Any, Final

from flywheel_contract.paths import CLAIMS_ROOT
from flywheel_operator.model.names import (
    API_VERSION,
    LABEL_COMPONENT,
    LABEL_LINEAGE,
    LABEL_MANAGED_BY,
    LABEL_OWNER,
    LABEL_OWNER_KIND,
    MANAGED_BY,
)
from flywheel_operator.model.objects import Metadata
from flywheel_operator.model.runtime import PodRuntime, Resources

Manifest = dict[str, Any]

USER_ID: Final = 65532
"""The user and group of our images; claims are made writable to it by fsGroup."""

SECURITY_CONTEXT: Final[Manifest] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""With POD_SECURITY_CONTEXT it passes Pod Security `restricted`."""

POD_SECURITY_CONTEXT: Final[Manifest] = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}


def labels(kind: str, owner: str, component: str, lineage: str | None = None) -> dict[str, str]:
    """The labels of a child; nothing of the user's own labels is handed on."""
    out = {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_COMPONENT: component,
        LABEL_OWNER_KIND: kind,
        LABEL_OWNER: owner,
    }
    return out | ({LABEL_LINEAGE: lineage} if lineage else {})


def owner_reference(kind: str, metadata: Metadata) -> Manifest:
    """The controller reference to one of our objects."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": metadata.name,
        "uid": metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def volumes(claims: Mapping[str, bool]) -> tuple[list[Manifest], list[Manifest]]:
    """Volumes and mounts of `claims` (name -> whether it is written) and of /tmp; nothing else is writable."""
    vols: list[Manifest] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}]
    for index, (claim, written) in enumerate(sorted(claims.items())):
        name = f"claim-{index}"
        vols.append({"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": not written}})
        mounts.append({"name": name, "mountPath": f"{CLAIMS_ROOT}/{claim}", "readOnly": not written})
    return vols, mounts


def mounts_of(mounts: list[Manifest], claims: Mapping[str, bool]) -> list[Manifest]:
    """Of a pod's `mounts`, those of a container that uses just `claims` (name -> whether it writes)."""
    paths = {f"{CLAIMS_ROOT}/{claim}": {"readOnly": not written} for claim, written in claims.items()}
    return [m | paths.get(m["mountPath"], {}) for m in mounts if m["name"] == "tmp" or m["mountPath"] in paths]


def resources(spec: Resources, gpus: int) -> Manifest:
    """A container's resources; GPUs go into the limits, as extended resources must."""
    limits = dict(spec.limits or {})
    if gpus:
        limits["nvidia.com/gpu"] = gpus
    out: Manifest = {}
    if spec.requests:
        out["requests"] = dict(spec.requests)
    if limits:
        out["limits"] = limits
    return out


def pod_spec(
    runtime: PodRuntime,
    container: Manifest,
    vols: list[Manifest],
    pull_secrets: tuple[str, ...],
    beside: tuple[Manifest, ...] = (),
) -> Manifest:
    """A pod that runs `container`, and those `beside` it, under Pod Security `restricted`."""
    environment = {"HOME": "/tmp", "HF_HOME": "/tmp/huggingface"} | {e.name: e.value for e in runtime.env}
    common = {
        "imagePullPolicy": runtime.image_pull_policy,
        "securityContext": SECURITY_CONTEXT,
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "envFrom": [{"secretRef": {"name": name}} for name in runtime.secret_env],
    }
    secrets = list(dict.fromkeys([*runtime.image_pull_secrets, *pull_secrets]))
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY_CONTEXT,
        "terminationGracePeriodSeconds": runtime.termination_grace_period_seconds,
        "containers": [c | common for c in (container, *beside)],
        "volumes": vols,
    }
    optional: Manifest = {
        "serviceAccountName": runtime.service_account_name,
        "priorityClassName": runtime.priority_class_name,
        "nodeSelector": runtime.node_selector,
        "tolerations": [t.to_json() for t in runtime.tolerations],
        "imagePullSecrets": [{"name": name} for name in secrets],
    }
    return spec | {key: value for key, value in optional.items() if value}
