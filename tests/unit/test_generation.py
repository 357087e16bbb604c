"""A Generation from its creation to its end: one situation after the other."""

import dataclasses

import pytest

from flywheel_contract.stages import Stage
from flywheel_operator.model.names import (
    COMMAND_ABORT,
    LABEL_COMPONENT,
    server_name,
)
from flywheel_operator.model.observed import JobState, JobView
from flywheel_operator.model.phases import Phase, StageState, Verdict
from flywheel_operator.plan.servers import beside_server
from tests.unit.build import raw_object, reward_model_spec
from tests.unit.lab import Lab

# ------------------------------------------------------------------ the way there


def test_the_straight_way(lab: Lab) -> None:
    lab.put("gen-1")
    first = lab.step("gen-1")
    assert first is not None
    assert [m["kind"] for m in first.create] == ["ConfigMap", "Job"]
    assert lab.status("gen-1").resolved == lab.generation("gen-1").spec
    lab.go("gen-1")
    status = lab.status("gen-1")
    assert (status.phase, status.progress, status.stage) == (Phase.COMPLETED, "4/4", None)
    assert status.verdict is not None
    assert status.verdict.result is Verdict.PROMOTED
    assert "winRate 0.59 [0.55, 0.63], n=600" in status.verdict.message
    assert status.win_rate == "0.590 [0.550, 0.630]"
    assert status.report is not None
    assert status.report.endswith("/report/report.html")
    assert lab.condition("gen-1", "Serving")[:2] == ("True", "Production")
    assert lab.condition("gen-1", "Complete")[0] == "True"
    assert lab.condition("gen-1", "GatesPassed")[0] == "True"
    assert status.baseline is not None
    assert status.baseline.uri == "hf://owner/base", "where nothing serves, the parent is the baseline"


def test_the_second_is_judged_against_the_first(two: Lab) -> None:
    status = two.status("gen-2")
    assert status.baseline is not None
    assert status.baseline.generation == "gen-1"
    assert two.condition("gen-1", "Serving") == ("False", "Superseded", "gen-2 serves now")
    assert two.status("gen-1").superseded_time is not None
    assert [s.generation for s in (two.record() or pytest.fail("no record")).history] == ["gen-1"]


def test_a_queued_job_shows_in_the_phase(lab: Lab) -> None:
    lab.put("gen-1")
    lab.step("gen-1")
    [job] = lab.jobs.values()
    job.view = JobView(job.view.name, JobState.PENDING, waiting="0/3 nodes are available")
    lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.QUEUED
    assert lab.condition("gen-1", "Progressing") == ("True", "StageQueued", "stage resolve: 0/3 nodes are available")


def test_a_users_mistake_ends_it(lab: Lab) -> None:
    lab.put("gen-1")
    lab.until_stage("gen-1", Stage.CURATE)
    lab.fail(next(j for j in lab.jobs.values() if j.view.state is JobState.PENDING), "mistake")
    plan = lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.FAILED
    assert lab.condition("gen-1", "Complete") == ("False", "InvalidData", "stage curate: line 3: no user id")
    assert lab.events(plan) == ["StageFailed", "Failed"]


def test_one_that_is_overfitted_is_gated(lab: Lab) -> None:
    lab.put("gen-1")
    lab.overfitted.add("gen-1")
    lab.go("gen-1")
    status = lab.status("gen-1")
    assert (status.phase, status.promotion_hash) == (Phase.COMPLETED, None)
    assert status.verdict is not None
    assert status.verdict.result is Verdict.GATED
    assert "win-rate-gap: winRateGap 0.27" in status.verdict.message
    assert (lab.serving(), lab.deployments) == (None, {})


def test_without_gates_it_says_so(lab: Lab) -> None:
    lab.put("gen-1", gates={"defaults": "Disabled"})
    lab.go("gen-1")
    assert lab.condition("gen-1", "GatesPassed") == ("True", "AllGatesPassed", "no gate was set")


def test_a_gate_on_what_training_reports_and_no_win_rate(lab: Lab) -> None:
    lab.put("gen-1", gates={"defaults": "Disabled", "rules": [{"name": "kl", "metric": "klAtStart", "max": 0}]})
    lab.until_stage("gen-1", Stage.EVALUATE)
    job = next(j for j in lab.jobs.values() if j.view.state is JobState.PENDING)
    lab.finish(job)
    assert job.view.result is not None
    bare = job.view.result.model_copy(update={"metrics": {}})
    job.view = JobView(job.view.name, JobState.SUCCEEDED, result=bare, exit_code=0)
    lab.step("gen-1")
    status = lab.status("gen-1")
    assert (status.win_rate, [g.verdict for g in status.gates]) == (None, ["NotMeasured"])
    assert status.phase is Phase.COMPLETED


# ------------------------------------------------------------------ what it waits for


def test_it_waits_for_a_parent_and_says_what_it_is(lab: Lab) -> None:
    lab.put("gen-2", parent={"generation": "gen-1"})
    plan = lab.step("gen-2")
    assert lab.events(plan) == ["ParentNotFound"]
    assert plan is not None
    assert plan.requeue_after == 30
    assert lab.events(lab.step("gen-2")) == [], "said once"
    lab.put("gen-1")
    lab.step("gen-2")
    assert "it is Pending" in lab.condition("gen-2", "PrerequisitesMet")[2]
    lab.overfitted.add("gen-1")
    lab.go("gen-1")
    lab.step("gen-2")
    assert "it is Completed, verdict Gated" in lab.condition("gen-2", "PrerequisitesMet")[2]
    lab.put("gen-1")
    lab.overfitted.clear()
    lab.done.clear()
    lab.go("gen-1")
    lab.go("gen-2")
    status = lab.status("gen-2")
    assert status.phase is Phase.COMPLETED
    assert status.baseline is not None
    assert status.baseline.generation == "gen-1"


def test_a_cycle_of_parents_never_runs(lab: Lab) -> None:
    lab.put("gen-1", parent={"generation": "gen-3"})
    lab.put("gen-2", parent={"generation": "gen-1"})
    lab.put("gen-3", parent={"generation": "gen-2"})
    lab.put("gen-4", parent={"generation": "gen-3"})
    for name in ("gen-1", "gen-4"):
        plan = lab.step(name)
        assert plan is not None
        assert plan.events[0].type == "Warning"
        assert lab.condition(name, "ParentCycle")[0] == "True"
        assert "gen-3 -> gen-2 -> gen-1 -> gen-3" in plan.events[0].message or name == "gen-1"
    assert lab.jobs == {}
    lab.change("gen-1", parent={"model": "hf://owner/base"})
    lab.step("gen-1")
    assert not any(c.type == "ParentCycle" for c in lab.status("gen-1").conditions)


def test_it_waits_for_its_reward_model(lab: Lab) -> None:
    lab.put("gen-1", rewards=[{"rewardModel": "rm-1"}], recipe={"rejectionSampling": {}, "sft": {}})
    lab.step("gen-1")
    assert lab.condition("gen-1", "PrerequisitesMet")[1] == "RewardModelNotFound"
    lab.reward_models["rm-1"] = raw_object("RewardModel", "rm-1", reward_model_spec(), annotations={})
    lab.step("gen-1")
    assert "it is Pending" in lab.condition("gen-1", "PrerequisitesMet")[2]
    lab.step("rm-1")
    lab.step("gen-1")
    assert "it is Running, resolve 0/2" in lab.condition("gen-1", "PrerequisitesMet")[2]
    lab.go("rm-1", rounds=8)
    lab.go("gen-1")
    assert lab.status("gen-1").phase is Phase.COMPLETED


def test_a_reward_model_that_learned_from_those_who_judge_is_not_used(lab: Lab) -> None:
    lab.put("gen-1", rewards=[{"rewardModel": "rm-1"}], recipe={"rejectionSampling": {}, "sft": {}})
    lab.reward_models["rm-1"] = raw_object(
        "RewardModel", "rm-1", reward_model_spec(training={"holdoutFraction": 0.1}), annotations={}
    )
    lab.go("rm-1", rounds=8)
    lab.step("gen-1")
    assert lab.condition("gen-1", "PrerequisitesMet")[1:] == (
        "RewardModelHoldoutTooSmall",
        "the RewardModel rm-1 learned from users who are to judge: it holds out 0.1 of the users, "
        "spec.curation.holdoutFraction is 0.2; lower that, or name a RewardModel with a larger "
        "training.holdoutFraction",
    )
    lab.change("gen-1", curation={"holdoutFraction": 0.1})
    lab.go("gen-1")
    assert lab.status("gen-1").phase is Phase.COMPLETED


def test_it_waits_for_its_characters(lab: Lab) -> None:
    source = {"name": "prompts", "key": "luna"}
    lab.put(
        "gen-1",
        characters=[{"name": "luna", "systemPromptFrom": source}, {"name": "sol", "systemPrompt": "You are Sol."}],
    )
    lab.step("gen-1")
    assert "waits for the ConfigMap prompts with the key luna" in lab.condition("gen-1", "PrerequisitesMet")[2]
    lab.prompts["prompts"] = {"luna": "x" * 20_000}
    lab.step("gen-1")
    assert lab.condition("gen-1", "PrerequisitesMet")[1] == "CharacterInvalid"
    assert "has 20000 characters; at most 16384" in lab.condition("gen-1", "PrerequisitesMet")[2]
    lab.prompts["prompts"] = {"luna": "You are Luna."}
    lab.step("gen-1")
    assert lab.condition("gen-1", "PrerequisitesMet")[0] == "True"
    # Once the snapshot is taken, nothing is looked up again.
    lab.until_stage("gen-1", Stage.CURATE)
    lab.prompts.clear()
    lab.go("gen-1")
    assert lab.status("gen-1").phase is Phase.COMPLETED


def test_without_a_gateway_there_is_nothing_beside_the_server(lab: Lab) -> None:
    lab.put("gen-1", serving={"gateway": {"mode": "Disabled"}})
    lab.go("gen-1")
    assert lab.serving() == "gen-1"
    (server,) = lab.deployments.values()
    assert [c["name"] for c in server["spec"]["template"]["spec"]["containers"]] == ["server"]
    assert not [m for m in lab.children.values() if m["metadata"]["labels"][LABEL_COMPONENT] == "gateway"]
    lab.put("gen-2", serving={"gateway": {"mode": "Disabled"}})
    lab.go("gen-2")
    assert lab.serving() == "gen-2"
    lab.remove("gen-1")
    lab.go("gen-1", rounds=5)
    assert lab.gone("gen-1")
    assert list(lab.deployments) == [server_name("gen-2")]


def test_stages_and_gateway_are_told_the_same_prompt(lab: Lab) -> None:
    lab.prompts["prompts"] = {"luna": "You are Luna."}
    luna = {
        "name": "luna", "systemPromptFrom": {"name": "prompts", "key": "luna"}, "rules": ["Never leave the ship."],
        "examples": [{"user": "Hi!", "reply": "Mind the ferns."}],
    }  # fmt: skip
    lab.put("gen-1", characters=[luna, {"name": "sol", "description": "A surfer."}])
    lab.go("gen-1")
    observed = lab.observe("gen-1")
    assert observed.snapshot is not None
    told = {c.name: c.prompt for c in observed.snapshot.characters}
    beside = beside_server(observed)
    assert beside is not None
    assert {c.name: c.system_prompt for c in beside.config.characters} == told
    assert told["sol"] == "A surfer."
    assert told["luna"].startswith("You are Luna.\n\nRules:\n- Never leave the ship.")
    lost = dataclasses.replace(observed, snapshot=None)
    assert beside_server(lost) == beside, "a snapshot that someone deletes takes no prompt along"
    without = beside_server(dataclasses.replace(lost, config_maps={}))
    assert without is not None
    assert [c.name for c in without.config.characters] == ["sol"]


def test_waiting_after_a_suspension_is_pending(lab: Lab) -> None:
    lab.put("gen-1", characters=[{"name": "luna", "systemPromptFrom": {"name": "prompts", "key": "luna"}}])
    lab.prompts["prompts"] = {"luna": "You are Luna."}
    lab.step("gen-1")
    lab.prompts.clear()
    lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.RUNNING, "its Job runs"
    lab.change("gen-1", suspend=True)
    lab.step("gen-1")
    lab.change("gen-1", suspend=False)
    lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.PENDING


def test_a_service_of_someone_else_is_waited_for(lab: Lab) -> None:
    lab.put("gen-1")
    lab.taken = True
    lab.step("gen-1")
    assert lab.condition("gen-1", "PrerequisitesMet")[1] == "ServiceNameTaken"
    lab.taken = False
    lab.until_stage("gen-1", Stage.EVALUATE)
    lab.taken = True
    lab.go("gen-1", rounds=6)
    assert lab.status("gen-1").phase is Phase.AWAITING_PROMOTION
    assert lab.condition("gen-1", "Progressing")[:2] == ("False", "ServiceNameTaken")
    lab.taken = False
    lab.go("gen-1")
    assert lab.serving() == "gen-1"


def test_a_deleted_service_is_brought_back_by_who_serves_and_waited_for_by_the_others(two: Lab) -> None:
    two.put("gen-3")
    two.until_stage("gen-3", Stage.EVALUATE)
    two.put("gen-4")
    two.put("sol-1", lineage="sol")
    del two.services["luna"]
    two.go("gen-3", rounds=4)
    two.step("gen-4")
    two.step("sol-1")
    assert two.condition("gen-3", "Progressing")[1] == "ServiceGone"
    assert two.condition("gen-4", "PrerequisitesMet")[1] == "ServiceGone"
    assert two.status("sol-1").phase is Phase.RUNNING
    two.taken = True
    two.step("gen-2")
    assert two.services == {}
    two.taken = False
    assert two.events(two.step("gen-2")) == ["ServiceRestored"]
    assert two.serving() == "gen-2"
    two.go("gen-3")
    assert two.serving() == "gen-3"


# ------------------------------------------------------------------ ends


def test_abort_stops_the_job(lab: Lab) -> None:
    lab.put("gen-1")
    lab.until_stage("gen-1", Stage.SFT)
    [job] = lab.live()
    lab.annotate("gen-1", COMMAND_ABORT)
    plan = lab.step("gen-1")
    assert plan is not None
    assert [r.name for r in plan.delete] == [job]
    assert lab.status("gen-1").phase is Phase.ABORTED
    assert lab.status("gen-1").commands[0].outcome == "aborted"
    lab.annotate("gen-1", COMMAND_ABORT, "again")
    lab.go("gen-1", rounds=3)
    assert lab.status("gen-1").phase is Phase.ABORTED


def test_the_deadline_counts_neither_suspension_nor_what_came_before_the_start(lab: Lab) -> None:
    lab.put("gen-1", activeDeadlineSeconds=1000, suspend=True)
    lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.SUSPENDED
    lab.advance(5000)
    lab.change("gen-1", suspend=False)
    lab.step("gen-1")
    assert lab.status("gen-1").suspended_seconds == 0, "it had not started"
    lab.advance(600)
    lab.change("gen-1", suspend=True)
    lab.step("gen-1")
    assert lab.live() == []
    lab.advance(9000)
    lab.settle()
    lab.change("gen-1", suspend=False)
    plan = lab.step("gen-1")
    assert plan is not None
    assert plan.requeue_after is not None
    assert lab.events(plan) == ["Resumed", "StageStarted"]
    assert lab.status("gen-1").suspended_seconds == 9000
    lab.advance(401)
    lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.FAILED
    assert lab.condition("gen-1", "Progressing")[1] == "DeadlineExceeded"
    assert lab.live() == []


def test_a_clock_that_is_behind_takes_no_time_away(lab: Lab) -> None:
    lab.put("gen-1")
    lab.step("gen-1")
    lab.change("gen-1", suspend=True)
    lab.step("gen-1")
    lab.advance(-5)
    lab.change("gen-1", suspend=False)
    lab.step("gen-1")
    assert lab.status("gen-1").suspended_seconds == 0


def test_a_resumed_stage_waits_until_the_old_job_is_gone(lab: Lab) -> None:
    lab.put("gen-1")
    lab.until_stage("gen-1", Stage.SFT)
    [old] = lab.live()
    lab.change("gen-1", suspend=True)
    lab.step("gen-1")
    lab.step("gen-1")
    assert lab.jobs[old].view.state is JobState.DELETING
    lab.change("gen-1", suspend=False)
    lab.step("gen-1")
    assert lab.live() == []
    del lab.jobs[old]
    lab.step("gen-1")
    stage = next(s for s in lab.status("gen-1").stages if s.name is Stage.SFT)
    assert (stage.attempts, stage.state) == (2, StageState.RUNNING)
    assert lab.live() == [stage.job]


def test_a_lost_snapshot_ends_it_and_stops_its_job(lab: Lab) -> None:
    lab.put("gen-1")
    lab.until_stage("gen-1", Stage.SFT)
    name = lab.status("gen-1").snapshot
    assert name is not None
    del lab.children[name.name]
    lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.FAILED
    assert lab.condition("gen-1", "Progressing")[1] == "SnapshotLost"
    assert lab.live() == []


def test_a_snapshot_whose_status_was_lost_is_the_one_that_counts(lab: Lab) -> None:
    lab.put("gen-1")
    lab.step("gen-1")
    lab.settle()
    lab.step("gen-1", cut=1)
    assert lab.status("gen-1").snapshot is None
    lab.put("other")
    lab.go("other")
    lab.step("gen-1")
    assert lab.status("gen-1").production_digest is None, "it was taken while nothing served"
    lab.go("gen-1")
    verdict = lab.status("gen-1").verdict
    assert verdict is not None
    assert verdict.result is Verdict.STALE_BASELINE
    assert "judged while nothing served, now other" in verdict.message


def test_after_the_ttl_jobs_and_their_config_maps_go(lab: Lab) -> None:
    lab.put("gen-1", ttlSecondsAfterFinished=1000)
    lab.go("gen-1")
    assert lab.jobs
    plan = lab.step("gen-1")
    assert plan is not None
    assert plan.requeue_after is not None
    lab.advance(1000)
    lab.step("gen-1")
    lab.settle()
    assert lab.jobs == {}
    assert {m["metadata"]["labels"][LABEL_COMPONENT] for m in lab.children.values()} == {"snapshot", "gateway"}
    assert [s.state for s in lab.status("gen-1").stages] == [StageState.SUCCEEDED] * 4
    after = lab.step("gen-1")
    assert after is not None
    assert after.delete == ()
