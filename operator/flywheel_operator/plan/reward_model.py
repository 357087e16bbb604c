"""The planner of RewardModels."""

from flywheel_contract.characters import Character
from flywheel_contract.metric_names import Metric
from flywheel_contract.stages import Stage
from flywheel_operator.decide.gates import REWARD_MODEL_GATES, describe_failures, evaluate_gates, passed, rules_in_force
from flywheel_operator.manifests.stage_owner import StageOwner
from flywheel_operator.model.names import COMMAND_ABORT
from flywheel_operator.model.observed import ObservedRewardModel
from flywheel_operator.model.phases import REWARD_MODEL_TERMINAL, RewardModelPhase, StageState
from flywheel_operator.model.serving import CharacterSpec
from flywheel_operator.model.status import ModelRef, ResolvedInput, RewardModelStatus, StageStatus
from flywheel_operator.plan import reasons
from flywheel_operator.plan.actions import Plan
from flywheel_operator.plan.draft import Draft
from flywheel_operator.plan.pipeline import advance
from flywheel_operator.plan.prerequisites import WAIT_SECONDS, Missing, resolve_characters
from flywheel_operator.plan.running import (
    clean_up_after_ttl,
    current_stage,
    deadline_passed,
    delete_stray_jobs,
    interrupt_stages,
    resume,
    show_progress,
    suspend,
    take_step,
    unfinished_jobs,
)
from flywheel_operator.plan.stage_specs import REWARD_MODEL_STAGES, resolve_reward_model, reward_model_spec

PHASE_OF_STATE = {StageState.QUEUED: RewardModelPhase.QUEUED}


def plan(observed: ObservedRewardModel) -> Plan[RewardModelStatus]:
    """What to do about one RewardModel now."""
    model = observed.reward_model
    draft = Draft(model.metadata, observed.now, model.status)
    if model.metadata.deletion_timestamp is not None:
        return draft.plan()
    if model.status.phase in REWARD_MODEL_TERMINAL:
        clean_up_after_ttl(draft, model.spec.ttl_seconds_after_finished)
    elif draft.asked(COMMAND_ABORT) is not None:
        interrupt_stages(draft)
        draft.command(COMMAND_ABORT, "aborted")
        _end(draft, RewardModelPhase.ABORTED, reasons.ABORTED, "ended by the abort annotation")
    elif model.spec.suspend:
        suspend(draft)
        draft.set(phase=RewardModelPhase.SUSPENDED)
    else:
        resume(draft)
        _run(draft, observed)
    delete_stray_jobs(draft, observed)
    return draft.plan()


def _run(draft: Draft[RewardModelStatus], observed: ObservedRewardModel) -> None:
    spec = observed.reward_model.spec
    too_late = deadline_passed(draft, spec.active_deadline_seconds)
    if too_late is not None:
        _end(draft, RewardModelPhase.FAILED, reasons.DEADLINE_EXCEEDED, too_late)
        return
    # Once it has started, it runs with what it started with: the resolved spec holds the prompts themselves.
    resolved = draft.status.resolved
    characters = resolve_characters((resolved or spec).characters, observed)
    if isinstance(characters, Missing):
        draft.set(phase=RewardModelPhase.PENDING)
        draft.condition(reasons.PROGRESSING, "False", characters.reason, characters.message)
        draft.condition(reasons.READY, "False", characters.reason, characters.message)
        draft.look_again(WAIT_SECONDS)
        return
    if draft.status.start_time is None:
        image = spec.runtime.image or observed.settings.trainer_image
        stages = [StageStatus(name=s) for s in REWARD_MODEL_STAGES]
        inline = [CharacterSpec.inlined(character) for character in characters]
        resolved = spec.model_copy(update={"characters": inline})
        draft.set(start_time=observed.now, resolved=resolved, trainer_image=image, stages=stages)
    # The last stage's success and the verdict are written at once: there is always one that has not succeeded.
    stage = next(s for s in draft.status.stages if s.state is not StageState.SUCCEEDED)
    _advance(draft, observed, stage, characters)
    if current_stage(draft.status) is None:
        _judge(draft, observed)


def _advance(
    draft: Draft[RewardModelStatus],
    observed: ObservedRewardModel,
    stage: StageStatus,
    characters: list[Character],
) -> None:
    model = observed.reward_model
    resolve = resolve_reward_model(model.metadata.name, model)
    done = {s.name: s for s in draft.status.stages}
    spec = (
        resolve
        if stage.name is Stage.RESOLVE
        else reward_model_spec(model, resolve, done[Stage.RESOLVE].outputs, characters)
    )
    owner = StageOwner(
        kind="RewardModel",
        metadata=model.metadata,
        lineage=None,
        runtime=model.spec.runtime,
        image=draft.status.trainer_image or observed.settings.trainer_image,
        pull_secrets=observed.settings.image_pull_secrets,
    )
    view = observed.jobs.get(stage.job) if stage.job else None
    step = advance(stage, spec, view, owner, model.spec.retry_policy, observed.now, unfinished_jobs(observed))
    take_step(draft, stage, step)
    after = step.status
    if after.state is StageState.FAILED:
        _end(draft, RewardModelPhase.FAILED, after.reason, f"stage {after.name.value}: {after.message}")
        return
    if after.state is StageState.SUCCEEDED and after.name is Stage.RESOLVE:
        draft.set(inputs=[ResolvedInput(name=o.name, uri=o.uri, digest=o.digest) for o in after.outputs])
    draft.set(phase=PHASE_OF_STATE.get(after.state, RewardModelPhase.RUNNING))
    show_progress(draft, after)
    draft.condition(reasons.READY, "False", reasons.STAGE_RUNNING, f"stage {after.name.value} has to run first")


def _judge(draft: Draft[RewardModelStatus], observed: ObservedRewardModel) -> None:
    trained = next(s for s in draft.status.stages if s.name is Stage.REWARD_MODEL)
    metrics = {m.name: m for m in trained.metrics}
    rules = rules_in_force(observed.reward_model.spec.gates, REWARD_MODEL_GATES[observed.reward_model.spec.type])
    gates = evaluate_gates(rules, metrics)
    accuracy = metrics.get(Metric.REWARD_ACCURACY.value)
    auc = metrics.get(Metric.SIGNAL_AUC.value)
    draft.set(
        gates=gates,
        accuracy=None if accuracy is None else f"{accuracy.value:.3f}",
        auc=None if auc is None else f"{auc.value:.3f}",
    )
    if not passed(gates):
        _end(draft, RewardModelPhase.GATED, reasons.GATES_FAILED, describe_failures(gates))
        return
    output = next(o for o in trained.outputs if o.name == "model")
    draft.set(model=ModelRef(uri=output.uri, digest=output.digest))
    said = "; ".join(g.message for g in gates) or "no gate was set"
    _end(draft, RewardModelPhase.READY, reasons.ALL_GATES_PASSED, said)


def _end(draft: Draft[RewardModelStatus], phase: RewardModelPhase, reason: str, message: str) -> None:
    good = phase is RewardModelPhase.READY
    done = sum(s.state is StageState.SUCCEEDED for s in draft.status.stages)
    draft.set(phase=phase, completion_time=draft.now, stage=None, progress=f"{done}/{len(draft.status.stages)}")
    draft.condition(reasons.PROGRESSING, "False", reason, message)
    draft.condition(reasons.READY, "True" if good else "False", reason, message)
    draft.event("Normal" if good else "Warning", phase.value, message)
