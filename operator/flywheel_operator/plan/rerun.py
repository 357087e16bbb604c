"""The annotation `rerun-from`: a stage and all behind it run anew, from the same snapshot; all before it is reused."""

from flywheel_contract.stages import Stage
from flywheel_operator.decide.production import last_time, serving_digest
from flywheel_operator.manifests.stage import config_map_name
from flywheel_operator.model.names import COMMAND_RERUN
from flywheel_operator.model.observed import ObservedGeneration
from flywheel_operator.model.phases import Phase, StageState, Verdict
from flywheel_operator.model.status import GenerationStatus, StageStatus
from flywheel_operator.plan import reasons
from flywheel_operator.plan.actions import Ref
from flywheel_operator.plan.draft import Draft
from flywheel_operator.plan.servers import delete_server
from flywheel_operator.plan.testing import under_test


def rerun_from(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> bool:
    """Acts on the annotation, if it asks for something new, and says whether the Generation goes on by it.

    Its value is a stage; `<stage>/<anything>` asks once more for the same one.
    """
    value = draft.asked(COMMAND_RERUN)
    if value is None:
        return False
    wanted = value.partition("/")[0]
    refused = _refusal(draft, observed, wanted)
    if refused is not None:
        draft.command(COMMAND_RERUN, f"refused: {refused}")
        draft.event("Warning", reasons.RERUN_REFUSED, f"nothing is run anew: {refused}")
        return False
    stages = draft.status.stages
    start = next(index for index, stage in enumerate(stages) if stage.name == wanted)
    for stage in stages[start:]:
        if stage.inputs_digest is not None:
            # Its Job is a stray one now, or has ended and goes by its own TTL.
            old = config_map_name(draft.metadata, stage.name, stage.inputs_digest)
            draft.delete.append(Ref("v1", "ConfigMap", old))
    if observed.generation.metadata.name in observed.servers:
        delete_server(draft, observed)
    draft.set(stages=[*stages[:start], *(_anew(stage) for stage in stages[start:])])
    _forget_what_came_out(draft)
    reused = ", ".join(stage.name.value for stage in stages[:start])
    draft.command(COMMAND_RERUN, f"runs anew from {wanted}")
    draft.event("Normal", reasons.RERUN, f"runs anew from {wanted}; reused: {reused}")
    return True


def _anew(stage: StageStatus) -> StageStatus:
    """The stage before its first attempt, but for what tells its new attempts from the old ones."""
    return StageStatus(name=stage.name, attempts=stage.attempts, rerun=stage.rerun + 1)


def _forget_what_came_out(draft: Draft[GenerationStatus]) -> None:
    status = draft.status
    spent = max(0, int((draft.now - (status.start_time or draft.now)).total_seconds()))
    draft.set(
        phase=Phase.SUSPENDED if status.suspend_time is not None else Phase.RUNNING,
        # The deadline counts anew from here: what was left of it says nothing about stages that run once more.
        suspended_seconds=spent,
        suspend_time=None if status.suspend_time is None else draft.now,
        completion_time=None,
        verdict=None,
        gates=[],
        win_rate=None,
        candidate=None,
        promotion_hash=None,
        server_start_time=None,
    )
    for condition in (reasons.COMPLETE, reasons.GATES_PASSED, reasons.SERVING):
        draft.drop_condition(condition)


def _refusal(draft: Draft[GenerationStatus], observed: ObservedGeneration, wanted: str) -> str | None:
    """Why it cannot be, in words that name the way out."""
    status = draft.status
    record = observed.production.record if observed.production else None
    promoted = status.verdict is not None and status.verdict.result is Verdict.PROMOTED
    if promoted or last_time(record, draft.metadata.name) is not None:
        return "it serves, or has served: users met this model; train another one in a new Generation"
    if status.snapshot is None or observed.snapshot is None:
        return "it has no snapshot to run from: wait until its stages run, or create a new Generation"
    order = [stage.name.value for stage in status.stages]
    possible = [name for name in order if name != Stage.RESOLVE]
    if wanted not in possible:
        return f"{wanted[:64]!r} is none of the stages that can run anew: {', '.join(possible)}"
    unfinished = [s for s in status.stages[: order.index(wanted)] if s.state is not StageState.SUCCEEDED]
    if unfinished:
        return f"stage {unfinished[0].name.value}, which comes before it, has not succeeded: name that one"
    test = under_test(observed)
    if status.ab_test is not None or test is not None:
        name = status.ab_test or (test.metadata.name if test else "")
        return f"the ABTest {name} has shown what it made to users; train another one in a new Generation"
    if serving_digest(record) != observed.snapshot.production_digest:
        return "production has moved since its snapshot, so its verdict would be StaleBaseline: create a new Generation"
    return None
