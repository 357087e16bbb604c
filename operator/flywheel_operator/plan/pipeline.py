"""One stage's life: which attempt runs, what its end means, when the next one is due."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from flywheel_contract.exit_codes import USER_MISTAKES, ExitCode
from flywheel_contract.manifest import MANIFEST_NAME
from flywheel_contract.stage_result import USER_MISTAKES as MISTAKES
from flywheel_contract.stage_result import Reason, Size, StageResult
from flywheel_contract.stage_spec import Input, StageSpec, inputs_digest, stage_uri
from flywheel_contract.stages import OUTPUTS, Stage
from flywheel_contract.uris import join_uri
from flywheel_operator.manifests.stage import config_map, job, job_name, peers
from flywheel_operator.manifests.stage_owner import StageOwner
from flywheel_operator.model.common import RetryPolicy
from flywheel_operator.model.observed import JobState, JobView
from flywheel_operator.model.phases import StageState
from flywheel_operator.model.status import MetricStatus, Output, StageProgress, StageStatus
from flywheel_operator.plan.actions import Manifest

POLL_SECONDS: Final = 5.0
"""How often a running stage's progress is asked for; everything else is watched."""
BACKOFF_LIMIT_SECONDS: Final = 3600
LOST_RESULT_SECONDS: Final = 5
"""Wait before a stage whose result or pod was lost is started again; its work lies in the artefact store."""


@dataclass(frozen=True, slots=True)
class Step:
    """The stage's next status and what has to be created for it."""

    status: StageStatus
    create: tuple[Manifest, ...] = ()
    requeue_after: float = 0.0


def advance(
    status: StageStatus,
    spec: StageSpec,
    view: JobView | None,
    owner: StageOwner,
    retry: RetryPolicy,
    now: datetime,
    unfinished: Collection[str] = (),
) -> Step:
    """One look at one stage that has not ended.

    `unfinished` are the owner's Jobs that have not ended, or are being deleted: two attempts never run at once.

    A Job that is missing never means "not started": its attempt stands in status, and the Job of that name is created
    again, which finds its manifest or its checkpoint.
    """
    if status.job is None:
        if status.retry_time is not None and now < status.retry_time:
            return Step(status, requeue_after=(status.retry_time - now).total_seconds())
        return _start(status, spec, owner, now, unfinished)
    if view is None:
        return _vanished(status, spec, owner, now, unfinished)
    if view.state is JobState.DELETING:
        return Step(status, requeue_after=1.0)
    if view.state is JobState.SUCCEEDED:
        return _succeeded(status, spec, view, retry, now)
    if view.state is JobState.FAILED:
        return _failed(status, view, retry, now)
    # Only now is there a Job that can own the Service, and be followed by it into the grave.
    create = () if view.peers else (peers(owner, spec, view.name, view.uid),)
    return Step(_running(status, view), create, requeue_after=POLL_SECONDS)


def _start(status: StageStatus, spec: StageSpec, owner: StageOwner, now: datetime, unfinished: Collection[str]) -> Step:
    attempt = status.attempts + 1
    digest = inputs_digest(spec)
    name = job_name(owner.metadata, spec.stage, attempt, digest)
    if any(other != name for other in unfinished):
        # Left by a suspension or a lost status write; the pass deletes it.
        said = "waits for the end of an earlier Job"
        return Step(status.model_copy(update={"message": said}), requeue_after=1.0)
    started = status.model_copy(
        update={
            "state": StageState.RUNNING,
            "attempts": attempt,
            "job": name,
            "inputs_digest": digest,
            "start_time": status.start_time or now,
            "retry_time": None,
            "progress": None,
            "reason": "",
            "message": f"attempt {attempt} starts",
        }
    )
    return Step(started, (config_map(owner, spec), job(owner, spec, attempt)), POLL_SECONDS)


def _vanished(
    status: StageStatus, spec: StageSpec, owner: StageOwner, now: datetime, unfinished: Collection[str]
) -> Step:
    if inputs_digest(spec) != status.inputs_digest:
        return _again(status, now, 0, "InputsChanged", "its Job is gone and its inputs have changed since")
    if any(name != status.job for name in unfinished):
        return Step(status, requeue_after=1.0)
    return Step(status, (config_map(owner, spec), job(owner, spec, status.attempts)), POLL_SECONDS)


def _running(status: StageStatus, view: JobView) -> StageStatus:
    queued = view.state is JobState.SUSPENDED or (view.state is JobState.PENDING and bool(view.waiting))
    progress = StageProgress(**view.progress.model_dump()) if view.progress else status.progress
    if queued:
        return status.model_copy(update={"state": StageState.QUEUED, "message": view.waiting or "held by its queue"})
    message = "running" if view.state is JobState.RUNNING else "its pod starts"
    return status.model_copy(
        update={
            "state": StageState.RUNNING,
            "progress": progress,
            "message": (progress.message if progress and progress.message else message),
        }
    )


def _succeeded(status: StageStatus, spec: StageSpec, view: JobView, retry: RetryPolicy, now: datetime) -> Step:
    result = view.result
    if result is None and view.exit_code is None:
        return _again(status, now, LOST_RESULT_SECONDS, "ResultLost", "the pod was gone before its result was read")
    if result is None:
        return _retry(status, retry, now, view.fault or "BadResult", "exit 0 without a result that can be read")
    if result.reason is not Reason.SUCCEEDED or result.stage is not spec.stage:
        return _retry(status, retry, now, "BadResult", f"exit 0 with the result {result.reason} of {result.stage}")
    expected = [i.name for i in spec.inputs] if spec.stage is Stage.RESOLVE else OUTPUTS[spec.stage]
    missing = [name for name in expected if name not in result.outputs]
    if missing:
        return _retry(status, retry, now, "BadResult", f"its result lacks the digest of {', '.join(missing)}")
    if spec.stage is Stage.RESOLVE and spec.params.count and len(result.sizes) != len(spec.inputs):
        return _retry(status, retry, now, "BadResult", "its result lacks the sizes that a dry run asks for")
    if result.manifest_uri not in (None, manifest_uri(spec)):
        said = f"it left its manifest at {result.manifest_uri}, not at {manifest_uri(spec)}"
        return _retry(status, retry, now, "BadResult", said)
    return Step(_taken(status, spec, result, now), requeue_after=0.0)


def _taken(status: StageStatus, spec: StageSpec, result: StageResult, now: datetime) -> StageStatus:
    if spec.stage is Stage.RESOLVE:
        places = {i.name: i.uri for i in spec.inputs}
    else:
        places = {name: join_uri(stage_uri(spec), name) for name in OUTPUTS[spec.stage]}
    outputs = [Output(name=name, uri=uri, digest=result.outputs[name]) for name, uri in places.items()]
    if result.sizes:
        outputs = [_sized(o, i, s) for o, i, s in zip(outputs, spec.inputs, result.sizes, strict=True)]
    metrics = [MetricStatus(name=name.value, **m.model_dump()) for name, m in result.metrics.items()]
    return status.model_copy(
        update={
            "state": StageState.SUCCEEDED,
            "completion_time": now,
            "progress": StageProgress(percent=100),
            "reason": Reason.SUCCEEDED.value,
            "message": result.message,
            "reused": result.reused,
            "manifest_uri": result.manifest_uri,
            "outputs": outputs,
            "metrics": metrics,
        }
    )


def _sized(output: Output, given: Input, size: Size) -> Output:
    model = given.kind == "Model"
    return output.model_copy(
        update={"parameters": size.amount} if model else {"rows": size.rows, "tokens": size.amount}
    )


def manifest_uri(spec: StageSpec) -> str:
    """Where the stage leaves its manifest."""
    return join_uri(stage_uri(spec), MANIFEST_NAME)


def _failed(status: StageStatus, view: JobView, retry: RetryPolicy, now: datetime) -> Step:
    result, code = view.result, view.exit_code
    sentence = result.message if result is not None and result.message else ""
    told = result.reason if result is not None else None
    if code in USER_MISTAKES or told in MISTAKES:
        reason = told.value if told is not None else _name(code)
        message = sentence or f"exit code {code}, without a word from the stage"
        return Step(_ended(status, reason, message, now), requeue_after=0.0)
    if view.disrupted or code == ExitCode.INTERRUPTED or told is Reason.INTERRUPTED:
        return _again(
            status,
            now,
            LOST_RESULT_SECONDS,
            "Interrupted",
            sentence or (f"{view.fault}: its pod was taken away" if view.fault else "its pod was taken away"),
        )
    reason = view.fault or (told.value if told is not None else "Fault")
    said = sentence or (f"exit code {code}" if code is not None else "its pod is gone")
    return _retry(status, retry, now, reason, said)


def _name(code: int | None) -> str:
    """The name of one of our exit codes, as a reason."""
    return next((c.name.title() for c in ExitCode if c == code), "Fault")


def _ended(status: StageStatus, reason: str, message: str, now: datetime) -> StageStatus:
    return status.model_copy(
        update={"state": StageState.FAILED, "completion_time": now, "reason": reason, "message": message}
    )


def _retry(status: StageStatus, retry: RetryPolicy, now: datetime, reason: str, message: str) -> Step:
    failures = status.failures + 1
    if failures > retry.max_retries:
        said = f"{reason}: {message}; that was attempt {status.attempts}, retryPolicy.maxRetries is {retry.max_retries}"
        return Step(_ended(status.model_copy(update={"failures": failures}), reason, said, now), requeue_after=0.0)
    wait = min(retry.backoff_seconds * 2 ** (failures - 1), BACKOFF_LIMIT_SECONDS)
    said = f"{reason}: {message}; retry {failures} of {retry.max_retries}"
    return _again(status.model_copy(update={"failures": failures}), now, wait, reason, said)


def _again(status: StageStatus, now: datetime, seconds: float, reason: str, message: str) -> Step:
    waiting = status.model_copy(
        update={
            "state": StageState.RETRYING,
            "job": None,
            "retry_time": now + timedelta(seconds=seconds),
            "reason": reason,
            "message": message,
        }
    )
    return Step(waiting, requeue_after=float(seconds))
