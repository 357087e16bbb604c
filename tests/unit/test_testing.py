"""Between the gates and the promotion: the online test of a Generation."""

import dataclasses
import random
from typing import Any

import pytest

from flywheel_operator.model.abtest_status import AbVerdictStatus
from flywheel_operator.model.experiment import AbReason, AbVerdict
from flywheel_operator.model.names import COMMAND_ABORT, test_name
from flywheel_operator.model.phases import ABTestPhase, Phase, Verdict
from flywheel_operator.plan import generation
from tests.unit.lab import Lab

TEST = "gen-2-test"
test_name.__test__ = False  # type: ignore[attr-defined] -- pytest would collect it by its name


@pytest.fixture
def lab() -> Lab:
    """gen-1 serves; gen-2 has passed its gates and is tried on users."""
    made = Lab(random.Random(0))
    made.put("gen-1")
    made.go("gen-1")
    made.put("gen-2", rollout={"abTest": {"targetLift": 0.02}})
    made.go("gen-2", rounds=30)
    return made


def verdict(lab: Lab, result: AbVerdict, reason: AbReason = AbReason.PRIMARY_LIFTED) -> None:
    given = AbVerdictStatus(result=result, reason=reason, message="because of the numbers")
    status(lab, phase=ABTestPhase.COMPLETED, verdict=given)


def status(lab: Lab, **fields: Any) -> None:  # noqa: ANN401 -- fields of the status
    test = lab.tests[TEST]
    lab.tests[TEST] = test.model_copy(update={"status": test.status.model_copy(update=fields)})


def test_what_passed_its_gates_is_tried_against_what_serves(lab: Lab) -> None:
    assert lab.status("gen-2").phase is Phase.TESTING
    assert lab.status("gen-2").ab_test == TEST
    assert lab.serving() == "gen-1"
    spec = lab.tests[TEST].spec
    assert (spec.control.generation, spec.treatment.generation) == ("gen-1", "gen-2")
    assert spec.target_lift == 0.02
    assert spec.lineage == "luna"
    assert lab.deployments["gen-2-server"]["spec"]["replicas"] == 1, "its server is up before the test begins"


def test_the_winner_is_promoted(lab: Lab) -> None:
    verdict(lab, AbVerdict.TREATMENT_WINS)
    lab.go("gen-2")
    assert lab.serving() == "gen-2"
    assert lab.verdict("gen-2").result is Verdict.PROMOTED


def test_by_hand_the_winner_waits_for_a_word() -> None:
    lab = Lab(random.Random(0))
    lab.put("gen-1")
    lab.go("gen-1")
    lab.put("gen-2", rollout={"promotion": "Manual", "abTest": {}})
    lab.go("gen-2", rounds=30)
    verdict(lab, AbVerdict.TREATMENT_WINS)
    lab.go("gen-2", rounds=5)
    assert lab.status("gen-2").phase is Phase.AWAITING_PROMOTION
    assert lab.condition("gen-2", "Progressing")[1] == "AwaitingApproval"
    del lab.tests[TEST]
    lab.step("gen-2")
    assert lab.status("gen-2").phase is Phase.AWAITING_PROMOTION, "a test that was won may be tidied away"


@pytest.mark.parametrize(
    ("result", "reason", "out"),
    [
        (AbVerdict.CONTROL_WINS, AbReason.PRIMARY_DROPPED, Verdict.REJECTED),
        (AbVerdict.GUARDRAIL_BROKEN, AbReason.GUARDRAIL_FAILED, Verdict.REJECTED),
        (AbVerdict.INCONCLUSIVE, AbReason.NO_PRIMARY_MOVED, Verdict.INCONCLUSIVE),
    ],
)
def test_the_others_are_not(lab: Lab, result: AbVerdict, reason: AbReason, out: Verdict) -> None:
    verdict(lab, result, reason)
    lab.go("gen-2")
    assert lab.serving() == "gen-1"
    assert lab.verdict("gen-2").result is out
    assert lab.verdict("gen-2").reason == reason.value
    assert "because of the numbers" in lab.verdict("gen-2").message
    lab.go("gen-2", rounds=4)
    assert lab.deployments["gen-2-server"]["spec"]["replicas"] == 0


def test_inconclusive_is_a_rejection_by_policy() -> None:
    lab = Lab(random.Random(0))
    lab.put("gen-1")
    lab.go("gen-1")
    lab.put("gen-2", rollout={"abTest": {"onInconclusive": "Reject"}})
    lab.go("gen-2", rounds=30)
    verdict(lab, AbVerdict.INCONCLUSIVE, AbReason.NO_PRIMARY_MOVED)
    lab.go("gen-2")
    assert lab.verdict("gen-2").result is Verdict.REJECTED


@pytest.mark.parametrize(
    ("phase", "reason"), [(ABTestPhase.FAILED, "TestFailed"), (ABTestPhase.ABORTED, "TestAborted")]
)
def test_a_test_without_a_verdict_promotes_nothing(lab: Lab, phase: ABTestPhase, reason: str) -> None:
    status(lab, phase=phase)
    lab.go("gen-2")
    assert (lab.verdict("gen-2").result, lab.verdict("gen-2").reason) == (Verdict.INCONCLUSIVE, reason)
    assert lab.serving() == "gen-1"


def test_nor_does_one_that_was_deleted(lab: Lab) -> None:
    del lab.tests[TEST]
    lab.go("gen-2")
    assert lab.verdict("gen-2").reason == "TestDeleted"
    assert lab.serving() == "gen-1"


def test_nor_does_one_that_was_deleted_while_its_generation_was_suspended(lab: Lab) -> None:
    lab.change("gen-2", suspend=True)
    lab.step("gen-2")
    del lab.tests[TEST]
    lab.change("gen-2", suspend=False)
    lab.go("gen-2")
    assert lab.verdict("gen-2").reason == "TestDeleted"
    assert lab.serving() == "gen-1"


def test_what_is_tried_is_followed_to_its_verdict_whatever_the_spec_says_meanwhile(lab: Lab) -> None:
    lab.change("gen-2", rollout={})
    lab.go("gen-2", rounds=5)
    assert lab.status("gen-2").phase is Phase.TESTING
    assert lab.serving() == "gen-1"
    verdict(lab, AbVerdict.CONTROL_WINS, AbReason.PRIMARY_DROPPED)
    lab.go("gen-2")
    assert lab.verdict("gen-2").result is Verdict.REJECTED


def test_what_serves_the_users_of_a_test_never_brings_the_service_back(lab: Lab) -> None:
    status(lab, phase=ABTestPhase.RUNNING)
    lab.step("gen-2")
    del lab.services["luna"]
    lab.go("gen-2", rounds=3)
    assert lab.services == {}
    lab.step("gen-1")
    assert lab.serving() == "gen-1"


@pytest.mark.parametrize("phase", [ABTestPhase.PENDING, ABTestPhase.RUNNING])
def test_a_lost_configuration_of_its_gateway_is_made_anew(lab: Lab, phase: ABTestPhase) -> None:
    status(lab, phase=phase)
    observed = lab.observe("gen-2")
    assert generation.plan(observed).create == ()
    view = dataclasses.replace(observed.servers["gen-2"], config_lost=True)
    plan = generation.plan(dataclasses.replace(observed, servers={**observed.servers, "gen-2": view}))
    assert [m["kind"] for m in plan.create] == ["Secret", "ConfigMap"]


def test_production_that_moved_during_the_test_makes_it_stale(lab: Lab) -> None:
    lab.put("gen-3")
    lab.go("gen-3")
    assert lab.serving() == "gen-3"
    verdict(lab, AbVerdict.TREATMENT_WINS)
    lab.go("gen-2")
    assert lab.verdict("gen-2").result is Verdict.STALE_BASELINE
    assert lab.serving() == "gen-3"


def test_while_it_serves_users_of_a_test_status_says_so_and_its_server_stays(lab: Lab) -> None:
    status(lab, phase=ABTestPhase.RUNNING)
    lab.step("gen-2")
    assert lab.condition("gen-2", "Serving")[:2] == ("True", "Canary")
    del lab.deployments["gen-2-server"]
    lab.step("gen-2")
    assert lab.deployments["gen-2-server"]["spec"]["replicas"] == 1
    verdict(lab, AbVerdict.CONTROL_WINS, AbReason.PRIMARY_DROPPED)
    lab.go("gen-2")
    lab.step("gen-2")
    assert lab.condition("gen-2", "Serving")[:2] == ("False", "TestEnded")


def test_without_anything_in_production_the_gates_are_enough() -> None:
    lab = Lab(random.Random(0))
    lab.put("gen-1", rollout={"abTest": {}})
    lab.go("gen-1")
    assert lab.serving() == "gen-1"
    assert lab.tests == {}


def test_what_ended_serves_again_where_another_test_names_it(lab: Lab) -> None:
    verdict(lab, AbVerdict.INCONCLUSIVE, AbReason.NO_PRIMARY_MOVED)
    lab.go("gen-2")
    lab.go("gen-2", rounds=4)
    assert lab.deployments["gen-2-server"]["spec"]["replicas"] == 0
    again = lab.tests[TEST]
    lab.tests["again"] = again.model_copy(
        update={
            "metadata": again.metadata.model_copy(update={"name": "again"}),
            "status": again.status.model_copy(update={"phase": ABTestPhase.PROVISIONING, "verdict": None}),
        }
    )
    lab.step("gen-2")
    assert lab.deployments["gen-2-server"]["spec"]["replicas"] == 1


def test_an_abort_ends_it(lab: Lab) -> None:
    lab.generations["gen-2"]["metadata"].setdefault("annotations", {})[COMMAND_ABORT] = "yes"
    lab.go("gen-2")
    assert lab.status("gen-2").phase is Phase.ABORTED
    assert lab.serving() == "gen-1"


@pytest.mark.parametrize("length", [5, 45, 46, 50])
def test_the_tests_name_fits(length: int) -> None:
    name = test_name("g" * length)
    assert name.endswith("-test")
    assert len(name) <= 50
    assert name != test_name("g" * (length - 1) + "h")
