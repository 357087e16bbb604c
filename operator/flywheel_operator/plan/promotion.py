"""From the last stage to the verdict: gates, the word of a person, the model server, the switch."""

from typing import Final

from flywheel_contract.base import digest_of
from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stages import EVALUATION_PAGE, Stage
from flywheel_contract.uris import join_uri
from flywheel_operator.decide.gates import describe_failures, evaluate_gates, generation_gates, passed, rules_in_force
from flywheel_operator.decide.production import last_time, promote, serving_digest
from flywheel_operator.manifests.server import public_service
from flywheel_operator.model.names import COMMAND_PROMOTE, FINALIZER_SERVING
from flywheel_operator.model.observed import ObservedGeneration
from flywheel_operator.model.phases import Phase, StageState, Verdict
from flywheel_operator.model.production import ProductionRecord
from flywheel_operator.model.snapshot import Snapshot
from flywheel_operator.model.status import GenerationStatus, ModelRef, VerdictStatus
from flywheel_operator.plan import reasons, testing
from flywheel_operator.plan.actions import SwitchProduction
from flywheel_operator.plan.draft import Draft
from flywheel_operator.plan.prerequisites import (
    WAIT_SECONDS,
    Missing,
    serves_without_service,
    service_gone,
    service_taken,
)
from flywheel_operator.plan.servers import apply_server

SERVER_POLL_SECONDS: Final = 10.0
HASH_LENGTH: Final = 12


def end(draft: Draft[GenerationStatus], phase: Phase, reason: str, message: str) -> None:
    """Ends a Generation: terminal phase, completion time, conditions and an Event."""
    good = phase is Phase.COMPLETED
    done = sum(s.state is StageState.SUCCEEDED for s in draft.status.stages)
    total = len(draft.status.stages)
    progress = f"{done}/{total}" if total else None
    draft.set(phase=phase, completion_time=draft.now, stage=None, progress=progress)
    draft.condition(reasons.PROGRESSING, "False", reason, message)
    draft.condition(reasons.COMPLETE, "True" if good else "False", reason, message)
    verdict = draft.status.verdict
    bright = good and verdict is not None and verdict.result in (Verdict.PROMOTED, Verdict.DRY_RUN)
    draft.event("Normal" if bright else "Warning", verdict.result.value if good and verdict else phase.value, message)


def conclude_served(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> bool:
    """Promoted is who serves, or has served, with what it made."""
    candidate = draft.status.candidate
    last = last_time(observed.production.record if observed.production else None, draft.metadata.name)
    if candidate is None or last is None or last.digest != candidate.digest:
        return False
    _conclude(draft, Verdict.PROMOTED, reasons.ALL_GATES_PASSED, _why(draft))
    return True


def plan_promotion(draft: Draft[GenerationStatus], observed: ObservedGeneration, snapshot: Snapshot) -> None:
    """All stages are done: judge, then promote what may be promoted."""
    candidate = draft.status.candidate or _judge(draft, observed, snapshot)
    if candidate is None:
        return
    if draft.status.ab_test is None:
        draft.set(phase=Phase.AWAITING_PROMOTION)
    blocked = _service_blocked(observed)
    if blocked is not None:
        draft.set(stage="promotion")
        draft.condition(reasons.PROGRESSING, "False", blocked.reason, blocked.message)
        draft.look_again(WAIT_SECONDS)
        return
    if serving_digest(observed.production.record if observed.production else None) != snapshot.production_digest:
        _conclude(draft, Verdict.STALE_BASELINE, reasons.PRODUCTION_MOVED, _stale(observed, snapshot))
        return
    if not _tested(draft, observed, candidate):
        return
    draft.set(phase=Phase.AWAITING_PROMOTION)
    if observed.generation.spec.rollout.promotion == "Manual" and not _approved(draft):
        return
    draft.set(stage="promotion")
    if server_ready(draft, observed, candidate):
        _switch(draft, observed, candidate)


def _service_blocked(observed: ObservedGeneration) -> Missing | None:
    """Why the Service cannot say what is in production, or cannot be ours."""
    lineage = observed.generation.spec.lineage
    if observed.service_taken:
        return Missing(reasons.SERVICE_NAME_TAKEN, service_taken(lineage))
    mate = serves_without_service(observed)
    return None if mate is None else Missing(reasons.SERVICE_GONE, service_gone(lineage, mate))


def _judge(draft: Draft[GenerationStatus], observed: ObservedGeneration, snapshot: Snapshot) -> ModelRef | None:
    """The candidate, if its gates passed; otherwise it is over."""
    stages = {s.name: s for s in draft.status.stages}
    evaluation = {m.name: m for m in stages[Stage.EVALUATE].metrics}
    metrics: dict[str, Measurement] = {}
    for stage in draft.status.stages:
        # Training stages share some names (losses, times): a gate sees the last stage that reported one.
        metrics |= {m.name: m for m in stage.metrics}
    spec = observed.generation.spec
    gates = evaluate_gates(rules_in_force(spec.gates, generation_gates(spec.evaluation)), metrics)
    rate = evaluation.get(Metric.WIN_RATE.value)
    trained = next(s for s in (Stage.RL, Stage.DPO, Stage.SFT) if s in stages)
    output = next(o for o in stages[trained].outputs if o.name == "model")
    name = observed.generation.metadata.name
    candidate = ModelRef(generation=name, uri=output.uri, digest=output.digest)
    page = next(o for o in stages[Stage.EVALUATE].outputs if o.name == "report")
    judged = {"generation": name, "candidate": candidate.digest, "production": snapshot.production_digest}
    if stages[Stage.EVALUATE].rerun:
        # What was approved on other numbers is not approved on these.
        judged["rerun"] = str(stages[Stage.EVALUATE].rerun)
    draft.set(
        gates=gates,
        win_rate=None if rate is None else _rate(rate),
        report=join_uri(page.uri, EVALUATION_PAGE),
        candidate=candidate,
        promotion_hash=digest_of(judged).removeprefix("sha256:")[:HASH_LENGTH],
    )
    if passed(gates):
        said = f"{len(gates)} gates passed" if gates else "no gate was set"
        draft.condition(reasons.GATES_PASSED, "True", reasons.ALL_GATES_PASSED, said)
        return candidate
    said = describe_failures(gates)
    draft.condition(reasons.GATES_PASSED, "False", reasons.GATES_FAILED, said)
    draft.set(promotion_hash=None)
    _conclude(draft, Verdict.GATED, reasons.GATES_FAILED, said)
    return None


def _rate(rate: Measurement) -> str:
    interval = f" [{rate.low:.3f}, {rate.high:.3f}]" if rate.low is not None and rate.high is not None else ""
    return f"{rate.value:.3f}{interval}"


def _why(draft: Draft[GenerationStatus]) -> str:
    return "; ".join(f"{g.name}: {g.message}" for g in draft.status.gates) or "no gate was set"


def _stale(observed: ObservedGeneration, snapshot: Snapshot) -> str:
    serves = observed.production.record.serving if observed.production else None
    now = f"{serves.generation} ({serves.digest[:19]}) serves" if serves else "nothing serves"
    then = snapshot.baseline.generation if snapshot.production_digest else "nothing"
    return (
        f"it was judged while {then} served, now {now}: a verdict against another model says nothing about this one. "
        "Deleted and created anew it is judged again, with its training stages taken from the artefact store"
    )


def _conclude(draft: Draft[GenerationStatus], verdict: Verdict, reason: str, message: str) -> None:
    draft.set(verdict=VerdictStatus(result=verdict, reason=reason, message=message))
    end(draft, Phase.COMPLETED, reason, message)


def _approved(draft: Draft[GenerationStatus]) -> bool:
    wanted = draft.status.promotion_hash or ""
    if any(c.name == "promote" and c.value == wanted and c.outcome == "approved" for c in draft.status.commands):
        return True
    asked = draft.asked(COMMAND_PROMOTE)
    if asked == wanted:
        draft.command(COMMAND_PROMOTE, "approved")
        draft.event("Normal", "Approved", f"promotion of {wanted} approved by annotation")
        return True
    command = f"kubectl annotate gen {draft.metadata.name} --overwrite {COMMAND_PROMOTE}={wanted}"
    message = f"the gates passed; to promote it: {command}"
    if asked is not None:
        draft.command(COMMAND_PROMOTE, "refused")
        refused = f"{COMMAND_PROMOTE}={asked} is not what was judged; {command}"
        draft.event("Warning", reasons.PROMOTION_REFUSED, refused)
    refusals = [c for c in draft.status.commands if c.name == "promote" and c.outcome == "refused"]
    if refusals:
        message = f"the annotation promote={refusals[0].value} is not what was judged; to promote it: {command}"
    draft.condition(
        reasons.PROGRESSING, "False", reasons.PROMOTION_REFUSED if refusals else reasons.AWAITING_APPROVAL, message
    )
    draft.set(stage="promotion")
    return False


def _tested(draft: Draft[GenerationStatus], observed: ObservedGeneration, candidate: ModelRef) -> bool:
    """Whether nothing stands between the gates and the promotion: there is no test, or the candidate has won it."""
    serving = observed.production.record.serving if observed.production else None
    template = observed.generation.spec.rollout.ab_test
    # One that was begun is followed to its verdict, whatever was taken out of the spec meanwhile.
    if draft.status.ab_test is None and (template is None or serving is None):
        return True
    if draft.status.ab_test is None and not server_ready(draft, observed, candidate):
        return False
    found = testing.plan_test(draft, observed, template, serving)
    if isinstance(found, testing.Lost):
        _conclude(draft, found.verdict, found.reason, found.message)
        return False
    if found and draft.status.phase is Phase.TESTING:
        # What its server may take to answer is counted from here: it has been up all through the test.
        draft.set(server_start_time=observed.now)
    elif not found and ((view := observed.servers.get(draft.metadata.name)) is None or view.config_lost):
        apply_server(draft, observed, candidate, observed.generation.spec.serving.replicas)
    return found


def server_ready(draft: Draft[GenerationStatus], observed: ObservedGeneration, candidate: ModelRef) -> bool:
    """Asks for the candidate's model server, and says whether all of it has answered a request."""
    generation = observed.generation
    spec = generation.spec.serving
    name = generation.metadata.name
    if FINALIZER_SERVING not in generation.metadata.finalizers:
        draft.add_finalizer = FINALIZER_SERVING
    if draft.status.server_start_time is None:
        draft.set(server_start_time=observed.now)
    view = observed.servers.get(name)
    if view is None or not view.is_as_wanted(candidate.digest, spec.replicas):
        apply_server(draft, observed, candidate, spec.replicas)
        draft.condition(reasons.PROGRESSING, "True", reasons.SERVER_STARTING, "its model server starts")
        draft.look_again(SERVER_POLL_SECONDS)
        return False
    if not view.up_to_date or view.ready_replicas < spec.replicas:
        _await_server(
            draft, spec.startup_timeout_seconds, f"{view.ready_replicas} of {spec.replicas} ready", view.message
        )
        return False
    return True


def _switch(draft: Draft[GenerationStatus], observed: ObservedGeneration, candidate: ModelRef) -> None:
    generation = observed.generation
    name = generation.metadata.name
    record = observed.production.record if observed.production else ProductionRecord()
    after = promote(record, name, candidate.uri, candidate.digest, observed.now)
    draft.switch = SwitchProduction(
        service=public_service(generation.spec.lineage, generation.metadata.namespace, after),
        record=after,
        resource_version=observed.production.resource_version if observed.production else None,
    )
    draft.condition(
        reasons.PROGRESSING, "True", reasons.SWITCHING, "its model server answered; the Service is switched"
    )
    draft.look_again(0.0)


def _await_server(draft: Draft[GenerationStatus], timeout: int, ready: str, why: str) -> None:
    started = draft.status.server_start_time or draft.now
    waited = (draft.now - started).total_seconds()
    message = f"its model server has not answered a request yet: {ready}" + (f"; {why}" if why else "")
    if waited > timeout:
        end(draft, Phase.FAILED, reasons.SERVER_NOT_READY, f"{message}; gave up after {timeout} s")
        return
    draft.condition(reasons.PROGRESSING, "True", reasons.SERVER_STARTING, message)
    draft.look_again(min(SERVER_POLL_SECONDS, timeout - waited + 1))
