"""The way out of an ABTest: aborted, ended or deleted, its users have another way first."""

import dataclasses

from flywheel_operator.model.names import COMMAND_ABORT, FINALIZER_ROUTING
from flywheel_operator.model.phases import ABTestPhase
from flywheel_operator.plan import abtest
from tests.unit.abtest_bench import NAME, Bench, between_generations, result


def test_abort_gives_the_users_back(bench: Bench) -> None:
    bench.until_running()
    bench.raw["metadata"]["annotations"] = {COMMAND_ABORT: "yes"}
    bench.step()
    assert bench.phase is ABTestPhase.ABORTED
    assert bench.record is not None
    assert bench.record.router is None


ARMS = {("Service", f"{NAME}-control"), ("Service", f"{NAME}-treatment")}
ROUTER = f"{NAME}-router"
ROUTER_DRAIN = 80  # docs/router.md: what the router's pods wait for


def test_deletion_lets_users_leave_the_router_and_then_the_router_leave_the_arms() -> None:
    bench = between_generations(treatment={"model": "pvc://m/other"}, serving={"drainSeconds": 30})
    bench.until_running()
    held = {ROUTER, f"{NAME}-treatment-server"}
    bench.delete()
    bench.step()
    assert bench.record is not None
    assert bench.record.router is None, "first of all users go straight to what serves"
    assert bench.step().requeue_after == 30
    bench.advance(29)
    assert bench.step().requeue_after == 1
    assert set(bench.deployments) == held
    bench.advance(1)
    assert bench.step().requeue_after == ROUTER_DRAIN
    assert set(bench.deployments) == held - {ROUTER}
    bench.advance(ROUTER_DRAIN - 1)
    bench.step()
    assert set(bench.deployments) == held - {ROUTER}, "the router's pods still send it their clients"
    assert set(bench.manifests) >= ARMS
    assert bench.raw["metadata"]["finalizers"] == [FINALIZER_ROUTING]
    bench.advance(1)
    bench.step()
    assert bench.deployments == {}
    assert not ARMS & set(bench.manifests), "they have no owner to go with"
    assert bench.raw["metadata"]["finalizers"] == []


def test_the_router_goes_before_the_arms_at_the_normal_end() -> None:
    bench = between_generations(treatment={"model": "pvc://m/other"}, serving={"drainSeconds": 30})
    bench.until_running()
    bench.to_the_end(result(0.0))
    bench.step()
    bench.advance(30)
    bench.step()
    assert set(bench.deployments) == {f"{NAME}-treatment-server"}
    bench.advance(ROUTER_DRAIN)
    bench.step()
    assert bench.deployments == {}
    bench.delete()
    plan = bench.step()
    assert plan.remove_finalizer == FINALIZER_ROUTING, "nobody has come through it for long"
    assert not ARMS & set(bench.manifests)


def test_a_foreground_deletion_takes_nothing_that_users_come_through() -> None:
    bench = between_generations(
        control={"model": "pvc://m/base"}, treatment={"service": {"name": "vllm", "port": 8000}}
    )
    bench.until_running()
    owned = {kind for (kind, _), made in bench.manifests.items() if "ownerReferences" in made["metadata"]}
    assert owned == {"ConfigMap", "Job", "PodDisruptionBudget"}
    assert {kind for kind, _ in bench.manifests} - owned == {"Deployment", "Secret", "Service"}


def test_users_without_another_way_keep_router_and_control_until_it_is_deleted() -> None:
    bench = between_generations(
        control={"model": "pvc://m/base"}, treatment={"model": "pvc://m/other"}, serving={"drainSeconds": 30}
    )
    bench.generations, bench.record = {}, None
    bench.until_running()
    bench.to_the_end(result(0.1))
    bench.step()
    bench.advance(3600)
    bench.step()
    stay = {ROUTER, f"{NAME}-control-server"}
    assert set(bench.deployments) == stay
    bench.delete()
    bench.step()
    bench.step()
    bench.advance(29)
    bench.step()
    assert set(bench.deployments) == stay, "who is connected stays so while it drains"
    bench.advance(1 + ROUTER_DRAIN)
    bench.step()
    assert bench.deployments == {}
    assert bench.raw["metadata"]["finalizers"] == []


def test_one_whose_first_pass_broke_deletes_no_service_of_others(bench: Bench) -> None:
    bench.raw["metadata"]["finalizers"] = [FINALIZER_ROUTING]
    bench.delete()
    bench.step()
    bench.advance(3600)
    plan = bench.step()
    assert (plan.delete, plan.remove_finalizer) == ((), FINALIZER_ROUTING)


def test_one_that_never_started_leaves_nothing(bench: Bench) -> None:
    bench.generations.pop("luna-2")
    bench.step()
    bench.raw["metadata"]["annotations"] = {COMMAND_ABORT: "yes"}
    plan = bench.step()
    assert bench.phase is ABTestPhase.ABORTED
    assert (plan.switch, plan.apply, plan.delete) == (None, (), ())
    bench.raw["metadata"]["deletionTimestamp"] = "2026-01-03T00:00:00Z"
    assert bench.step().remove_finalizer is None


def test_a_whole_namespace_that_goes_is_not_held_up(bench: Bench) -> None:
    bench.until_running()
    bench.raw["metadata"]["deletionTimestamp"] = "2026-01-03T00:00:00Z"
    bench.record = None
    plan = abtest.plan(dataclasses.replace(bench.observe(), namespace_terminating=True))
    assert (plan.switch, plan.remove_finalizer) == (None, FINALIZER_ROUTING)
