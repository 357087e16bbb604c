"""Whom an event concerns."""

from typing import Any

from flywheel_operator.kube.resources import Key
from flywheel_operator.watch.routing import Router
from tests.operator.kube_objects import MARKS, Raw, generation_raw, reward_model_raw


def gen(name: str, namespace: str = "ns", status: Raw | None = None, **spec: Any) -> Raw:  # noqa: ANN401 -- spec fields
    raw = generation_raw(name, **spec)
    raw["metadata"] |= {"namespace": namespace, "uid": name, "generation": 1}
    return raw | {"status": status or {}}


def rm(name: str, phase: str = "Pending") -> Raw:
    raw = reward_model_raw(name)
    raw["metadata"] |= {"namespace": "ns", "uid": name, "generation": 1}
    return raw | {"status": {"phase": phase}}


def names(keys: set[Key]) -> set[str]:
    return {key.name for key in keys}


def test_those_that_wait_for_a_reward_model_are_woken_when_it_appears_and_when_it_is_ready() -> None:
    router = Router()
    router.own(gen("g1", rewards=[{"rewardModel": "rm1"}]))
    router.own(gen("g2", lineage="mars", rewards=[{"rewardModel": "other"}]))
    router.own(gen("g3", "elsewhere", rewards=[{"rewardModel": "rm1"}]))
    assert names(router.own(rm("rm1"))) == {"rm1", "g1"}
    assert names(router.own(rm("rm1"))) == set()
    assert names(router.own(rm("rm1", "Ready"))) == {"g1"}
    assert names(router.own(rm("rm1", "Ready"), deleted=True)) == {"rm1", "g1"}


def test_children_and_lineage_mates_are_woken_by_what_they_look_at_only() -> None:
    router = Router()
    router.own(gen("child", lineage="sun", parent={"generation": "g1"}))
    router.own(gen("mate"))
    router.own(gen("stranger", lineage="mars"))
    assert names(router.own(gen("g1"))) == {"g1", "child", "mate"}
    # Progress concerns nobody else.
    assert names(router.own(gen("g1", status={"stage": "sft", "progress": "3%"}))) == set()
    assert names(router.own(gen("g1", status={"phase": "Running"}))) == {"g1", "child", "mate"}
    serving = {"phase": "Running", "conditions": [{"type": "Serving", "status": "True", "reason": "Production"}]}
    assert names(router.own(gen("g1", status=serving))) == {"g1", "child", "mate"}
    assert names(router.own(gen("g1", status=serving))) == set()
    # Before the start, a Generation may be moved to another lineage: both are concerned.
    assert names(router.own(gen("g1", lineage="mars", status={"phase": "Pending"}))) == {
        "g1",
        "child",
        "mate",
        "stranger",
    }


def test_events_of_children_concern_the_owner() -> None:
    router = Router()
    pod = {"metadata": {"name": "p", "namespace": "ns", "labels": MARKS}}
    assert router.child(pod) == {Key("Generation", "ns", "g1")}
    assert router.child({"metadata": {"name": "p", "namespace": "ns"}}) == set()
    odd = {"metadata": {"namespace": "ns", "labels": MARKS | {"characterflywheel.dev/owner-kind": "Secret"}}}
    assert router.child(odd) == set()


def test_the_public_service_concerns_the_whole_lineage() -> None:
    router = Router()
    for raw in (gen("g1"), gen("g2"), gen("g3", lineage="mars"), gen("g4", "elsewhere")):
        router.own(raw)
    service = {"metadata": {"name": "luna", "namespace": "ns", "labels": {"characterflywheel.dev/lineage": "luna"}}}
    assert names(router.child(service)) == {"g1", "g2"}


def test_what_is_gone_unnoticed_is_forgotten() -> None:
    router = Router()
    router.own(gen("g1"))
    router.own(gen("g2"))
    assert router.keep_only({Key("Generation", "ns", "g2")}) == {Key("Generation", "ns", "g1")}
    assert names(router.own(gen("g3"))) == {"g3", "g2"}
    assert names(router.own(gen("none"), deleted=True)) == {"none"}


def test_keys_read_as_people_write_them() -> None:
    assert str(Key("Generation", "ns", "g1")) == "Generation/ns/g1"
