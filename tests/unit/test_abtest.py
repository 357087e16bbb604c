"""The planner of ABTests, from its creation to its verdict and the way back."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from flywheel_contract.experiment import (
    AnalysisReason,
    AnalysisResult,
)
from flywheel_operator.decide.production import promote
from flywheel_operator.model.names import FINALIZER_ROUTING
from flywheel_operator.model.observed import JobState, JobView
from flywheel_operator.model.phases import ABTestPhase
from flywheel_operator.plan import abtest
from tests.unit.abtest_bench import NAME, Bench, baseline, between_generations, generation, result
from tests.unit.build import T0, digest


def test_users_come_through_the_router_only_once_everything_answers(bench: Bench) -> None:
    bench.ready = False
    bench.step()
    assert bench.phase is ABTestPhase.PROVISIONING
    assert FINALIZER_ROUTING in bench.raw["metadata"]["finalizers"]
    bench.step()
    assert "luna-1 (control) is not ready" in bench.condition("Progressing")[2]
    assert bench.record is not None
    assert bench.record.router is None
    bench.ready = True
    bench.finish("baseline", baseline(100_000))
    bench.step()
    bench.step()
    assert bench.phase is ABTestPhase.RUNNING
    assert bench.record.router == NAME
    assert bench.record.serving is not None, "what serves is on record all the while"


def test_the_window_is_whole_days_of_utc(bench: Bench) -> None:
    bench.now = T0.replace(hour=15)
    bench.until_running()
    status = bench.test.status
    assert status.window_start is not None
    assert status.window_end is not None
    assert (status.window_start.hour, status.window_start.day) == (0, T0.day + 1)
    assert status.window_end - status.window_start == timedelta(days=7)
    assert not status.trial
    bench.step()
    assert "the window opens at" in bench.condition("Progressing")[2]


def test_a_trial_begins_at_once_and_is_marked() -> None:
    bench = between_generations(dayLength="30s", duration="150s")
    bench.until_running()
    status = bench.test.status
    assert status.trial
    assert status.window_start is not None
    assert status.window_end is not None
    assert status.window_end - status.window_start == timedelta(seconds=150)
    bench.advance(1)
    bench.step()
    assert bench.test.status.day == "0/5 (trial)"


def test_what_it_can_see_is_said_before_the_start(bench: Bench) -> None:
    bench.until_running(baseline(100_000))
    assert bench.condition("Powered")[:2] == ("True", "SeesTarget")
    power = bench.test.status.power
    assert {p.role for p in power} == {"Primary", "Guardrail"}
    assert all(p.detectable_lift is not None for p in power if p.role == "Primary")
    few = between_generations()
    few.until_running(baseline(3000))
    assert few.condition("Powered")[:2] == ("False", "CannotSeeTarget")
    assert "CannotSeeTarget" in few.events
    rare = between_generations(guardrails=[{"metric": "safetyViolationsPerMessage", "margin": 0.0001}])
    rare.until_running(baseline(100_000))
    assert rare.condition("Powered")[:2] == ("False", "GuardrailsCannotPass")
    none = between_generations()
    none.until_running()
    assert none.condition("Powered")[:2] == ("Unknown", "NoHistory")
    silent = between_generations()
    told = baseline(100_000)
    assert told.baseline is not None
    silent.until_running(
        told.model_copy(update={"baseline": told.baseline.model_copy(update={"metrics": told.baseline.metrics[-1:]})})
    )
    assert silent.condition("Powered")[:2] == ("Unknown", "NoHistory")


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (result(0.1), ("TreatmentWins", "PrimaryLifted")),
        (result(-0.1), ("ControlWins", "PrimaryDropped")),
        (result(0.1, harm=0.5), ("GuardrailBroken", "GuardrailFailed")),
        (result(0.0), ("Inconclusive", "NoPrimaryMoved")),
        (result(0.1, p=1e-6), ("Inconclusive", "SampleRatioMismatch")),
        (result(0.1, users=20), ("Inconclusive", "TooFewUsers")),
        (AnalysisResult(reason=AnalysisReason.NO_DATA), ("Inconclusive", "NoData")),
    ],
    ids=lambda v: v[1] if isinstance(v, tuple) else "",
)
def test_the_verdict_and_the_way_back(bench: Bench, given: AnalysisResult, verdict: tuple[str, str]) -> None:
    bench.until_running()
    bench.to_the_end(given)
    assert bench.verdict == verdict
    assert bench.phase is ABTestPhase.COMPLETED
    bench.step()
    assert bench.record is not None
    assert bench.record.router is None, "users go straight to what serves"
    bench.advance(3600)
    bench.step()
    assert bench.deployments == {}, "what the test started is gone"
    assert bench.step().requeue_after is None


def test_daily_looks_stop_for_harm_only(bench: Bench) -> None:
    bench.until_running()
    start = bench.test.status.window_start
    assert start is not None
    bench.now = start + timedelta(days=1, minutes=10)
    bench.look("day-1", result(0.5))
    assert bench.phase is ABTestPhase.RUNNING, "no early win"
    assert bench.test.status.exposed == "1000/1000"
    assert bench.test.status.lift == "+50.0% [+48.0%, +52.0%]"
    bench.now += timedelta(days=3)
    bench.look("day-4", result(-0.3))
    assert bench.verdict == ("ControlWins", "HarmAtDailyLook")
    assert {m.role for m in bench.test.status.metrics} == {"Primary", "Guardrail"}


def test_arms_of_the_wrong_size_pause_the_treatment(bench: Bench) -> None:
    bench.until_running()
    start = bench.test.status.window_start
    assert start is not None
    bench.now = start + timedelta(days=1, minutes=10)
    bench.look("day-1", result(0.1, p=1e-9))
    bench.step()
    assert bench.test.status.paused
    assert bench.phase is ABTestPhase.RUNNING
    assert "paused" in bench.condition("Progressing")[2]


def test_a_pause_by_hand_is_another_configuration_and_back_again(bench: Bench) -> None:
    bench.until_running()
    running = next(v.config for v in bench.deployments.values() if v.config)
    bench.raw["spec"]["pauseTreatment"] = True
    bench.step()
    assert bench.test.status.paused
    paused = next(v.config for v in bench.deployments.values() if v.config)
    assert paused != running
    bench.raw["spec"]["pauseTreatment"] = False
    bench.step()
    assert next(v.config for v in bench.deployments.values() if v.config) == running
    assert bench.events.count("Paused") == bench.events.count("Resumed") == 1


def test_one_test_of_a_lineage_at_a_time(bench: Bench) -> None:
    other = bench.test.model_copy(update={"metadata": bench.test.metadata.model_copy(update={"name": "another"})})
    running = other.model_copy(update={"status": other.status.model_copy(update={"phase": ABTestPhase.RUNNING})})
    bench.others["another"] = running
    bench.step()
    assert bench.phase is ABTestPhase.PENDING
    assert bench.condition("Progressing")[1:] == (
        "InLine",
        "in line behind another (Running): one test of luna at a time",
    )
    ended = other.model_copy(update={"status": other.status.model_copy(update={"phase": ABTestPhase.COMPLETED})})
    bench.others["another"] = ended
    bench.step()
    assert bench.phase is ABTestPhase.PROVISIONING


def test_it_waits_for_its_arms() -> None:
    bench = between_generations()
    two = bench.generations.pop("luna-2")
    bench.step()
    assert bench.condition("Progressing")[1] == "GenerationNotFound"
    bench.generations["luna-2"] = two.model_copy(update={"status": two.status.model_copy(update={"candidate": None})})
    bench.step()
    assert bench.condition("Progressing")[1] == "GenerationNotReady"
    bench.generations["luna-2"] = two
    bench.record = None
    bench.step()
    assert bench.condition("Progressing")[1] == "ControlNotServing"


def test_a_control_that_moved_ends_it(bench: Bench) -> None:
    bench.until_running()
    assert bench.record is not None
    bench.record = promote(bench.record, "luna-9", "pvc://m/luna-9", digest("luna-9"), T0)
    bench.step()
    assert bench.verdict == ("Inconclusive", "ControlMoved")


def test_an_inconclusive_one_is_extended_once() -> None:
    bench = between_generations(onInconclusive="Extend")
    bench.until_running()
    first = bench.test.status.window_end
    bench.to_the_end(result(0.0))
    assert bench.phase is ABTestPhase.RUNNING
    assert first is not None
    assert bench.test.status.window_end == first + timedelta(days=7)
    bench.to_the_end(result(0.0))
    assert bench.verdict == ("Inconclusive", "NoPrimaryMoved")


def test_an_analysis_that_breaks_is_tried_again_and_then_proves_nothing(bench: Bench) -> None:
    bench.until_running()
    end = bench.test.status.window_end
    assert end is not None
    bench.now = end + timedelta(minutes=10)
    for _ in range(4):
        bench.step()
        bench.finish("final", None, exit_code=1, fault="Error")
        bench.step()
        bench.advance(3600)
    assert bench.verdict == ("Inconclusive", "AnalysisFailed")
    run = next(r for r in bench.test.status.runs if r.name == "final")
    assert (run.state, run.attempts) == ("Failed", 4)


def test_an_analysis_waits_for_its_next_attempt(bench: Bench) -> None:
    bench.until_running()
    end = bench.test.status.window_end
    assert end is not None
    bench.now = end + timedelta(minutes=10)
    bench.step()
    bench.finish("final", None, exit_code=1, fault="Error")
    for _ in range(3):
        plan = bench.step()
        run = next(r for r in bench.test.status.runs if r.name == "final")
        assert (run.state, run.attempts) == ("Pending", 1)
        assert plan.requeue_after is not None
        assert plan.requeue_after > 0


def test_a_verdict_may_come_late_and_is_of_the_same_window(bench: Bench) -> None:
    bench.until_running()
    end = bench.test.status.window_end
    assert end is not None
    bench.now = end + timedelta(days=30)
    bench.step()
    run = next(r for r in bench.test.status.runs if r.name == "final")
    job = bench.manifests["Job", str(run.job)]
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--end") + 1] == f"{end:%Y-%m-%dT%H:%M:%SZ}"
    assert not [r for r in bench.test.status.runs if r.name.startswith("day-")], "the last look sees all"


def test_without_data_it_may_fail_by_policy() -> None:
    bench = between_generations(onNoData="Fail")
    bench.until_running()
    bench.to_the_end(AnalysisResult(reason=AnalysisReason.NO_DATA))
    assert bench.phase is ABTestPhase.FAILED
    assert bench.verdict is None


def test_the_prompts_of_a_test_are_those_of_its_start() -> None:
    luna = {"name": "luna", "systemPromptFrom": {"name": "prompts", "key": "luna"}}
    bench = between_generations(
        treatment={"model": "pvc://m/other"}, characters=[luna, {"name": "sol", "description": "A surfer."}]
    )
    bench.step()
    assert bench.condition("Progressing")[1] == "CharacterNotFound"
    bench.config_maps["prompts"] = {"luna": "You are Luna."}
    bench.until_running()
    server = bench.manifests["Deployment", f"{NAME}-treatment-server"]
    [config] = [m["data"]["gateway.json"] for m in bench.manifests.values() if "gateway.json" in m.get("data", {})]
    assert "You are Luna." in config
    assert "A surfer." in config
    for changed in ({"prompts": {"luna": "You are Mona."}}, {}):
        bench.config_maps = changed
        bench.step()
        assert bench.manifests["Deployment", f"{NAME}-treatment-server"] == server
    # One that an operator started which kept the reference.
    bench.raw["status"]["resolved"]["characters"] = [luna]
    assert server["metadata"]["name"] not in [m["metadata"]["name"] for m in bench.step().apply]


def test_servers_that_never_answer_fail_it(bench: Bench) -> None:
    bench.ready = False
    bench.step()
    bench.advance(1801)
    bench.step()
    assert bench.phase is ABTestPhase.FAILED
    assert bench.condition("Progressing")[1] == "ServersNotReady"


def test_it_ends_with_the_generation_that_made_it(bench: Bench) -> None:
    bench.generations["luna-2"] = generation("luna-2", abTest=NAME, phase="Testing")
    bench.until_running()
    bench.generations["luna-2"] = generation("luna-2", abTest=NAME, phase="Aborted")
    bench.step()
    assert bench.phase is ABTestPhase.ABORTED
    assert bench.condition("Progressing")[1] == "GenerationEnded"


def test_two_models_without_a_generation() -> None:
    bench = between_generations(
        control={"model": "pvc://m/base"}, treatment={"service": {"name": "vllm", "port": 8000}}
    )
    bench.generations, bench.record = {}, None
    bench.until_running()
    assert bench.record is not None
    assert bench.record.serving is None
    assert bench.record.router == NAME
    control = bench.manifests["Deployment", f"{NAME}-control-server"]["spec"]["template"]["spec"]
    treatment = bench.manifests["Deployment", f"{NAME}-treatment-server"]["spec"]["template"]["spec"]
    assert [c["name"] for c in control["containers"]] == ["server", "gateway"]
    assert [c["name"] for c in treatment["containers"]] == ["gateway"]
    bench.to_the_end(result(0.1))
    assert bench.verdict == ("TreatmentWins", "PrimaryLifted")
    bench.advance(3600)
    bench.step()
    assert f"{NAME}-control-server" in bench.deployments, "users still come through the router"
    assert f"{NAME}-treatment-server" not in bench.deployments


def test_a_service_of_someone_else_is_waited_for(bench: Bench) -> None:
    plan = abtest.plan(dataclasses.replace(bench.observe(), service_taken=True))
    assert plan.status.conditions[-1].reason == "ServiceNameTaken"
    bench.step()
    assert bench.phase is ABTestPhase.PROVISIONING


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"lineage": "sol"}, {}, "GenerationNotFound"),
        ({"serving": {"gateway": {"mode": "Disabled"}}}, {}, "GenerationNotReady"),
        ({"artifacts": {"uri": "s3://bucket/runs"}}, {}, "ArtifactsDiffer"),
        ({}, {"phase": "Aborted"}, "GenerationNotReady"),
    ],
)
def test_arms_that_cannot_be_tested(bench: Bench, changes: dict[str, Any], status: dict[str, Any], reason: str) -> None:
    bench.generations["luna-2"] = generation("luna-2", changes, **status)
    bench.step()
    bench.step()
    assert bench.condition("Progressing")[1] == reason
    assert bench.events == [reason], "said once"


def test_a_control_that_moves_while_the_servers_start(bench: Bench) -> None:
    bench.ready = False
    bench.step()
    assert bench.record is not None
    bench.record = promote(bench.record, "luna-9", "pvc://m/luna-9", digest("luna-9"), T0)
    bench.step()
    assert bench.verdict == ("Inconclusive", "ControlMoved")


def test_arms_of_the_wrong_size_are_not_extended() -> None:
    bench = between_generations(onInconclusive="Extend")
    bench.until_running()
    bench.to_the_end(result(0.1, p=1e-9))
    assert bench.verdict == ("Inconclusive", "SampleRatioMismatch")


def test_a_look_that_could_not_be_taken_stops_nothing(bench: Bench) -> None:
    bench.until_running()
    start = bench.test.status.window_start
    assert start is not None
    bench.now = start + timedelta(days=1, minutes=10)
    bench.step()
    said = AnalysisResult(reason=AnalysisReason.INVALID_DATA, message="exposures: no column user_id")
    entry = next(r for r in bench.test.status.runs if r.name == "day-1")
    bench.jobs[str(entry.job)] = JobView(str(entry.job), JobState.FAILED, analysis=said, exit_code=65)
    bench.step()
    assert bench.phase is ABTestPhase.RUNNING
    assert "AnalysisFailed" in bench.events
    run = next(r for r in bench.test.status.runs if r.name == "day-1")
    assert (run.state, run.attempts, run.message) == ("Failed", 1, "exposures: no column user_id")


def test_a_job_that_is_held_says_why_and_one_that_is_gone_is_made_anew(bench: Bench) -> None:
    bench.until_running()
    start = bench.test.status.window_start
    assert start is not None
    bench.now = start + timedelta(days=1, minutes=10)
    bench.step()
    job = str(next(r for r in bench.test.status.runs if r.name == "day-1").job)
    bench.jobs[job] = JobView(job, JobState.SUSPENDED, waiting="no quota")
    bench.step()
    assert next(r for r in bench.test.status.runs if r.name == "day-1").message == "no quota"
    del bench.jobs[job]
    bench.step()
    bench.advance(60)
    bench.step()
    run = next(r for r in bench.test.status.runs if r.name == "day-1")
    assert (run.attempts, run.failures) == (2, 0)
    assert run.job != job


def test_a_suspended_generation_pauses_its_test(bench: Bench) -> None:
    bench.generations["luna-2"] = generation("luna-2", abTest=NAME, phase="Testing")
    bench.until_running()
    bench.generations["luna-2"] = generation("luna-2", {"suspend": True}, abTest=NAME, phase="Suspended")
    bench.step()
    assert bench.test.status.paused


def test_a_deleted_service_is_pointed_at_the_router_again(bench: Bench) -> None:
    bench.until_running()
    assert bench.record is not None
    bench.record = bench.record.model_copy(update={"router": None})
    bench.step()
    assert bench.record.router == NAME


def test_a_deleted_service_is_waited_for(bench: Bench) -> None:
    serves = {"type": "Serving", "status": "True", "reason": "Production", "message": "it serves"}
    serves |= {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    bench.generations["luna-1"] = generation("luna-1", conditions=[serves])
    bench.until_running()
    record, bench.record = bench.record, None
    bench.step()
    assert bench.phase is ABTestPhase.RUNNING
    assert bench.condition("Progressing")[1] == "ServiceGone"
    assert record is not None
    bench.record = record.model_copy(update={"router": None})
    bench.step()
    assert bench.record.router == NAME
    assert bench.condition("Progressing")[0] == "True"
