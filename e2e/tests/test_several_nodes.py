"""One SFT stage on two pods with DeepSpeed ZeRO-3 over gloo: the losses of one pod, and one end for both pods."""

import json

import pytest

from e2e.world.manifests import RUNTIME, generation
from e2e.world.world import World, stage

pytestmark = [pytest.mark.cluster, pytest.mark.full]

STEPS = 6
SFT = {"maxSteps": STEPS, "maxLength": 128, "learningRate": 0.001, "saveSteps": 2}
ZERO_3 = json.dumps(
    {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
    }
)
TOLERANCE = 1e-5
"""Relative, of each step's loss: see tests/trainer/test_several_nodes.py."""


def losses(world: World, name: str, lineage: str) -> list[list[float]]:
    """The loss of each step, of each time that the stage was done."""
    script = f"cat /mnt/claim/runs/{lineage}/{name}/sft/*/logs/metrics.jsonl"
    steps = [json.loads(line) for line in world.loader.run("sh", "-c", script).splitlines()]
    return [[line["loss"] for line in steps[at : at + STEPS]] for at in range(0, len(steps), STEPS)]


def trained(world: World, name: str, times: int = 0) -> dict[str, object]:
    """Waits for the SFT stage, then ends the Generation: this is not about what comes behind."""

    def done(obj: dict) -> bool:
        status = obj.get("status", {})
        sft = stage(status, "sft")
        assert status.get("phase") != "Failed", status
        return sft.get("state") == "Succeeded" and sft.get("rerun", 0) == times

    found = world.kubectl.wait("gen", name, done, 600)
    world.kubectl.annotate("gen", name, abort=f"done-{times}")
    world.ended(name, 60)
    return stage(found["status"], "sft")


def test_zero_3_over_two_pods_has_the_losses_of_one_also_after_one_was_evicted(world: World) -> None:
    on_two = {**RUNTIME, "stages": [{"stage": "sft", "nodes": 2}]}
    two = {"sft": {**SFT, "batchSize": 4, "deepspeedConfig": ZERO_3}}
    world.kubectl.apply(generation("both", "several", rewards=[], recipe=two, runtime=on_two))
    world.kubectl.wait("gen", "both", lambda o: stage(o.get("status", {}), "sft").get("state") == "Running", 300)
    job = stage(world.status("both"), "sft")["job"]
    service = world.kubectl.wait("service", f"nodes-{job}", lambda _: True, 60)
    assert service["metadata"]["ownerReferences"][0]["name"] == job
    assert service["spec"]["clusterIP"] == "None"
    pods = world.kubectl.list("pods", f"batch.kubernetes.io/job-name={job}")
    assert sorted(pod["spec"]["hostname"] for pod in pods) == [f"{job}-0", f"{job}-1"]

    # A drained node takes one of the two: the attempt ends as a whole, and no retry is burnt.
    lost = next(pod["metadata"]["name"] for pod in pods if pod["spec"]["hostname"] == f"{job}-1")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": lost}}
    path = f"/api/v1/namespaces/{world.kubectl.namespace}/pods/{lost}/eviction"
    world.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    sft = trained(world, "both")
    assert (sft["attempts"], sft["failures"]) == (2, 0)
    world.kubectl.wait("gen", "both", lambda _: world.kubectl.get("service", f"nodes-{job}") is not None, 5)
    world.kubectl("delete", "job", job)
    world.kubectl.wait("gen", "both", lambda _: world.kubectl.get("service", f"nodes-{job}") is None, 60)

    one = {"sft": {**SFT, "batchSize": 8}}
    world.kubectl.apply(generation("one", "single", rewards=[], recipe=one))
    trained(world, "one")
    [shared], [alone] = losses(world, "both", "several"), losses(world, "one", "single")
    assert len(shared) == STEPS
    assert shared == pytest.approx(alone, rel=TOLERANCE)
    assert shared[-1] < shared[0]


def test_run_anew_it_leaves_its_own_results_beside_the_old_ones(world: World) -> None:
    before = stage(world.status("one"), "sft")
    world.kubectl.annotate("gen", "one", **{"rerun-from": "sft"})
    after = trained(world, "one", 1)
    assert after["manifestUri"] != before["manifestUri"]
    assert (after["attempts"], after.get("reused", False)) == (2, False)
    first, again = losses(world, "one", "single")
    assert first == again, "the same seed, data and machine"
    assert any("runs anew from sft; reused: resolve, curate" in event for event in world.events("one"))


def test_a_dry_run_counts_and_trains_nothing(world: World) -> None:
    world.kubectl.apply(generation("estimate", "estimate", rewards=[], dryRun={}))
    status = world.ended("estimate", 240)
    assert status["verdict"]["result"] == "DryRun", status
    assert [s["name"] for s in status["stages"]] == ["resolve"]
    assert status["estimate"]["gpuHours"] > 0
    assert "traffic-chats" in world.kubectl("describe", "gen", "estimate")
