"""A Generation that is promoted, serves, makes room for the next one and is deleted."""

import dataclasses
from typing import Any

import pytest

from flywheel_operator.model.names import (
    COMMAND_ABORT,
    COMMAND_PROMOTE,
    COMMAND_RETIRE,
    COMMAND_ROLLBACK,
)
from flywheel_operator.model.names import FINALIZER_SERVING as FINALIZER
from flywheel_operator.model.observed import ServerView
from flywheel_operator.model.phases import Phase, Verdict
from flywheel_operator.plan import generation as planner
from tests.unit.lab import Lab

# ------------------------------------------------------------------ promotion


def test_promotion_by_hand(lab: Lab) -> None:
    lab.put("gen-1", rollout={"promotion": "Manual"})
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    lab.go("gen-1", rounds=4)
    wanted = lab.status("gen-1").promotion_hash
    assert wanted is not None
    assert lab.deployments == {}
    assert f"{COMMAND_PROMOTE}={wanted}" in lab.condition("gen-1", "Progressing")[2]
    lab.annotate("gen-1", COMMAND_PROMOTE, "wrong")
    assert lab.events(lab.step("gen-1")) == ["PromotionRefused"]
    lab.step("gen-1")
    assert "promote=wrong is not what was judged" in lab.condition("gen-1", "Progressing")[2]
    lab.annotate("gen-1", COMMAND_PROMOTE, wanted)
    assert lab.events(lab.step("gen-1")) == ["Approved"]
    lab.go("gen-1", rounds=5)
    assert lab.serving() == "gen-1"


def test_a_server_that_never_answers_ends_it(lab: Lab) -> None:
    lab.put("gen-1", serving={"startupTimeoutSeconds": 100})
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    lab.advance(60)
    lab.step("gen-1")
    assert "0 of 1 ready" in lab.condition("gen-1", "Progressing")[2]
    lab.advance(60)
    lab.step("gen-1")
    assert lab.condition("gen-1", "Progressing")[1] == "ServerNotReady"
    assert lab.status("gen-1").phase is Phase.FAILED
    assert lab.deployments["gen-1-server"]["spec"]["replicas"] == 0
    assert lab.serving() is None


def test_what_a_server_says_is_handed_on_and_an_unseen_spec_is_not_ready(lab: Lab) -> None:
    lab.put("gen-1")
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    observed = lab.observe("gen-1")
    view = next(iter(observed.servers.values()))
    silly = ServerView("gen-1", view.model_digest, 1, 1, up_to_date=False, message="Insufficient memory")
    plan = planner.plan(dataclasses.replace(observed, servers={"gen-1": silly}))
    assert plan.switch is None
    progressing = next(c for c in plan.status.conditions if c.type == "Progressing")
    assert "Insufficient memory" in progressing.message


def test_suspension_starts_the_servers_time_anew(lab: Lab) -> None:
    lab.put("gen-1", serving={"startupTimeoutSeconds": 100})
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    lab.change("gen-1", suspend=True)
    lab.step("gen-1")
    lab.advance(10_000)
    lab.change("gen-1", suspend=False)
    lab.step("gen-1")
    assert lab.status("gen-1").phase is Phase.AWAITING_PROMOTION


@pytest.mark.parametrize("then", ["abort", "suspend", "deadline", "delete", "nothing", "superseded"])
def test_what_was_switched_was_promoted_whatever_comes_next(lab: Lab, then: str) -> None:
    """The pass that switched production was cut off before it could write so."""
    lab.put("gen-1", activeDeadlineSeconds=100_000)
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    lab.settle()
    lab.step("gen-1")
    assert lab.serving() == "gen-1"
    assert lab.status("gen-1").phase is Phase.AWAITING_PROMOTION
    match then:
        case "abort":
            lab.annotate("gen-1", COMMAND_ABORT)
        case "suspend":
            lab.change("gen-1", suspend=True)
        case "deadline":
            lab.advance(200_000)
        case "delete":
            lab.remove("gen-1")
        case "superseded":
            lab.put("gen-2")
            lab.go("gen-2")
            assert lab.serving() == "gen-2"
    lab.step("gen-1")
    status = lab.status("gen-1")
    assert status.phase is Phase.COMPLETED
    assert status.verdict is not None
    assert status.verdict.result is Verdict.PROMOTED
    assert lab.condition("gen-1", "Serving")[0] == ("False" if then == "superseded" else "True")


def test_production_that_moved_is_never_replaced(lab: Lab) -> None:
    lab.put("gen-1", rollout={"promotion": "Manual"})
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    lab.put("gen-2")
    lab.go("gen-2")
    lab.step("gen-1")
    verdict = lab.status("gen-1").verdict
    assert verdict is not None
    assert (verdict.result, verdict.reason) == (Verdict.STALE_BASELINE, "ProductionMoved")
    assert lab.serving() == "gen-2"


def test_a_lineage_that_was_retired_meanwhile_is_stale_too(two: Lab) -> None:
    two.put("gen-3", rollout={"promotion": "Manual"})
    two.until("gen-3", Phase.AWAITING_PROMOTION)
    two.annotate("gen-2", COMMAND_RETIRE)
    plan = two.step("gen-2")
    assert plan is not None
    assert set(plan.wake) == {"gen-1", "gen-3"}
    two.step("gen-3")
    verdict = two.status("gen-3").verdict
    assert verdict is not None
    assert "judged while gen-2 served, now nothing serves" in verdict.message


def test_an_old_object_made_anew_never_replaces_a_newer_model(two: Lab) -> None:
    two.remove("gen-1")
    two.step("gen-1")
    assert two.gone("gen-1")
    two.put("gen-1")
    two.go("gen-1", rounds=3)
    verdict = two.status("gen-1").verdict
    assert verdict is not None
    assert (verdict.result, verdict.reason) == (Verdict.STALE_BASELINE, "ServedBefore")
    assert two.serving() == "gen-2"
    two.annotate("gen-2", COMMAND_RETIRE)
    two.step("gen-2")
    two.remove("gen-1")
    two.step("gen-1")
    two.put("gen-1")
    two.step("gen-1")
    assert "nothing serves now" in (two.status("gen-1").verdict or pytest.fail("no verdict")).message


@pytest.mark.parametrize("spec", [{}, {"suspend": True}])
def test_an_object_made_anew_of_what_serves_takes_it_over(two: Lab, spec: dict[str, Any]) -> None:
    del two.generations["gen-2"]  # its finalizer was torn off
    del two.deployments["gen-2-server"]
    two.put("gen-2", **spec)
    two.step("gen-2")
    status = two.status("gen-2")
    assert status.phase is Phase.COMPLETED
    assert status.verdict is not None
    assert (status.verdict.result, status.verdict.reason) == (Verdict.PROMOTED, "AlreadyServing")
    assert two.generation("gen-2").metadata.finalizers == [FINALIZER]
    assert two.deployments["gen-2-server"]["spec"]["replicas"] == 1
    assert two.live() == []


# ------------------------------------------------------------------ serving


def test_a_superseded_server_drains_before_it_is_scaled_to_zero(lab: Lab) -> None:
    lab.put("gen-1", serving={"drainSeconds": 300})
    lab.go("gen-1")
    lab.put("gen-2")
    lab.until("gen-2", Phase.COMPLETED)
    plan = lab.step("gen-1")
    assert plan is not None
    assert plan.apply == ()
    assert plan.requeue_after is not None
    assert 0 < plan.requeue_after <= 300
    lab.advance(301)
    lab.step("gen-1")
    assert lab.deployments["gen-1-server"]["spec"]["replicas"] == 0


def test_rollback(two: Lab) -> None:
    two.annotate("gen-2", COMMAND_ROLLBACK)
    plan = two.step("gen-2")
    assert plan is not None
    assert plan.wake == ("gen-1",)
    assert two.condition("gen-2", "Serving")[:2] == ("True", "RollingBack")
    assert two.serving() == "gen-2", "until the other one answers"
    two.step("gen-1")
    two.step("gen-2")
    assert two.serving() == "gen-2"
    two.settle()
    assert two.events(two.step("gen-2")) == ["RolledBack"]
    assert two.serving() == "gen-1"
    two.go("gen-2", rounds=6)
    two.go("gen-1", rounds=2)
    assert two.condition("gen-2", "Serving")[:2] == ("False", "RolledBack")
    assert two.condition("gen-1", "Serving")[:2] == ("True", "Production")
    assert two.status("gen-1").superseded_time is None
    assert two.status("gen-2").verdict is not None
    two.annotate("gen-1", COMMAND_ROLLBACK)
    assert two.events(two.step("gen-1")) == ["RollbackRefused"]
    assert two.status("gen-1").commands[-1].outcome == "refused: no earlier Generation served this lineage"


def test_a_rollback_that_was_cut_off_is_not_done_twice(two: Lab) -> None:
    two.annotate("gen-2", COMMAND_ROLLBACK)
    two.step("gen-2")
    two.step("gen-1")
    two.settle()
    two.step("gen-2", cut=1)
    assert two.serving() == "gen-1"
    assert two.status("gen-2").commands == []
    two.step("gen-2")
    assert two.status("gen-2").commands[0].outcome == "nothing to do: RolledBack"
    two.go("gen-1", rounds=3)
    assert two.serving() == "gen-1"


@pytest.mark.parametrize("why", ["gone", "deleting", "other"])
def test_a_rollback_to_what_is_gone_is_refused(two: Lab, why: str) -> None:
    if why == "gone":
        del two.generations["gen-1"]
    elif why == "deleting":
        two.remove("gen-1")
    else:
        two.generations["gen-1"]["status"].pop("candidate")
        two.step("gen-1")
    two.annotate("gen-2", COMMAND_ROLLBACK)
    assert two.events(two.step("gen-2")) == ["RollbackRefused"]
    assert two.status("gen-2").commands[0].outcome == "refused: gen-1 is gone"
    assert two.serving() == "gen-2"


def test_commands_to_what_does_not_serve_never_fire_later(lab: Lab) -> None:
    lab.put("gen-1")
    lab.annotate("gen-1", COMMAND_RETIRE)
    lab.annotate("gen-1", COMMAND_ROLLBACK)
    lab.step("gen-1")
    assert {c.outcome for c in lab.status("gen-1").commands} == {"nothing to do: it does not serve"}
    lab.go("gen-1")
    assert lab.serving() == "gen-1"


def test_retirement(two: Lab) -> None:
    two.annotate("gen-2", COMMAND_RETIRE)
    assert two.events(two.step("gen-2")) == ["Retired"]
    assert two.serving() is None
    two.go("gen-2", rounds=6)
    assert two.condition("gen-2", "Serving") == ("False", "Retired", "nothing serves now")
    assert two.deployments["gen-2-server"]["spec"]["replicas"] == 0
    two.put("gen-3")
    two.go("gen-3")
    assert two.serving() == "gen-3"


def test_a_server_that_was_tampered_with_is_put_right(two: Lab) -> None:
    two.deployments["gen-2-server"]["spec"]["replicas"] = 3
    two.step("gen-2")
    assert two.deployments["gen-2-server"]["spec"]["replicas"] == 1


# ------------------------------------------------------------------ deletion


def test_what_serves_is_not_deleted_from_under_its_users(two: Lab) -> None:
    two.remove("gen-2")
    assert two.events(two.step("gen-2")) == ["DeletionBlocked"]
    assert two.events(two.step("gen-2")) == [], "said once"
    assert "kubectl annotate gen gen-2" in two.condition("gen-2", "Serving")[2]
    two.put("gen-3")
    two.go("gen-3")
    assert two.serving() == "gen-3"
    two.step("gen-2")
    two.go("gen-2", rounds=6)
    assert two.gone("gen-2")
    assert "gen-2-server" not in two.deployments


@pytest.mark.parametrize("command", [COMMAND_RETIRE, COMMAND_ROLLBACK])
def test_the_ways_out_for_one_that_is_to_be_deleted(two: Lab, command: str) -> None:
    two.remove("gen-2")
    two.annotate("gen-2", command)
    two.step("gen-2")
    two.step("gen-1")
    two.settle()
    two.step("gen-2")
    assert two.serving() == (None if command == COMMAND_RETIRE else "gen-1")
    plan = two.step("gen-2")
    assert plan is not None
    assert plan.delete == (), "it drains first"
    assert plan.requeue_after is not None
    two.advance(61)
    two.step("gen-2")
    assert two.gone("gen-2")


def test_a_namespace_that_goes_is_not_held_up(two: Lab) -> None:
    two.remove("gen-2")
    plan = planner.plan(dataclasses.replace(two.observe("gen-2"), namespace_terminating=True))
    assert plan.remove_finalizer == FINALIZER
    assert [r.kind for r in plan.delete] == ["Deployment", "ConfigMap"]


def test_one_that_never_had_a_server_just_goes(lab: Lab) -> None:
    lab.put("gen-1")
    lab.step("gen-1")
    lab.remove("gen-1")
    plan = lab.step("gen-1")
    assert plan is not None
    assert (plan.delete, plan.remove_finalizer) == ((), None)
    assert lab.gone("gen-1")


def test_one_that_awaits_promotion_takes_its_server_along(lab: Lab) -> None:
    lab.put("gen-1")
    lab.until("gen-1", Phase.AWAITING_PROMOTION)
    assert lab.deployments
    lab.remove("gen-1")
    lab.step("gen-1")
    assert lab.gone("gen-1")
    assert lab.deployments == {}


# ------------------------------------------------------------------ what the server's pods mount


def test_a_lost_configuration_of_the_gateway_is_made_anew(lab: Lab) -> None:
    lab.put("gen-1")
    lab.go("gen-1")
    assert lab.serving() == "gen-1"
    observed = lab.observe("gen-1")
    quiet = planner.plan(observed)
    assert (quiet.create, quiet.apply) == ((), ()), "a pass in which nothing is amiss asks for nothing"
    view = observed.servers["gen-1"]
    lost = dataclasses.replace(observed, servers={"gen-1": dataclasses.replace(view, config_lost=True)})
    plan = planner.plan(lost)
    assert [m["kind"] for m in plan.create] == ["Secret", "ConfigMap"]
    (server,) = plan.apply
    assert server["spec"]["replicas"] == view.replicas
    mounted = {
        v["name"]: v["configMap"]["name"] for v in server["spec"]["template"]["spec"]["volumes"] if "configMap" in v
    }
    assert mounted == {"gateway-config": plan.create[1]["metadata"]["name"]}, "the observer looks at it by this name"


def test_that_of_a_server_that_drains_is_left(lab: Lab) -> None:
    for name in ("gen-1", "gen-2"):
        lab.put(name, serving={"drainSeconds": 86400})
        lab.go(name)
    observed = lab.observe("gen-1")
    assert observed.servers["gen-1"].replicas == 1
    view = dataclasses.replace(observed.servers["gen-1"], config_lost=True)
    plan = planner.plan(dataclasses.replace(observed, servers={**observed.servers, "gen-1": view}))
    assert (plan.create, plan.apply) == ((), ())
