"""The wheel turns on a real cluster: real Jobs, real training, a real model server. The tests build on one another."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from e2e.kubectl import KubectlError, Manifest
from e2e.world.client import chatting
from e2e.world.manifests import CLAIM, FULL_RECIPE, IMPOSSIBLE, ROOT, SOURCES, generation, reward_model
from e2e.world.world import TERMINAL, World, message, serving, stage

pytestmark = pytest.mark.cluster

ALL_STAGES = ["resolve", "curate", "rejection-sample", "sft", "dpo", "rl", "evaluate"]


def test_reward_models_of_several_references_train_at_once(world: World) -> None:
    world.kubectl.apply(generation("alpha-1", "alpha", recipe=FULL_RECIPE, rewards=[
        {"rewardModel": "tiny"}, {"rewardModel": "tiny-too", "weight": 0.5},
    ]))  # fmt: skip
    waiting = world.phase("alpha-1", "Pending", 60)
    assert "waits for the RewardModel tiny to be created" in message(waiting, "Progressing")
    world.kubectl.apply(reward_model("tiny"), reward_model("tiny-too", seed=1))
    together = world.kubectl.wait(
        "rm", "tiny-too", lambda o: _stage_state(world, "tiny", o) == ("Running", "Running"), 120
    )
    assert together["status"]["phase"] == "Running"
    for name in ("tiny", "tiny-too"):
        ready = world.kubectl.wait("rm", name, lambda o: o["status"]["phase"] in ("Ready", "Gated", "Failed"), 300)
        assert ready["status"]["phase"] == "Ready", ready["status"]
        assert float(ready["status"]["accuracy"]) > 0.8
        metrics = {m["name"]: m for m in stage(ready["status"], "reward-model")["metrics"]}
        assert metrics["trainLossLast"]["value"] < metrics["trainLossFirst"]["value"]
        assert {"lengthOnlyAccuracy", "shuffledLabelAccuracy", "lengthCorrelation"} <= metrics.keys()


def test_promoted_though_a_pod_is_deleted_in_every_stage(world: World) -> None:
    with _pod_deleted_in_every_stage(world, "alpha-1") as deleted:
        status = world.ended("alpha-1", 900)
    assert status["phase"] == "Completed", status
    assert status["verdict"]["result"] == "Promoted"
    assert [s["name"] for s in status["stages"]] == ALL_STAGES
    assert all(s["state"] == "Succeeded" for s in status["stages"])
    # A stage that had ended before its pod could be deleted needs no second attempt; the training stages are longer.
    assert {"sft", "dpo", "rl"} <= deleted
    assert any(s["attempts"] > 1 for s in status["stages"])
    assert status["winRate"]
    assert serving(world.serves("alpha-1")) == "Production"
    for name in ("sft", "dpo", "rl"):
        metrics = {m["name"]: m["value"] for m in stage(status, name)["metrics"]}
        assert metrics["klAtStart"] == pytest.approx(0, abs=1e-5)


def test_no_request_is_lost_and_no_work_done_twice_when_the_operator_dies_in_every_phase(world: World) -> None:
    world.kubectl.apply(generation("alpha-2", "alpha", parent={"generation": "alpha-1"}, recipe=FULL_RECIPE))
    with (
        chatting(world.kubectl, world.images["trainer"], "alpha") as client,
        _operator_killed(world, "alpha-2") as killed,
    ):
        status = world.ended("alpha-2", 900)
        count = client.count()
    assert status["verdict"]["result"] == "Promoted", status
    assert {"Running", "AwaitingPromotion"} <= {phase for phase, _ in killed}
    # Its phase is Queued or Evaluating: one killed in the first may find the stage done when it is back.
    assert "evaluate" in {stage for _, stage in killed}
    assert [s["attempts"] for s in status["stages"]] == [1] * len(ALL_STAGES)
    assert status["baseline"]["generation"] == "alpha-1"
    assert count.lost == []
    assert count.answered > 20
    former = world.kubectl.wait("gen", "alpha-1", lambda o: serving(o["status"]) == "Superseded", 60)
    assert former["status"]["verdict"]["result"] == "Promoted"
    drained = world.kubectl.wait("deployment", "alpha-1-server", lambda o: o["spec"]["replicas"] == 0, 90)
    assert drained["metadata"]["name"] == "alpha-1-server"


def test_a_generation_that_is_gated_says_why_and_serves_nobody(world: World) -> None:
    world.kubectl.apply(generation("beta-1", "beta", gates=IMPOSSIBLE))
    status = world.ended("beta-1")
    assert status["phase"] == "Completed"
    assert status["verdict"]["result"] == "Gated"
    (gate,) = status["gates"]
    assert gate["verdict"] in ("Failed", "NotMeasured")
    assert "winRate" in gate["message"]
    assert gate["message"] in status["verdict"]["message"]
    assert world.kubectl.get("service", "beta") is None
    assert world.kubectl.get("deployment", "beta-1-server") is None


def test_promotion_by_hand_wants_the_hash_and_the_second_one_finds_its_baseline_stale(world: World) -> None:
    manual = {"rollout": {"promotion": "Manual"}}
    world.kubectl.apply(generation("gamma-1", "gamma", **manual), generation("gamma-2", "gamma", seed=1, **manual))
    first = world.phase("gamma-1", "AwaitingPromotion", 420)
    world.phase("gamma-2", "AwaitingPromotion", 420)
    assert f"promote={first['promotionHash']}" in message(first, "Progressing")
    world.kubectl.annotate("gen", "gamma-1", promote="0123456789ab")
    refused = world.kubectl.wait(
        "gen", "gamma-1", lambda o: any(c["outcome"] == "refused" for c in o["status"].get("commands", [])), 30
    )
    assert refused["status"]["phase"] == "AwaitingPromotion"
    world.kubectl.annotate("gen", "gamma-1", promote=first["promotionHash"])
    assert world.ended("gamma-1")["verdict"]["result"] == "Promoted"
    stale = world.ended("gamma-2", 60)
    assert stale["verdict"]["result"] == "StaleBaseline"
    assert world.kubectl.get("deployment", "gamma-2-server") is None
    world.kubectl.annotate("gen", "gamma-1", retire="yes")
    world.kubectl.wait("gen", "gamma-1", lambda o: serving(o["status"]) == "Retired", 60)


def test_rollback_loses_no_request(world: World) -> None:
    with chatting(world.kubectl, world.images["trainer"], "alpha") as client:
        world.kubectl.annotate("gen", "alpha-2", rollback="now")
        world.serves("alpha-1", 240)
        before = client.count().answered
        world.kubectl.wait("gen", "alpha-2", lambda o: serving(o["status"]) == "RolledBack", 60)
        world.kubectl.wait("pod", client.name, lambda _: client.count().answered > before + 5, 60)
        assert client.count().lost == []
    assert world.status("alpha-2")["verdict"]["result"] == "Promoted"


def test_an_old_object_that_is_created_anew_never_replaces_what_serves(world: World) -> None:
    world.kubectl("delete", "gen", "alpha-2", "--timeout=60s")
    world.kubectl.apply(generation("alpha-2", "alpha", parent={"generation": "alpha-1"}, recipe=FULL_RECIPE))
    status = world.ended("alpha-2", 60)
    assert status["verdict"]["result"] == "StaleBaseline"
    assert "alpha-1 serves now" in status["verdict"]["message"]
    assert serving(world.status("alpha-1")) == "Production"
    assert world.kubectl.list("jobs", "characterflywheel.dev/owner=alpha-2") == []


def test_what_serves_cannot_be_deleted_from_under_its_users(world: World) -> None:
    with chatting(world.kubectl, world.images["trainer"], "alpha") as client:
        world.kubectl("delete", "gen", "alpha-1", "--wait=false", "--cascade=foreground")
        held = world.kubectl.wait(
            "gen", "alpha-1", lambda o: "it is deleted once" in message(o["status"], "Serving"), 60
        )
        assert held["metadata"]["deletionTimestamp"]
        before = client.count().answered
        world.kubectl.wait("pod", client.name, lambda _: client.count().answered > before + 5, 60)
        assert client.count().lost == []
    world.kubectl.annotate("gen", "alpha-1", retire="yes")
    world.kubectl("wait", "--for=delete", "--timeout=60s", "gen/alpha-1")
    assert world.kubectl.get("deployment", "alpha-1-server") is None


BAD_DATA = {
    "missing": (None, "does not exist"),
    "empty": ("", "is empty"),
    "broken": ('{"conversation": "c", "user"\n', "line 1"),
    "nobody": ('{"conversation": "c", "messages": [{"role": "user", "content": "hi"}]}\n', "line 1"),
}


def test_bad_data_fails_at_once_in_the_trainers_own_words(world: World) -> None:
    for name, (content, _) in BAD_DATA.items():
        uri = f"{ROOT}/data/bad-{name}.jsonl"
        if content is not None:
            world.loader.run("sh", "-c", f"cat > /mnt/claim/data/bad-{name}.jsonl <<'X'\n{content.rstrip()}\nX\n")
            if not content:
                world.loader.run("sh", "-c", f": > /mnt/claim/data/bad-{name}.jsonl")
        sources = [{**SOURCES[0]}, {**SOURCES[1], "uri": uri}]
        world.kubectl.apply(generation(f"bad-{name}", "bad", data={"traffic": sources}))
    for name, (_, sentence) in BAD_DATA.items():
        status = world.ended(f"bad-{name}", 180)
        assert status["phase"] == "Failed"
        failed = next(s for s in status["stages"] if s["state"] == "Failed")
        assert failed["reason"] == "InvalidData", failed
        assert failed["attempts"] == 1
        assert sentence in failed["message"]
        assert f"bad-{name}.jsonl" in failed["message"]
        assert failed["message"] in message(status, "Progressing")
        assert "verdict" not in status


def test_the_operator_says_what_it_did_in_events(world: World) -> None:
    assert any(e.startswith("StageStarted: stage sft") for e in world.events("beta-1"))
    assert any(e.startswith("Gated: ") for e in world.events("beta-1"))
    assert CLAIM in world.kubectl("get", "pvc", "-o", "name")


def _stage_state(world: World, other: str, found: Manifest) -> tuple[str, str]:
    mine = stage(found.get("status", {}), "reward-model").get("state", "")
    theirs = stage((world.kubectl.get("rm", other) or {}).get("status", {}), "reward-model").get("state", "")
    return mine, theirs


@contextmanager
def _pod_deleted_in_every_stage(world: World, name: str) -> Iterator[set[str]]:
    """Deletes, gracefully, the first pod of each stage that is seen running."""
    deleted: set[str] = set()

    def delete_one() -> None:
        selector = f"characterflywheel.dev/owner={name},characterflywheel.dev/stage"
        for pod in world.kubectl.list("pods", selector):
            of = pod["metadata"]["labels"]["characterflywheel.dev/stage"]
            started = any("running" in c.get("state", {}) for c in pod["status"].get("containerStatuses", []))
            if of not in deleted and started:
                world.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
                deleted.add(of)

    with _meanwhile(delete_one):
        yield deleted


@contextmanager
def _operator_killed(world: World, name: str) -> Iterator[set[tuple[str, str]]]:
    """Kills the operator once in each phase and stage of a Generation."""
    killed: set[tuple[str, str]] = set()

    def kill_once() -> None:
        status = world.status(name)
        where = (status.get("phase", ""), status.get("stage", ""))
        if where[0] and where[0] not in TERMINAL and where not in killed:
            world.restart_operator()
            killed.add(where)

    with _meanwhile(kill_once):
        yield killed


@contextmanager
def _meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` again and again in a thread while the block runs; an error in it ends the test."""
    done = threading.Event()
    errors: list[BaseException] = []

    def loop() -> None:
        while not done.wait(0.5):
            try:
                act()
            except KubectlError as error:
                # An object that went away between two looks; anything else is a fault of the test.
                if "not found" not in str(error).lower():
                    errors.append(error)
                    return

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)
    assert errors == []
