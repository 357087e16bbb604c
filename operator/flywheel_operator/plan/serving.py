"""Who serves, for how long, and how one gets out: serving, draining, rollback, retirement, deletion."""

from dataclasses import dataclass
from datetime import datetime

from flywheel_operator.decide.production import last_time, retire, rollback, rollback_target
from flywheel_operator.manifests.server import public_service
from flywheel_operator.model.names import (
    COMMAND_RETIRE,
    COMMAND_ROLLBACK,
    FINALIZER_SERVING,
)
from flywheel_operator.model.objects import Generation
from flywheel_operator.model.observed import ObservedGeneration
from flywheel_operator.model.phases import TERMINAL, ABTestPhase
from flywheel_operator.model.production import ProductionRecord, Served
from flywheel_operator.model.status import GenerationStatus
from flywheel_operator.plan import reasons
from flywheel_operator.plan.actions import SwitchProduction
from flywheel_operator.plan.draft import Draft
from flywheel_operator.plan.prerequisites import in_production
from flywheel_operator.plan.promotion import SERVER_POLL_SECONDS
from flywheel_operator.plan.servers import apply_server, delete_server
from flywheel_operator.plan.testing import arm_of, under_test


@dataclass(frozen=True, slots=True)
class _Place:
    """A Generation's place in its lineage's production."""

    record: ProductionRecord
    version: str | None
    last: Served | None

    @property
    def serves(self) -> bool:
        return self.last is not None and self.last.until is None


def plan_serving(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> None:
    """After the verdict: keeps the condition Serving, the replicas and the Service as the production record says."""
    if draft.status.phase not in TERMINAL:
        _show_test(draft, observed)
        _late_commands(draft, _place(observed))
        return
    if observed.production is None and _service_lost(draft, observed):
        return
    place = _place(observed)
    _show(draft, observed, place)
    if place.serves:
        _commands(draft, observed, place)
    else:
        _late_commands(draft, place)
    _scale(draft, observed, place)


def plan_deletion(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> None:
    """Lets a Generation go, unless it serves: then it stays until another one serves or it is retired."""
    generation = observed.generation
    if FINALIZER_SERVING not in generation.metadata.finalizers:
        return
    place = _place(observed)
    if place.serves and not observed.namespace_terminating:
        _commands(draft, observed, place)
        if draft.switch is not None:
            return
        message = (
            f"it serves the lineage {generation.spec.lineage}: it is deleted once another Generation serves, or after "
            f"kubectl annotate gen {generation.metadata.name} {COMMAND_RETIRE}=yes"
        )
        known = [c for c in generation.status.conditions if c.type == reasons.SERVING]
        if not known or known[0].message != message:
            draft.event("Warning", reasons.DELETION_BLOCKED, message)
        draft.condition(reasons.SERVING, "True", reasons.PRODUCTION, message)
        _scale(draft, observed, place)
        return
    _show(draft, observed, place)
    view = observed.servers.get(generation.metadata.name)
    left = _drain_left(place, generation, observed.now)
    if view is not None and view.replicas > 0 and left > 0 and not observed.namespace_terminating:
        draft.look_again(left)
        return
    delete_server(draft, observed)
    draft.remove_finalizer = FINALIZER_SERVING


def pending_rollback(observed: ObservedGeneration) -> Served | None:
    """Where the serving Generation was asked to roll back: the Generation that shall serve instead."""
    record = observed.production.record if observed.production else None
    if record is None or record.serving is None:
        return None
    name = record.serving.generation
    me = observed.generation
    current = me if me.metadata.name == name else observed.generations.get(name)
    if current is None or current.metadata.annotations.get(COMMAND_ROLLBACK) is None:
        return None
    done = {c.value for c in current.status.commands if c.name == "rollback"}
    return None if current.metadata.annotations[COMMAND_ROLLBACK] in done else rollback_target(record)


def _place(observed: ObservedGeneration) -> _Place:
    production = observed.production
    record = production.record if production else ProductionRecord()
    last = last_time(record, observed.generation.metadata.name)
    return _Place(record, production.resource_version if production else None, last)


def _service_lost(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> bool:
    """The Service of a serving Generation was deleted: it comes back, pointing at what served."""
    candidate = draft.status.candidate
    if not in_production(draft.status) or candidate is None or observed.service_taken:
        return False
    name = observed.generation.metadata.name
    record = ProductionRecord(
        serving=Served(generation=name, uri=candidate.uri, digest=candidate.digest, since=observed.now)
    )
    _switch(draft, observed, record, None)
    draft.event("Warning", reasons.SERVICE_RESTORED, "the public Service was gone; it was created anew")
    return True


def _show(draft: Draft[GenerationStatus], observed: ObservedGeneration, place: _Place) -> None:
    if place.last is None:
        _show_test(draft, observed)
        return
    if place.serves:
        draft.set(superseded_time=None)
        message = f"serves since {place.last.since:%Y-%m-%dT%H:%M:%SZ}"
        draft.condition(reasons.SERVING, "True", reasons.PRODUCTION, message)
        return
    reason = place.last.ended.value if place.last.ended else "Superseded"
    successor = place.record.serving.generation if place.record.serving else "nothing"
    draft.set(superseded_time=place.last.until)
    draft.condition(reasons.SERVING, "False", reason, f"{successor} serves now")


def _show_test(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> None:
    """What never was in production may serve the users of a test."""
    test = under_test(observed)
    if test is not None and test.status.phase is ABTestPhase.RUNNING:
        message = f"serves the {arm_of(test, draft.metadata.name)} users of the test {test.metadata.name}"
        draft.condition(reasons.SERVING, "True", reasons.CANARY, message)
    elif any(c.type == reasons.SERVING and c.reason == reasons.CANARY for c in draft.status.conditions):
        draft.condition(reasons.SERVING, "False", reasons.TEST_ENDED, "its test is over")


def _commands(draft: Draft[GenerationStatus], observed: ObservedGeneration, place: _Place) -> None:
    if draft.asked(COMMAND_RETIRE) is not None:
        _retire(draft, observed, place)
    elif draft.asked(COMMAND_ROLLBACK) is not None:
        _rollback(draft, observed, place)


def _late_commands(draft: Draft[GenerationStatus], place: _Place) -> None:
    """Commands to a Generation that does not serve (any more) are noted, so that they never fire later by surprise."""
    for command in (COMMAND_ROLLBACK, COMMAND_RETIRE):
        if draft.asked(command) is not None:
            how = place.last.ended.value if place.last and place.last.ended else "it does not serve"
            draft.command(command, f"nothing to do: {how}")


def _retire(draft: Draft[GenerationStatus], observed: ObservedGeneration, place: _Place) -> None:
    _switch(draft, observed, retire(place.record, observed.now), place.version)
    draft.command(COMMAND_RETIRE, "retired")
    draft.event(
        "Warning", reasons.RETIRED, f"retired: the lineage {observed.generation.spec.lineage} has no server now"
    )


def _rollback(draft: Draft[GenerationStatus], observed: ObservedGeneration, place: _Place) -> None:
    target = rollback_target(place.record)
    if target is None or not _kept(observed.generations.get(target.generation), target):
        which = f"{target.generation} is gone" if target else "no earlier Generation served this lineage"
        draft.command(COMMAND_ROLLBACK, f"refused: {which}")
        draft.event("Warning", reasons.ROLLBACK_REFUSED, f"cannot roll back: {which}")
        return
    wanted = observed.generations[target.generation].spec.serving.replicas
    view = observed.servers.get(target.generation)
    if view is None or not view.up_to_date or view.model_digest != target.digest or view.ready_replicas < wanted:
        draft.condition(reasons.SERVING, "True", reasons.ROLLING_BACK, f"the server of {target.generation} starts")
        draft.wake.append(target.generation)
        draft.look_again(SERVER_POLL_SECONDS)
        return
    _switch(draft, observed, rollback(place.record, target, observed.now), place.version)
    draft.command(COMMAND_ROLLBACK, f"rolled back to {target.generation}")
    draft.event("Warning", reasons.ROLLED_BACK, f"rolled back: {target.generation} serves again")
    draft.wake.append(target.generation)


def _kept(target: Generation | None, served: Served) -> bool:
    if target is None or target.metadata.deletion_timestamp is not None or target.status.candidate is None:
        return False
    return target.status.candidate.digest == served.digest


def _scale(draft: Draft[GenerationStatus], observed: ObservedGeneration, place: _Place) -> None:
    """Replicas: all while it serves or is to serve again; none once it has drained."""
    candidate = draft.status.candidate
    generation = observed.generation
    name = generation.metadata.name
    view = observed.servers.get(name)
    if candidate is None:
        return
    spec = generation.spec.serving
    target = pending_rollback(observed)
    if place.serves or (target is not None and target.generation == name) or under_test(observed) is not None:
        wanted = spec.replicas
        # Whatever has a server is not deleted without it.
        draft.add_finalizer = FINALIZER_SERVING if FINALIZER_SERVING not in generation.metadata.finalizers else None
    elif view is None or view.replicas == 0:
        return
    else:
        wanted = 0
        left = _drain_left(place, generation, observed.now)
        if left > 0:
            draft.look_again(left)
            return
    # `apply_server` makes the gateway's ConfigMap and key anew, too. Where another version of the operator made the
    # server, the ConfigMap has another name today, and the Deployment rolls over to it.
    if view is None or not view.is_as_wanted(candidate.digest, wanted):
        apply_server(draft, observed, candidate, wanted)


def _drain_left(place: _Place, generation: Generation, now: datetime) -> float:
    """Seconds for which a superseded server stays up yet."""
    until = place.last.until if place.last else None
    return generation.spec.serving.drain_seconds - (now - until).total_seconds() if until else 0.0


def _switch(
    draft: Draft[GenerationStatus], observed: ObservedGeneration, record: ProductionRecord, version: str | None
) -> None:
    metadata = observed.generation.metadata
    service = public_service(observed.generation.spec.lineage, metadata.namespace, record)
    draft.switch = SwitchProduction(service=service, record=record, resource_version=version)
    draft.look_again(0.0)
