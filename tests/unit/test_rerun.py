"""The annotation rerun-from: what runs anew, what is reused, what is refused."""

import random

import pytest

from flywheel_contract.stage_spec import SftSpec, inputs_digest, stage_uri
from flywheel_contract.stages import Stage
from flywheel_operator.model.names import COMMAND_ABORT, COMMAND_PROMOTE, COMMAND_RERUN
from flywheel_operator.model.phases import Phase, StageState, Verdict
from tests.unit.lab import Lab

RECIPE = {"sft": {}, "dpo": {}}
PAIRS = {
    "traffic": [{"name": "chats", "origin": "User", "uri": "pvc://data/chats"}],
    "preferences": [{"name": "pairs", "origin": "User", "uri": "pvc://data/pairs"}],
}


@pytest.fixture
def lab() -> Lab:
    made = Lab(random.Random(0))
    made.put("gen-1", recipe=RECIPE, data=PAIRS, rollout={"promotion": "Manual"})
    return made


def stages(lab: Lab) -> dict[str, tuple[StageState, int, int]]:
    return {s.name.value: (s.state, s.attempts, s.rerun) for s in lab.status("gen-1").stages}


def outcome(lab: Lab) -> str:
    return next(c.outcome for c in lab.status("gen-1").commands if c.name == "rerun-from")


def test_a_stage_and_all_behind_it_run_anew_and_overwrite_nothing(lab: Lab) -> None:
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    before = lab.status("gen-1")
    lab.annotate("gen-1", COMMAND_RERUN, "dpo")
    plan = lab.step("gen-1")
    assert [e.message for e in plan.events if e.reason == "Rerun"] == [
        "runs anew from dpo; reused: resolve, curate, sft"
    ]
    status = lab.status("gen-1")
    assert status.phase is Phase.RUNNING
    assert (status.gates, status.candidate, status.promotion_hash, status.win_rate) == ([], None, None, None)
    assert {c.type for c in status.conditions} & {"GatesPassed", "Complete"} == set()
    assert outcome(lab) == "runs anew from dpo"
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    after = lab.status("gen-1")
    assert [s.rerun for s in after.stages] == [0, 0, 0, 1, 1]
    assert [s.attempts for s in after.stages] == [1, 1, 1, 2, 2]
    assert after.stages[:3] == before.stages[:3]
    for old, new in zip(before.stages[3:], after.stages[3:], strict=True):
        assert not new.reused
        assert new.manifest_uri != old.manifest_uri
        assert new.job != old.job
    assert after.gates
    assert after.promotion_hash not in (None, before.promotion_hash), "an old approval does not count"


def test_the_same_stage_once_more_is_asked_by_something_behind_a_slash(lab: Lab) -> None:
    for value in ("evaluate", "evaluate/2"):
        lab.until("gen-1", Phase.AWAITING_PROMOTION)
        lab.annotate("gen-1", COMMAND_RERUN, value)
        lab.step("gen-1")
        assert lab.status("gen-1").phase is Phase.EVALUATING
    assert stages(lab)["evaluate"][2] == 2
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    assert lab.events(lab.step("gen-1")) == [], "it is acted on once"


def test_a_stage_that_runs_is_stopped_first(lab: Lab) -> None:
    lab.until_stage("gen-1", Stage.SFT)
    [running] = lab.live()
    lab.annotate("gen-1", COMMAND_RERUN, "sft")
    plan = lab.step("gen-1")
    assert ("Job", running) in [(ref.kind, ref.name) for ref in plan.delete]
    assert stages(lab)["sft"] == (StageState.PENDING, 1, 1), "two attempts never run at once"
    lab.settle()
    lab.step("gen-1")
    assert stages(lab)["sft"] == (StageState.RUNNING, 2, 1)
    assert lab.live() != [running]


def test_the_end_of_one_that_failed_or_was_aborted_is_no_end(lab: Lab) -> None:
    lab.until_stage("gen-1", Stage.DPO)
    lab.fail(lab.jobs[lab.live()[0]], "mistake")
    lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.FAILED
    lab.annotate("gen-1", COMMAND_RERUN, "dpo")
    lab.step("gen-1")
    assert (lab.status("gen-1").phase, lab.status("gen-1").completion_time) == (Phase.RUNNING, None)
    lab.annotate("gen-1", COMMAND_ABORT)
    lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.ABORTED
    lab.settle()
    lab.annotate("gen-1", COMMAND_RERUN, "sft")
    lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.RUNNING
    lab.go("gen-1")
    lab.annotate("gen-1", COMMAND_PROMOTE, lab.status("gen-1").promotion_hash or "")
    lab.go("gen-1")
    assert lab.verdict("gen-1").result is Verdict.PROMOTED


def test_one_that_was_gated_is_judged_anew(lab: Lab) -> None:
    lab.overfitted.add("gen-1")
    lab.go("gen-1")
    assert lab.verdict("gen-1").result is Verdict.GATED
    lab.overfitted.clear()
    lab.annotate("gen-1", COMMAND_RERUN, "evaluate")
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    assert lab.status("gen-1").verdict is None


def test_the_deadline_counts_anew(lab: Lab) -> None:
    lab.put("gen-1", activeDeadlineSeconds=1000)
    lab.until_stage("gen-1", Stage.SFT)
    lab.advance(1001)
    lab.step("gen-1")
    assert lab.condition("gen-1", "Complete")[1] == "DeadlineExceeded"
    lab.settle()
    lab.annotate("gen-1", COMMAND_RERUN, "sft")
    lab.go("gen-1")
    assert lab.verdict("gen-1").result is Verdict.PROMOTED


def test_suspended_it_waits_until_it_is_resumed(lab: Lab) -> None:
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    lab.change("gen-1", suspend=True)
    lab.step("gen-1")
    lab.annotate("gen-1", COMMAND_RERUN, "sft")
    lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.SUSPENDED
    assert stages(lab)["sft"] == (StageState.PENDING, 1, 1)
    lab.change("gen-1", suspend=False)
    lab.until("gen-1", Phase.AWAITING_PROMOTION)


def test_the_server_of_what_it_had_made_goes(lab: Lab) -> None:
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    lab.annotate("gen-1", COMMAND_PROMOTE, lab.status("gen-1").promotion_hash or "")
    lab.step("gen-1")
    assert list(lab.deployments) == ["gen-1-server"]
    lab.annotate("gen-1", COMMAND_RERUN, "sft")
    lab.step("gen-1")
    assert lab.deployments == {}
    assert lab.condition("gen-1", "Progressing")[1] == "StageRunning"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("resolve", "'resolve' is none of the stages that can run anew: curate, sft, dpo, evaluate"),
        ("rl", "'rl' is none of the stages"),
        ("", "'' is none of the stages"),
        ("x" * 500, f"'{'x' * 64}' is none"),
        ("evaluate", "stage sft, which comes before it, has not succeeded: name that one"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_and_nothing_changes(lab: Lab, value: str, said: str) -> None:
    lab.until_stage("gen-1", Stage.SFT)
    before = stages(lab)
    lab.annotate("gen-1", COMMAND_RERUN, value)
    assert lab.events(lab.step("gen-1")) == ["RerunRefused"]
    assert said in outcome(lab)
    assert stages(lab) == before
    assert lab.events(lab.step("gen-1")) == [], "it is said once"


def test_before_the_snapshot_there_is_nothing_to_run_from(lab: Lab) -> None:
    lab.annotate("gen-1", COMMAND_RERUN, "sft")
    lab.step("gen-1")
    assert "no snapshot to run from" in outcome(lab)
    lab.until("gen-1", Phase.AWAITING_PROMOTION)


def test_what_serves_or_served_is_not_made_anew(lab: Lab) -> None:
    for name in ("gen-1", "gen-2"):
        lab.put(name)
        lab.go(name)
    for _ in range(2):
        lab.annotate("gen-1", COMMAND_RERUN, "sft")
        lab.annotate("gen-2", COMMAND_RERUN, "sft")
        lab.step("gen-1")
        lab.step("gen-2")
        assert "it serves, or has served" in outcome(lab)
        assert lab.verdict("gen-2").result is Verdict.PROMOTED
    assert lab.serving() == "gen-2"


def test_where_production_has_moved_the_verdict_would_say_nothing(lab: Lab) -> None:
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    lab.put("gen-2")
    lab.go("gen-2")
    lab.annotate("gen-1", COMMAND_RERUN, "sft")
    lab.step("gen-1")
    assert "production has moved since its snapshot" in outcome(lab)
    assert lab.verdict("gen-1").result is Verdict.STALE_BASELINE


def test_what_users_saw_in_a_test_is_not_made_anew(lab: Lab) -> None:
    lab.put("gen-0")
    lab.go("gen-0")
    lab.put("gen-1", rollout={"abTest": {"duration": "24h"}})
    lab.until("gen-1", Phase.TESTING)
    lab.annotate("gen-1", COMMAND_RERUN, "sft")
    lab.step("gen-1")
    assert outcome(lab).startswith("refused: the ABTest gen-1-test has shown")
    assert lab.status("gen-1").phase is Phase.TESTING


def test_a_re_run_leaves_its_own_results_and_the_first_run_has_the_old_name() -> None:
    first = SftSpec(owner="gen-1", group="luna", artifacts="pvc://artifacts/runs")
    again = first.model_copy(update={"rerun": 1})
    assert stage_uri(first) != stage_uri(again)
    assert inputs_digest(again) != inputs_digest(first.model_copy(update={"rerun": 2}))
