"""The planner of Generations: from its creation to its verdict. What comes after stands in `serving`."""

from flywheel_contract.base import digest_of
from flywheel_contract.stage_spec import StageSpec
from flywheel_contract.stages import Stage
from flywheel_operator.manifests.snapshot import snapshot_config_map
from flywheel_operator.manifests.stage_owner import StageOwner
from flywheel_operator.model.names import COMMAND_ABORT, FINALIZER_SERVING, snapshot_name
from flywheel_operator.model.observed import ObservedGeneration
from flywheel_operator.model.phases import TERMINAL, Phase, StageState, Verdict
from flywheel_operator.model.snapshot import Snapshot
from flywheel_operator.model.status import (
    GenerationStatus,
    ModelRef,
    ResolvedInput,
    SnapshotRef,
    StageStatus,
    VerdictStatus,
)
from flywheel_operator.plan import dry_run, promotion, reasons, serving
from flywheel_operator.plan.actions import Plan
from flywheel_operator.plan.draft import Draft
from flywheel_operator.plan.pipeline import advance
from flywheel_operator.plan.prerequisites import WAIT_SECONDS, Missing, Prerequisites, check, served_before
from flywheel_operator.plan.ray import missing_ray, start_ray, stop_ray
from flywheel_operator.plan.rerun import rerun_from
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
from flywheel_operator.plan.stage_specs import (
    PARENT_INPUT,
    generation_stages,
    resolve_generation,
    training_stage,
    with_digests,
)


def plan(observed: ObservedGeneration) -> Plan[GenerationStatus]:
    """What to do about one Generation now."""
    generation = observed.generation
    draft = Draft(generation.metadata, observed.now, generation.status)
    # First of all, whatever else is asked: what serves was promoted, also where the pass that switched was cut off.
    ended = generation.status.phase in TERMINAL or promotion.conclude_served(draft, observed)
    if generation.metadata.deletion_timestamp is not None:
        serving.plan_deletion(draft, observed)
        _wake_mates(draft, observed)
        return draft.plan()
    if rerun_from(draft, observed):
        ended = False
    if ended or _adopt_production(draft, observed):
        clean_up_after_ttl(draft, generation.spec.ttl_seconds_after_finished)
    elif draft.asked(COMMAND_ABORT) is not None:
        interrupt_stages(draft)
        draft.command(COMMAND_ABORT, "aborted")
        promotion.end(draft, Phase.ABORTED, reasons.ABORTED, "ended by the abort annotation")
    elif generation.spec.suspend:
        suspend(draft)
        # The time that its model server takes to start is counted anew afterwards.
        draft.set(phase=Phase.SUSPENDED, server_start_time=None)
    else:
        resume(draft)
        _go_on(draft, observed)
    serving.plan_serving(draft, observed)
    delete_stray_jobs(draft, observed)
    stop_ray(draft, observed)
    _wake_mates(draft, observed)
    return draft.plan()


def _go_on(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> None:
    spec = observed.generation.spec
    too_late = deadline_passed(draft, spec.active_deadline_seconds)
    if too_late is not None:
        promotion.end(draft, Phase.FAILED, reasons.DEADLINE_EXCEEDED, too_late)
        return
    if draft.status.snapshot is None:
        _prepare(draft, observed)
    else:
        _run(draft, observed, draft.status.snapshot.name)


def _prepare(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> None:
    """Before the snapshot: waits for what the Generation refers to, then has its URIs looked at."""
    stale = served_before(observed) if draft.status.start_time is None else None
    if stale is not None:
        verdict = VerdictStatus(result=Verdict.STALE_BASELINE, reason=reasons.SERVED_BEFORE, message=stale)
        draft.set(verdict=verdict)
        promotion.end(draft, Phase.COMPLETED, reasons.SERVED_BEFORE, stale)
        return
    found = missing_ray(observed) or check(observed)
    if isinstance(found, Missing):
        _wait(draft, found)
        return
    draft.condition(reasons.PREREQUISITES_MET, "True", "AllFound", "parent, reward models and characters are there")
    draft.drop_condition(reasons.PARENT_CYCLE_CONDITION)
    spec = observed.generation.spec
    if draft.status.start_time is None:
        order = generation_stages(spec.recipe) if spec.dry_run is None else [Stage.RESOLVE]
        stages = [StageStatus(name=s) for s in order]
        image = spec.runtime.image or observed.settings.trainer_image
        draft.set(start_time=observed.now, resolved=spec, trainer_image=image, stages=stages)
    stage = draft.status.stages[0]
    # Its success and the snapshot are written at once, so it has not ended yet.
    resolve = resolve_generation(observed.generation.metadata.name, spec)
    if spec.dry_run is not None:
        resolve = dry_run.counting(resolve, spec, found)
    if _advance(draft, observed, stage, resolve).state is not StageState.SUCCEEDED:
        return
    if spec.dry_run is None:
        _take_snapshot(draft, observed, found)
        return
    estimate = dry_run.conclude(draft, spec, resolve)
    promotion.end(draft, Phase.COMPLETED, reasons.DRY_RUN, dry_run.in_short(estimate.stages))


def _adopt_production(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> bool:
    """An object created anew, of the name of what serves: it takes over what its lineage's Service says of it."""
    serving_now = observed.production.record.serving if observed.production else None
    name = observed.generation.metadata.name
    if draft.status.start_time is not None or serving_now is None or serving_now.generation != name:
        return False
    message = f"{name} was promoted before this object was created; it serves since {serving_now.since:%Y-%m-%dT%H:%MZ}"
    draft.set(
        start_time=observed.now,
        trainer_image=observed.generation.spec.runtime.image or observed.settings.trainer_image,
        candidate=ModelRef(generation=name, uri=serving_now.uri, digest=serving_now.digest),
        verdict=VerdictStatus(result=Verdict.PROMOTED, reason=reasons.ALREADY_SERVING, message=message),
    )
    draft.add_finalizer = FINALIZER_SERVING
    promotion.end(draft, Phase.COMPLETED, reasons.ALREADY_SERVING, message)
    return True


def _wait(draft: Draft[GenerationStatus], missing: Missing) -> None:
    cycle = missing.reason == reasons.PARENT_CYCLE
    if cycle:
        draft.condition(reasons.PARENT_CYCLE_CONDITION, "True", missing.reason, missing.message)
    before = next((c for c in draft.status.conditions if c.type == reasons.PREREQUISITES_MET), None)
    if before is None or before.reason != missing.reason:
        draft.event("Warning" if cycle else "Normal", missing.reason, missing.message)
    draft.condition(reasons.PREREQUISITES_MET, "False", missing.reason, missing.message)
    draft.condition(reasons.PROGRESSING, "False", reasons.WAITING, missing.message)
    if draft.status.start_time is None or draft.status.phase is Phase.SUSPENDED:
        draft.set(phase=Phase.PENDING)
    draft.look_again(WAIT_SECONDS)


def _take_snapshot(draft: Draft[GenerationStatus], observed: ObservedGeneration, found: Prerequisites) -> None:
    generation = observed.generation
    resolved = draft.status.stages[0].outputs
    asked = resolve_generation(generation.metadata.name, generation.spec).inputs
    inputs = with_digests(asked, resolved)
    parent = found.parent or next(ModelRef(uri=i.uri, digest=i.digest or "") for i in inputs if i.name == PARENT_INPUT)
    now_serving = observed.production.record.serving if observed.production else None
    baseline = (
        ModelRef(generation=now_serving.generation, uri=now_serving.uri, digest=now_serving.digest)
        if now_serving
        else parent
    )
    snapshot = Snapshot(
        spec=generation.spec,
        parent=parent,
        baseline=baseline,
        production_digest=now_serving.digest if now_serving else None,
        inputs=[i for i in inputs if i.name != PARENT_INPUT],
        rewards=found.rewards,
        pairwise=found.pairwise,
        characters=found.characters,
        trainer_image=draft.status.trainer_image or observed.settings.trainer_image,
    )
    name = snapshot_name(generation.metadata.name, generation.metadata.uid)
    if observed.snapshot is not None:
        # Created by a pass that could not write its status any more: it was the first, so it counts.
        snapshot = observed.snapshot
    draft.create.append(snapshot_config_map(generation.metadata, generation.spec.lineage, name, snapshot))
    draft.set(
        snapshot=SnapshotRef(name=name, digest=digest_of(snapshot.to_json())),
        inputs=[ResolvedInput(name=o.name, uri=o.uri, digest=o.digest) for o in resolved],
        baseline=snapshot.baseline,
        production_digest=snapshot.production_digest,
    )
    said = f"snapshot {name}: judged against {snapshot.baseline.generation or snapshot.baseline.uri}"
    draft.event("Normal", reasons.SNAPSHOT_TAKEN, said)
    draft.look_again(0.0)


def _run(draft: Draft[GenerationStatus], observed: ObservedGeneration, name: str) -> None:
    snapshot = observed.snapshot
    if snapshot is None:
        interrupt_stages(draft)
        message = f"the ConfigMap {name}, from which the stages run, was deleted: create a new Generation"
        promotion.end(draft, Phase.FAILED, reasons.SNAPSHOT_LOST, message)
        return
    stage = current_stage(draft.status)
    if stage is not None:
        done = {s.name: s for s in draft.status.stages}
        spec = training_stage(stage.name, observed.generation.metadata.name, snapshot, done)
        stage = _advance(draft, observed, stage, spec)
    if stage is None or (stage.state is StageState.SUCCEEDED and stage.name is Stage.EVALUATE):
        promotion.plan_promotion(draft, observed, snapshot)


def _advance(
    draft: Draft[GenerationStatus], observed: ObservedGeneration, stage: StageStatus, spec: StageSpec
) -> StageStatus:
    generation = observed.generation
    owner = StageOwner(
        kind="Generation",
        metadata=generation.metadata,
        lineage=generation.spec.lineage,
        runtime=generation.spec.runtime,
        image=draft.status.trainer_image or observed.settings.trainer_image,
        pull_secrets=observed.settings.image_pull_secrets,
        ray=generation.spec.curation.ray,
    )
    view = observed.jobs.get(stage.job) if stage.job else None
    step = advance(stage, spec, view, owner, generation.spec.retry_policy, observed.now, unfinished_jobs(observed))
    take_step(draft, stage, step)
    start_ray(draft, observed, owner, spec, view)
    after = step.status
    if after.state is StageState.FAILED:
        promotion.end(draft, Phase.FAILED, after.reason, f"stage {after.name.value}: {after.message}")
        return after
    if after.state is StageState.QUEUED:
        draft.set(phase=Phase.QUEUED)
    else:
        draft.set(phase=Phase.EVALUATING if after.name is Stage.EVALUATE else Phase.RUNNING)
    show_progress(draft, after)
    return after


def _wake_mates(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> None:
    """Others of the lineage, and children, look again when this one's outcome or production has changed."""
    before = observed.generation.status
    if draft.switch is None and before.verdict == draft.status.verdict and before.phase == draft.status.phase:
        return
    me = observed.generation
    for name, other in observed.generations.items():
        kin = other.spec.lineage == me.spec.lineage or other.spec.parent.generation == me.metadata.name
        if kin and name != me.metadata.name:
            draft.wake.append(name)
