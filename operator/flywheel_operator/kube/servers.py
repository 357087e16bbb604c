"""From a Deployment (and its pods) to a ServerView. Pure."""

from collections.abc import Iterable

from flywheel_operator.kube.resources import Raw
from flywheel_operator.manifests.server import SERVER
from flywheel_operator.model.names import ANNOTATION_MODEL_DIGEST, LABEL_COMPONENT, LABEL_OWNER
from flywheel_operator.model.observed import ServerView


def server_view(deployment: Raw, pods: Iterable[Raw] = ()) -> ServerView:
    """The view of the Deployment of a model server; `pods` may hold others' pods too."""
    metadata, status = deployment["metadata"], deployment.get("status") or {}
    generation = metadata["labels"][LABEL_OWNER]
    replicas = deployment["spec"].get("replicas", 1)
    ready = status.get("readyReplicas", 0)
    seen = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
    # Pods of the former template count as ready, but they do not serve what was asked for.
    updated = replicas == 0 or status.get("updatedReplicas", 0) >= replicas
    return ServerView(
        generation=generation,
        model_digest=(metadata.get("annotations") or {}).get(ANNOTATION_MODEL_DIGEST, ""),
        replicas=replicas,
        ready_replicas=ready,
        up_to_date=seen and updated,
        message="" if ready >= replicas else _message(status, generation, pods),
    )


def _message(status: Raw, generation: str, pods: Iterable[Raw]) -> str:
    for pod in sorted(pods, key=lambda p: str(p["metadata"]["creationTimestamp"]), reverse=True):
        labels = pod["metadata"].get("labels") or {}
        if labels.get(LABEL_OWNER) == generation and labels.get(LABEL_COMPONENT) == SERVER:
            said = _pod_message(pod.get("status") or {})
            if said:
                return said
    bad = {"ReplicaFailure": "True", "Progressing": "False"}
    for condition in status.get("conditions") or ():
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
