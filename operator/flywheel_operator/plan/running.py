"""What Generation and RewardModel share while their stages run."""

from typing import Any

from flywheel_operator.manifests.stage import config_map_name
from flywheel_operator.model.observed import JobState, ObservedGeneration, ObservedRewardModel
from flywheel_operator.model.phases import StageState
from flywheel_operator.model.status import ObjectStatus, StageStatus
from flywheel_operator.plan import reasons
from flywheel_operator.plan.actions import Ref
from flywheel_operator.plan.draft import Draft
from flywheel_operator.plan.pipeline import Step

_LIVE = frozenset({JobState.SUSPENDED, JobState.PENDING, JobState.RUNNING})


def put_stage(draft: Draft[Any], stage: StageStatus) -> None:
    """Replaces a stage's status in its place."""
    draft.set(stages=[stage if s.name is stage.name else s for s in draft.status.stages])


def take_step(draft: Draft[Any], before: StageStatus, step: Step) -> None:
    """Takes over what a look at a stage brought, and says in an Event what has changed."""
    put_stage(draft, step.status)
    draft.create.extend(step.create)
    draft.look_again(step.requeue_after)
    after = step.status
    if after.state is before.state and after.attempts == before.attempts:
        return
    name = after.name.value
    if after.state is StageState.SUCCEEDED:
        how = "found its result in the artefact store" if after.reused else "done"
        draft.event("Normal", "StageSucceeded", f"stage {name} {how}")
    elif after.state is StageState.FAILED:
        draft.event("Warning", reasons.STAGE_FAILED, f"stage {name}: {after.message}")
    elif after.state is StageState.RETRYING:
        draft.event("Warning", reasons.STAGE_RETRYING, f"stage {name}: {after.message}")
    elif after.attempts > before.attempts:
        draft.event("Normal", "StageStarted", f"stage {name}, attempt {after.attempts}: Job {after.job}")


def show_progress(draft: Draft[Any], stage: StageStatus) -> None:
    """The columns `stage` and `progress`, and the condition Progressing, from the current stage."""
    stages = draft.status.stages
    done = sum(s.state is StageState.SUCCEEDED for s in stages)
    percent = f" {stage.progress.percent}%" if stage.progress and stage.state is StageState.RUNNING else ""
    draft.set(stage=stage.name.value, progress=f"{done}/{len(stages)}{percent}")
    reason = {
        StageState.QUEUED: reasons.STAGE_QUEUED,
        StageState.RETRYING: reasons.STAGE_RETRYING,
    }.get(stage.state, reasons.STAGE_RUNNING)
    draft.condition(reasons.PROGRESSING, "True", reason, f"stage {stage.name.value}: {stage.message}")


def current_stage(status: ObjectStatus) -> StageStatus | None:
    """The first stage that has not succeeded; None: all have."""
    return next((s for s in status.stages if s.state is not StageState.SUCCEEDED), None)


def delete_stray_jobs(draft: Draft[Any], observed: ObservedGeneration | ObservedRewardModel) -> None:
    """Removes Jobs that run but are not the current stage's: left by a suspension, an abort or a lost status write."""
    wanted = {s.job for s in draft.status.stages if s.state in (StageState.RUNNING, StageState.QUEUED)}
    for name, view in observed.jobs.items():
        if view.state in _LIVE and name not in wanted:
            draft.delete.append(Ref("batch/v1", "Job", name))


def unfinished_jobs(observed: ObservedGeneration | ObservedRewardModel) -> list[str]:
    """Jobs that run, may yet run, or are on their way out."""
    return [name for name, v in observed.jobs.items() if v.state in _LIVE or v.state is JobState.DELETING]


def interrupt_stages(draft: Draft[Any]) -> None:
    """Takes the current stage back to waiting; its Job is then a stray one. A later attempt resumes its checkpoint."""
    for stage in draft.status.stages:
        if stage.state in (StageState.RUNNING, StageState.QUEUED, StageState.RETRYING):
            reset = {"state": StageState.PENDING, "job": None, "retry_time": None, "message": "interrupted"}
            put_stage(draft, stage.model_copy(update=reset))


def suspend(draft: Draft[Any]) -> None:
    """Enters, or stays in, suspension."""
    if draft.status.suspend_time is None:
        draft.set(suspend_time=draft.now)
        draft.event("Normal", reasons.SUSPENDED, "suspended; the running Job saves a checkpoint and ends")
    interrupt_stages(draft)
    draft.condition(reasons.PROGRESSING, "False", reasons.SUSPENDED, "spec.suspend is true: nothing runs")


def resume(draft: Draft[Any]) -> None:
    """Leaves suspension, if it was in it; the time spent there does not count. Before the start, none counts anyway."""
    since = draft.status.suspend_time
    if since is not None:
        # Another replica's clock may be behind the one that suspended it.
        spent = max(0, int((draft.now - since).total_seconds()))
        counted = spent if draft.status.start_time is not None else 0
        draft.set(suspend_time=None, suspended_seconds=draft.status.suspended_seconds + counted)
        draft.event("Normal", "Resumed", f"resumed after {spent} s")


def deadline_passed(draft: Draft[Any], deadline: int | None) -> str | None:
    """Where the active deadline has passed: stops the stages and answers the sentence that says so."""
    started = draft.status.start_time
    if deadline is None or started is None:
        return None
    left: float = deadline - ((draft.now - started).total_seconds() - draft.status.suspended_seconds)
    if left > 0:
        draft.look_again(left)
        return None
    interrupt_stages(draft)
    return f"not done within spec.activeDeadlineSeconds ({deadline} s)"


def clean_up_after_ttl(draft: Draft[Any], ttl: int | None) -> None:
    """Once the TTL after the end has passed, removes the stages' Jobs and ConfigMaps; status keeps everything."""
    ended = draft.status.completion_time
    started = [(s, s.job, s.inputs_digest) for s in draft.status.stages if s.job is not None]
    if ttl is None or ended is None or not started:
        return
    left = ttl - (draft.now - ended).total_seconds()
    if left > 0:
        draft.look_again(left)
        return
    for stage, job, digest in started:
        draft.delete.append(Ref("batch/v1", "Job", job))
        draft.delete.append(Ref("v1", "ConfigMap", config_map_name(draft.metadata, stage.name, digest or "")))
        put_stage(draft, stage.model_copy(update={"job": None}))
