"""Raw objects for the tests of the rooms that talk to the cluster."""

from typing import Any

from flywheel_contract.stage_result import Reason, StageResult
from flywheel_contract.stages import Stage
from flywheel_operator.model.names import API_VERSION

Raw = dict[str, Any]

MARKS = {
    "app.kubernetes.io/managed-by": "flywheel-operator",
    "characterflywheel.dev/owner-kind": "Generation",
    "characterflywheel.dev/owner": "g1",
}


def result_text(**fields: Any) -> str:  # noqa: ANN401 -- fields of a StageResult
    return StageResult(**{"stage": Stage.SFT, "reason": Reason.SUCCEEDED, **fields}).to_termination_message()


def generation_raw(name: str = "g1", *, lineage: str = "luna", parent: Raw | None = None, **spec: Any) -> Raw:  # noqa: ANN401
    return {
        "apiVersion": API_VERSION,
        "kind": "Generation",
        "metadata": {"name": name},
        "spec": {
            "lineage": lineage,
            "parent": parent or {"model": "pvc://models/base"},
            "artifacts": {"uri": "pvc://artifacts/runs"},
            "data": {"traffic": [{"name": "chat", "origin": "User", "uri": "pvc://data/chat.jsonl"}]},
            "recipe": {"sft": {}},
            **spec,
        },
    }


def reward_model_raw(name: str = "rm1", **spec: Any) -> Raw:  # noqa: ANN401
    return {
        "apiVersion": API_VERSION,
        "kind": "RewardModel",
        "metadata": {"name": name},
        "spec": {
            "baseModel": "pvc://models/base",
            "artifacts": {"uri": "pvc://artifacts/runs"},
            "preferences": [{"name": "pairs", "origin": "User", "uri": "pvc://data/pairs.jsonl"}],
            **spec,
        },
    }


def owner_of(raw: Raw) -> Raw:
    metadata = raw["metadata"]
    return {
        "apiVersion": raw["apiVersion"],
        "kind": raw["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def job_manifest(owner: Raw, name: str, *, suspend: bool = False, labels: Raw | None = None) -> Raw:
    marks = {**MARKS, "characterflywheel.dev/owner": owner["metadata"]["name"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": owner["metadata"]["namespace"],
            "labels": {**marks, **(labels or {})},
            "ownerReferences": [owner_of(owner)],
        },
        "spec": {
            "suspend": suspend,
            "backoffLimit": 0,
            "template": {
                "metadata": {"labels": marks},
                "spec": {
                    "restartPolicy": "Never",
                    # No node has this label: the pods stay pending, and the tests write their statuses.
                    "nodeSelector": {"flywheel-test": "none"},
                    "containers": [{"name": "stage", "image": "none.invalid/stage"}],
                },
            },
        },
    }


def job_raw(*conditions: Raw, suspend: bool = False, nodes: int = 1, **metadata: Any) -> Raw:  # noqa: ANN401
    return {
        "metadata": {"name": "g1-sft-1", "uid": "job", "namespace": "ns", **metadata},
        "spec": {"suspend": suspend, **({"completions": nodes} if nodes > 1 else {})},
        "status": {"conditions": list(conditions)} if conditions else {},
    }


def pod_raw(
    phase: str = "Pending",
    state: Raw | None = None,
    *,
    conditions: tuple[Raw, ...] = (),
    created: str = "2026-01-01T00:00:00Z",
    reason: str | None = None,
    owner: str = "job",
    name: str = "pod-a",
    **metadata: Any,  # noqa: ANN401
) -> Raw:
    status: Raw = {"phase": phase, "conditions": list(conditions)}
    if state is not None:
        status["containerStatuses"] = [{"name": "stage", "state": state}]
    if reason:
        status["reason"] = reason
    references = [{"uid": owner, "controller": True}]
    return {
        "metadata": {"name": name, "creationTimestamp": created, "ownerReferences": references, **metadata},
        "status": status,
    }


def condition(kind: str, status: str = "True", reason: str = "", message: str = "") -> Raw:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def ended(code: int, message: str = "", reason: str = "Error", at: str | None = None) -> Raw:
    times = {} if at is None else {"finishedAt": at}
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, **times}}
