"""From a Job and its pods to a JobView. Pure: raw objects in, a view out."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.experiment import AnalysisResult
from flywheel_contract.stage_result import StageResult
from flywheel_operator.kube.resources import Raw
from flywheel_operator.manifests.analysis import ANALYSIS
from flywheel_operator.manifests.stage import CONTAINER
from flywheel_operator.model.names import LABEL_COMPONENT
from flywheel_operator.model.observed import JobState, JobView

POD_LOST: Final = "PodLost"
UNREADABLE_RESULT: Final = "UnreadableResult"
DEADLINE_EXCEEDED: Final = "DeadlineExceeded"
EVICTED: Final = "Evicted"
OUT_OF_MEMORY: Final = "OOMKilled"

_ANNOTATION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
_DISRUPTION: Final = "has condition DisruptionTarget"
"""What the Job controller writes into a Job that it ended by that rule of its podFailurePolicy."""
_ENDED: Final = (JobState.SUCCEEDED, JobState.FAILED)
_OWN_CODES: Final = frozenset(code.value for code in ExitCode)


def telling_pod(job: Raw, pods: Iterable[Raw]) -> Raw | None:
    """The pod of `job` that tells how it is; a pod of an earlier Job of the same name is none of it.

    Of one node: the pod that was created last. Of several: the pod that failed first, since the others fail only for
    want of it; else one that does not run yet, since the others wait for it; else the first, which reports.
    """
    uid = job["metadata"]["uid"]
    own = [
        pod
        for pod in pods
        if any(ref.get("uid") == uid and ref.get("controller") for ref in pod["metadata"].get("ownerReferences", ()))
    ]
    own.sort(key=lambda pod: (_created(pod), pod["metadata"]["name"]))
    wanted = nodes_of(job)
    if wanted == 1:
        return own[-1] if own else None
    latest = {_index(pod): pod for pod in own}
    if _condition(job, "Complete"):
        return latest.get(0)
    failed = [pod for pod in latest.values() if _failed_at(pod) is not None]
    if failed:
        # The container's times have whole seconds: within one, who ended on purpose tells more than who was cut off.
        return min(failed, key=lambda pod: (_failed_at(pod), _terminated(pod).get("exitCode") not in _OWN_CODES))
    if _condition(job, "Failed") or len(latest) < wanted:
        return None
    waiting = [pod for pod in latest.values() if "running" not in _container(pod).get("state", {})]
    return min(waiting or latest.values(), key=_index)


def nodes_of(job: Raw) -> int:
    """How many pods share the Job."""
    return int(job["spec"].get("completions") or 1)


def job_view(job: Raw, pods: Iterable[Raw], workload: Raw | None = None) -> JobView:
    """The view of `job`; `workload` is what Kueue keeps for it, where Kueue holds it back."""
    pod = telling_pod(job, pods)
    state = _state(job, pod)
    ended = _terminated(pod)
    made = AnalysisResult if _component(job) == ANALYSIS else StageResult
    result, readable = _result(ended, made)
    return JobView(
        name=job["metadata"]["name"],
        state=state,
        uid=job["metadata"]["uid"],
        nodes=nodes_of(job),
        result=result if isinstance(result, StageResult) else None,
        analysis=result if isinstance(result, AnalysisResult) else None,
        exit_code=ended.get("exitCode"),
        fault=next(_faults(job, state, pod, readable), ""),
        disrupted=_disrupted(job, state, pod),
        waiting=_waiting(job, state, pod, workload),
    )


def _created(obj: Raw) -> datetime:
    return datetime.fromisoformat(obj["metadata"]["creationTimestamp"])


def _index(pod: Raw) -> int:
    """The number of a pod of an Indexed Job."""
    return int((pod["metadata"].get("annotations") or {}).get(_ANNOTATION_INDEX, 0))


def _failed_at(pod: Raw) -> datetime | None:
    """When the pod failed, or was taken away by somebody other than the Job controller; None: it did not."""
    times = []
    if target := _condition(pod, "DisruptionTarget"):
        times.append(target.get("lastTransitionTime"))
    if _terminated(pod).get("exitCode"):
        times.append(_terminated(pod).get("finishedAt"))
    if times or pod.get("status", {}).get("phase") == "Failed":
        # A pod that its node refused, or that was evicted, may never have had a container.
        return min((datetime.fromisoformat(t) for t in times if t), default=_created(pod))
    return None


def _condition(obj: Raw | None, kind: str, status: str = "True") -> Raw | None:
    conditions = (obj or {}).get("status", {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind and c["status"] == status), None)


def _container(pod: Raw | None) -> Raw:
    statuses = (pod or {}).get("status", {}).get("containerStatuses") or ()
    return next((s for s in statuses if s["name"] == CONTAINER), {})


def _terminated(pod: Raw | None) -> Raw:
    return _container(pod).get("state", {}).get("terminated") or {}


def _state(job: Raw, pod: Raw | None) -> JobState:
    if job["metadata"].get("deletionTimestamp"):
        return JobState.DELETING
    if _condition(job, "Complete"):
        return JobState.SUCCEEDED
    if _condition(job, "Failed"):
        return JobState.FAILED
    if job["spec"].get("suspend"):
        return JobState.SUSPENDED
    # A pod that ended keeps its Job running until the Job controller has taken note of it, unless it was taken away:
    # then another pod is on its way.
    phase = (pod or {}).get("status", {}).get("phase")
    running = "running" in _container(pod).get("state", {}) or phase in ("Succeeded", "Failed")
    return JobState.RUNNING if running and not _taken_away(pod) else JobState.PENDING


def _taken_away(pod: Raw | None) -> bool:
    """Whether the pod ended, or will end, by no fault of its own."""
    return bool(_condition(pod, "DisruptionTarget")) or bool((pod or {}).get("metadata", {}).get("deletionTimestamp"))


def _disrupted(job: Raw, state: JobState, pod: Raw | None) -> bool:
    if nodes_of(job) > 1:
        # What is left of the pods is the Job controller's choice, which also takes those away that had not failed.
        return bool(_condition(pod, "DisruptionTarget")) or _ended_by_disruption(job)
    # A finished pod stays as long as its Job: where it is gone, someone has deleted it.
    return _taken_away(pod) or (state is JobState.FAILED and pod is None)


def _ended_by_disruption(job: Raw) -> bool:
    """Whether a pod of a Job on several nodes was preempted, drained or evicted, and the whole ended for it."""
    failed = _condition(job, "Failed") or _condition(job, "FailureTarget") or {}
    return failed.get("reason") == "PodFailurePolicy" and _DISRUPTION in str(failed.get("message"))


def _component(job: Raw) -> str:
    return str((job["metadata"].get("labels") or {}).get(LABEL_COMPONENT, ""))


def _result(
    ended: Raw, made: type[StageResult] | type[AnalysisResult]
) -> tuple[StageResult | AnalysisResult | None, bool]:
    """The result, and whether there was nothing that could not be read."""
    text = ended.get("message") or ""
    if not text:
        return None, not ended
    try:
        return made.model_validate_json(text), True
    except ValidationError:
        return None, False


def _faults(job: Raw, state: JobState, pod: Raw | None, readable: bool) -> Iterator[str]:
    """Words for what broke, where no exit code of ours and no result says it; the first one counts."""
    over, ended = state in _ENDED, _terminated(pod)
    pod_reason = str((pod or {}).get("status", {}).get("reason") or "")
    job_reason = str((_condition(job, "Failed") or {}).get("reason") or "")
    if over and job_reason == DEADLINE_EXCEEDED:
        yield DEADLINE_EXCEEDED
    if pod_reason == EVICTED:
        yield EVICTED
    if target := _condition(pod, "DisruptionTarget"):
        yield str(target.get("reason") or "DisruptionTarget")
    if over and _ended_by_disruption(job):
        yield "DisruptionTarget"
    if over and pod is None:
        yield POD_LOST
    if ended and (ended.get("exitCode") not in _OWN_CODES or ended.get("reason") == OUT_OF_MEMORY):
        yield str(ended.get("reason") or "Error")
    if ended and not readable:
        yield UNREADABLE_RESULT
    if state is JobState.FAILED and not ended:
        # The pod failed before its container ended: the node is gone, or refused the pod.
        yield pod_reason or job_reason or POD_LOST


def _waiting(job: Raw, state: JobState, pod: Raw | None, workload: Raw | None) -> str:
    """Why no pod runs, in the words of whoever holds it back."""
    if state is JobState.SUSPENDED:
        quota = _condition(workload, "QuotaReserved", "False") or _condition(workload, "Admitted", "False")
        return str((quota or _condition(job, "Suspended") or {}).get("message") or "")
    if state is not JobState.PENDING or pod is None or _taken_away(pod):
        return ""
    if unscheduled := _condition(pod, "PodScheduled", "False"):
        return str(unscheduled.get("message") or unscheduled.get("reason") or "")
    return container_waiting(_container(pod))


def container_waiting(status: Raw) -> str:
    """`Reason: message` of a container that does not run; empty where it runs or nothing is said."""
    waiting = status.get("state", {}).get("waiting") or {}
    return ": ".join(str(waiting[key]) for key in ("reason", "message") if waiting.get(key))
