"""From a Deployment (and its pods) to a ServerView. Pure."""

from collections.abc import Iterable

from flywheel_operator.kube.resources import Raw
from flywheel_operator.model.names import ANNOTATION_CONFIG, ANNOTATION_MODEL_DIGEST, LABEL_COMPONENT, LABEL_OWNER
from flywheel_operator.model.observed import DeploymentView, ServerView


def server_view(deployment: Raw, pods: Iterable[Raw] = ()) -> ServerView:
    """The view of the Deployment of a model server; `pods` may hold others' pods too."""
    metadata = deployment["metadata"]
    replicas, ready, up_to_date = _counts(deployment)
    return ServerView(
        generation=metadata["labels"][LABEL_OWNER],
        model_digest=(metadata.get("annotations") or {}).get(ANNOTATION_MODEL_DIGEST, ""),
        replicas=replicas,
        ready_replicas=ready,
        up_to_date=up_to_date,
        message="" if ready >= replicas else _message(deployment, pods),
    )


def deployment_view(deployment: Raw, pods: Iterable[Raw] = ()) -> DeploymentView:
    """The view of a Deployment of an ABTest; `pods` may hold others' pods too."""
    metadata = deployment["metadata"]
    replicas, ready, up_to_date = _counts(deployment)
    return DeploymentView(
        name=metadata["name"],
        config=(metadata.get("annotations") or {}).get(ANNOTATION_CONFIG, ""),
        replicas=replicas,
        ready_replicas=ready,
        up_to_date=up_to_date,
        message="" if ready >= replicas else _message(deployment, pods),
    )


def _counts(deployment: Raw) -> tuple[int, int, bool]:
    """Replicas asked for, those ready, and whether the ready ones are of the newest template."""
    metadata, status = deployment["metadata"], deployment.get("status") or {}
    replicas = deployment["spec"].get("replicas", 1)
    seen = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
    # Pods of the former template count as ready, but they do not serve what was asked for.
    updated = replicas == 0 or status.get("updatedReplicas", 0) >= replicas
    return replicas, status.get("readyReplicas", 0), seen and updated


def _message(deployment: Raw, pods: Iterable[Raw]) -> str:
    own = deployment["metadata"].get("labels") or {}
    for pod in sorted(pods, key=lambda p: str(p["metadata"]["creationTimestamp"]), reverse=True):
        labels = pod["metadata"].get("labels") or {}
        if all(labels.get(name) == own.get(name) for name in (LABEL_OWNER, LABEL_COMPONENT)):
            said = _pod_message(pod.get("status") or {})
            if said:
                return said
    bad = {"ReplicaFailure": "True", "Progressing": "False"}
    for condition in (deployment.get("status") or {}).get("conditions") or ():
        if bad.get(condition["type"]) == condition["status"]:
            return str(condition.get("message") or condition.get("reason") or "")
    return ""


def _pod_message(status: Raw) -> str:
    """Why the pod is not ready: the scheduler's words, the kubelet's, or how its container ended last."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "")
    for container in status.get("containerStatuses") or ():
        ended = (container.get("lastState") or {}).get("terminated") or {}
        waiting = (container.get("state") or {}).get("waiting") or {}
        parts = [str(waiting[key]) for key in ("reason", "message") if waiting.get(key)]
        if ended:
            parts.append(f"it ended with {ended.get('reason') or 'Error'} (exit code {ended.get('exitCode')})")
        if parts:
            return ": ".join(parts)
    return ""
