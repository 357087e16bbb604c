"""The planner of ABTests: in line, arms and router up, the window with its looks, the verdict, the way back."""

from datetime import timedelta
from typing import Final

from flywheel_contract.durations import seconds
from flywheel_contract.experiment import AnalysisResult
from flywheel_operator.decide.abtest import Decision, final_verdict, harm_look
from flywheel_operator.manifests.analysis import Measurement
from flywheel_operator.model.abtest_status import ABTestStatus, AbVerdictStatus
from flywheel_operator.model.experiment import NO_DATA_REASONS, AbReason, AbVerdict, LookOutcome
from flywheel_operator.model.names import COMMAND_ABORT, FINALIZER_ROUTING
from flywheel_operator.model.objects import ABTest
from flywheel_operator.model.observed import ObservedABTest
from flywheel_operator.model.phases import ABTEST_TERMINAL, TERMINAL, ABTestPhase
from flywheel_operator.plan import abtest_report as report
from flywheel_operator.plan import abtest_routing as routing
from flywheel_operator.plan import abtest_runs as runs
from flywheel_operator.plan import reasons
from flywheel_operator.plan.abtest_arms import apply_arms, check, not_ready
from flywheel_operator.plan.abtest_exit import delete_stray_jobs, leave, wind_down
from flywheel_operator.plan.abtest_power import rule_of, show_power
from flywheel_operator.plan.actions import Plan
from flywheel_operator.plan.draft import Draft
from flywheel_operator.plan.prerequisites import WAIT_SECONDS, Missing, in_production, service_gone, service_taken

IN_LINE: Final = "InLine"
SERVERS_STARTING: Final = "ServersStarting"
SERVERS_NOT_READY: Final = "ServersNotReady"
WINDOW_OPEN: Final = "WindowOpen"
WINDOW_OVER: Final = "WindowOver"
GENERATION_ENDED: Final = "GenerationEnded"
POLL_SECONDS: Final = 10.0


def plan(observed: ObservedABTest) -> Plan[ABTestStatus]:
    """What to do about one ABTest now."""
    test = observed.test
    draft = Draft(test.metadata, observed.now, test.status)
    if test.metadata.deletion_timestamp is not None:
        leave(draft, observed)
        _wake(draft, observed)
        return draft.plan()
    ended = _ended_with_generation(observed)
    if test.status.phase in ABTEST_TERMINAL:
        pass
    elif draft.asked(COMMAND_ABORT) is not None:
        draft.command(COMMAND_ABORT, "aborted")
        _end(draft, ABTestPhase.ABORTED, reasons.ABORTED, "ended by the abort annotation")
    elif ended is not None:
        _end(draft, ABTestPhase.ABORTED, GENERATION_ENDED, ended)
    elif test.status.phase is ABTestPhase.PENDING:
        _prepare(draft, observed)
    elif (serves := _service_lost(observed)) is not None:
        _wait(draft, Missing(reasons.SERVICE_GONE, service_gone(test.spec.lineage, serves)))
    elif test.status.phase is ABTestPhase.PROVISIONING:
        _provision(draft, observed)
    else:
        _run(draft, observed)
    if draft.status.phase in ABTEST_TERMINAL:
        wind_down(draft, observed)
    delete_stray_jobs(draft, observed)
    _wake(draft, observed)
    return draft.plan()


def _prepare(draft: Draft[ABTestStatus], observed: ObservedABTest) -> None:
    before = _before_us(observed)
    if before is not None:
        lineage = observed.test.spec.lineage
        said = f"in line behind {before.metadata.name} ({before.status.phase.value}): one test of {lineage} at a time"
        _wait(draft, Missing(IN_LINE, said))
        return
    if observed.service_taken:
        _wait(draft, Missing(reasons.SERVICE_NAME_TAKEN, service_taken(observed.test.spec.lineage)))
        return
    found = check(observed)
    if isinstance(found, Missing):
        _wait(draft, found)
        return
    spec = observed.test.spec
    draft.add_finalizer = FINALIZER_ROUTING
    draft.set(
        phase=ABTestPhase.PROVISIONING,
        start_time=observed.now,
        server_start_time=observed.now,
        resolved=found[2],
        trial=seconds(spec.day_length) < 86400,
        control=found[0],
        treatment=found[1],
    )
    draft.event("Normal", "Provisioning", "servers, gateways and router start")
    _provision(draft, observed)


def _before_us(observed: ObservedABTest) -> ABTest | None:
    """The test of the lineage whose turn it is, if it is not ours: what runs first, then the oldest."""

    def place(test: ABTest) -> tuple[bool, str, str]:
        created = test.metadata.creation_timestamp
        return (
            test.status.phase is ABTestPhase.PENDING,
            created.isoformat() if created else "",
            test.metadata.name,
        )

    mine = place(observed.test)
    others = [
        t
        for name, t in observed.tests.items()
        if name != observed.test.metadata.name
        and t.spec.lineage == observed.test.spec.lineage
        and t.status.phase not in ABTEST_TERMINAL
        and place(t) < mine
    ]
    return min(others, key=place, default=None)


def _wait(draft: Draft[ABTestStatus], missing: Missing) -> None:
    before = next((c for c in draft.status.conditions if c.type == reasons.PROGRESSING), None)
    if before is None or before.reason != missing.reason:
        draft.event("Normal", missing.reason, missing.message)
    draft.condition(reasons.PROGRESSING, "False", missing.reason, missing.message)
    draft.look_again(WAIT_SECONDS)


def _provision(draft: Draft[ABTestStatus], observed: ObservedABTest) -> None:
    moved = _moved(draft, observed)
    if moved is not None:
        _inconclusive(draft, AbReason.CONTROL_MOVED, moved)
        return
    apply_arms(draft, observed)
    config = routing.apply_router(draft, observed, split=True, paused=_paused(draft, observed))
    measured = show_power(draft, observed)
    waits = not_ready(observed) or routing.not_ready(observed, config)
    if waits:
        _await(draft, observed, waits)
        return
    if not measured:
        draft.condition(reasons.PROGRESSING, "True", SERVERS_STARTING, "the users' log is read, to say what it can see")
        return
    start = runs.first_day(observed.now, seconds(observed.test.spec.day_length))
    # The users come before the window opens: what they did until then counts for nobody.
    routing.point_here(draft, observed)
    end = start + _duration(observed)
    draft.set(phase=ABTestPhase.RUNNING, window_start=start, window_end=end, server_start_time=None)
    draft.event("Normal", WINDOW_OPEN, f"the window is {start:%Y-%m-%dT%H:%M:%SZ} to {end:%Y-%m-%dT%H:%M:%SZ}")
    report.show_day(draft, observed)
    draft.look_again(1.0)


def _await(draft: Draft[ABTestStatus], observed: ObservedABTest, waits: str) -> None:
    since = draft.status.server_start_time or observed.now
    timeout = observed.test.spec.serving.startup_timeout_seconds
    if (observed.now - since).total_seconds() > timeout:
        _end(draft, ABTestPhase.FAILED, SERVERS_NOT_READY, f"{waits}; gave up after {timeout} s")
        return
    draft.condition(reasons.PROGRESSING, "True", SERVERS_STARTING, waits)
    draft.look_again(POLL_SECONDS)


def _run(draft: Draft[ABTestStatus], observed: ObservedABTest) -> None:
    moved = _moved(draft, observed)
    if moved is not None:
        _inconclusive(draft, AbReason.CONTROL_MOVED, moved)
        return
    apply_arms(draft, observed)
    paused = _paused(draft, observed)
    if paused != draft.status.paused:
        said = "production serves the treatment's users for now" if paused else "the treatment serves its users again"
        draft.event("Warning" if paused else "Normal", "Paused" if paused else "Resumed", said)
    draft.set(paused=paused)
    routing.apply_router(draft, observed, split=True, paused=paused)
    routing.point_here(draft, observed)
    _, end = runs.window_of(draft.status)
    if observed.now >= end and draft.status.phase is not ABTestPhase.ANALYZING:
        draft.set(phase=ABTestPhase.ANALYZING)
        draft.event("Normal", WINDOW_OVER, "the window is over; its events settle, then they are analysed")
    draft.look_again(runs.next_look(draft.status, observed))
    wanted = runs.due(draft.status, observed)
    if wanted is not None:
        _measure(draft, observed, wanted)
    if draft.status.phase not in ABTEST_TERMINAL:
        report.show_day(draft, observed)


def _measure(draft: Draft[ABTestStatus], observed: ObservedABTest, wanted: Measurement) -> None:
    final = wanted.name.startswith(runs.FINAL)
    known = runs.find(draft.status, wanted.name)
    if known is not None and known.state in ("Succeeded", "Failed"):
        return
    run, result = runs.advance(draft, observed, wanted)
    if result is not None:
        report.show_result(draft, observed.test.spec, result)
    if result is None and run.state != "Failed":
        return
    if final:
        _decide(draft, observed, result, run.message)
    else:
        _look(draft, observed, result, int(wanted.name.rpartition("-")[2]))


def _look(draft: Draft[ABTestStatus], observed: ObservedABTest, result: AnalysisResult | None, day: int) -> None:
    _, days = runs.day_of(draft.status, observed)
    looks = days * (2 if observed.test.spec.on_inconclusive == "Extend" and not draft.status.extensions else 1)
    look = harm_look(result, rule_of(observed.test), day, looks)
    if look.decision is not None:
        report.show_findings(draft, look.decision, result)
        _conclude(draft, look.decision)
    elif look.outcome is LookOutcome.PAUSE and not draft.status.mismatch:
        draft.set(mismatch=True)
        draft.event("Warning", look.reason.value, f"the treatment is paused: {look.message}")
    elif result is None:
        draft.event("Warning", look.reason.value, f"day {day}: {look.message}")


def _decide(draft: Draft[ABTestStatus], observed: ObservedABTest, result: AnalysisResult | None, said: str) -> None:
    spec = observed.test.spec
    decision = final_verdict(result, rule_of(observed.test))
    report.show_findings(draft, decision, result)
    message = decision.message if result is not None or not said else f"{decision.message}: {said}"
    undecided = decision.verdict is AbVerdict.INCONCLUSIVE
    if undecided and decision.reason in NO_DATA_REASONS:
        if spec.on_no_data == "Fail":
            _end(draft, ABTestPhase.FAILED, decision.reason.value, message)
            return
    elif undecided and spec.on_inconclusive == "Extend" and draft.status.extensions == 0:
        _, end = runs.window_of(draft.status)
        if decision.reason is not AbReason.SAMPLE_RATIO_MISMATCH:
            draft.set(phase=ABTestPhase.RUNNING, window_end=end + _duration(observed), extensions=1)
            draft.event("Normal", "Extended", f"extended by {spec.duration}: {message}")
            return
    _conclude(draft, Decision(decision.verdict, decision.reason, message, decision.guardrails, decision.primaries))


def _conclude(draft: Draft[ABTestStatus], decision: Decision) -> None:
    verdict = AbVerdictStatus(result=decision.verdict, reason=decision.reason, message=decision.message)
    draft.set(verdict=verdict)
    _end(draft, ABTestPhase.COMPLETED, decision.reason.value, f"{decision.verdict.value}: {decision.message}")


def _inconclusive(draft: Draft[ABTestStatus], reason: AbReason, message: str) -> None:
    _conclude(draft, Decision(AbVerdict.INCONCLUSIVE, reason, message))


def _end(draft: Draft[ABTestStatus], phase: ABTestPhase, reason: str, message: str) -> None:
    draft.set(phase=phase, completion_time=draft.now, stage=None)
    draft.condition(reasons.PROGRESSING, "False", reason, message)
    good = phase is ABTestPhase.COMPLETED
    draft.condition(reasons.COMPLETE, "True" if good else "False", reason, message)
    verdict = draft.status.verdict
    won = verdict is not None and verdict.result is AbVerdict.TREATMENT_WINS
    draft.event("Normal" if won else "Warning", verdict.result.value if verdict else phase.value, message)


def _moved(draft: Draft[ABTestStatus], observed: ObservedABTest) -> str | None:
    """Why what production is now is not what the treatment is compared with; None: it still is."""
    control = draft.status.control
    if control is None or control.generation is None:
        return None
    serving = observed.production.record.serving if observed.production else None
    if serving is not None and serving.digest == control.digest:
        return None
    now = f"{serving.generation} serves now" if serving else "nothing serves now"
    return f"{control.generation}, which the treatment was compared with, is not in production any more: {now}"


def _service_lost(observed: ObservedABTest) -> str | None:
    """The control, where it serves the lineage and only the Service was deleted: it brings that back."""
    control = observed.generations.get(observed.test.spec.control.generation or "")
    if observed.production is not None or control is None or not in_production(control.status):
        return None
    return control.metadata.name


def _ended_with_generation(observed: ObservedABTest) -> str | None:
    """A test that a Generation made ends with it, when that ends by anything but the test's own verdict."""
    name = observed.test.spec.treatment.generation
    made = observed.generations.get(name or "")
    if made is None or made.status.ab_test != observed.test.metadata.name:
        return None
    if made.status.phase not in TERMINAL:
        return None
    return f"its Generation {name} is {made.status.phase.value}"


def _paused(draft: Draft[ABTestStatus], observed: ObservedABTest) -> bool:
    made = observed.generations.get(observed.test.spec.treatment.generation or "")
    suspended = made is not None and made.spec.suspend and made.status.ab_test == observed.test.metadata.name
    return observed.test.spec.pause_treatment or draft.status.mismatch or suspended


def _duration(observed: ObservedABTest) -> timedelta:
    return timedelta(seconds=seconds(observed.test.spec.duration))


def _wake(draft: Draft[ABTestStatus], observed: ObservedABTest) -> None:
    """The Generations of the arms look again when the test's phase or verdict has changed."""
    before = observed.test.status
    if before.phase == draft.status.phase and before.verdict == draft.status.verdict:
        return
    spec = observed.test.spec
    draft.wake.extend(g for g in (spec.control.generation, spec.treatment.generation) if g is not None)
