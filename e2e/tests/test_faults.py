"""Bad nights and second thoughts on a real cluster: memory, refused models, suspension, abort, deadline."""

import pytest

from e2e.world.manifests import FULL_RECIPE, ROOT, RUNTIME, generation, reward_model
from e2e.world.world import World, stage

pytestmark = [pytest.mark.cluster, pytest.mark.full]


@pytest.fixture(scope="module", autouse=True)
def judge(world: World) -> None:
    """The reward model that all of these name; trained unless another module has done it."""
    if world.kubectl.get("rm", "tiny") is None:
        world.kubectl.apply(reward_model("tiny"))
    world.kubectl.wait("rm", "tiny", lambda o: o.get("status", {}).get("phase") == "Ready", 300)


def test_a_stage_that_is_out_of_memory_is_retried_within_the_budget_and_says_so(world: World) -> None:
    small = {**RUNTIME, "stages": [{"stage": "sft", "resources": {"limits": {"memory": "150Mi"}}}]}
    world.kubectl.apply(
        generation("hungry", "hungry", runtime=small, retryPolicy={"maxRetries": 1, "backoffSeconds": 1})
    )
    status = world.ended("hungry")
    assert status["phase"] == "Failed"
    failed = stage(status, "sft")
    assert failed["reason"] == "OOMKilled", failed
    assert (failed["attempts"], failed["failures"]) == (2, 2)
    assert "retryPolicy.maxRetries is 1" in failed["message"]
    assert stage(status, "curate")["state"] == "Succeeded"
    assert "verdict" not in status


@pytest.mark.parametrize(
    ("folder", "files", "sentence"),
    [
        ("pickled", {"config.json": '{"model_type": "llama"}', "pytorch_model.bin": "x"}, "safetensors"),
        (
            "remote",
            {"config.json": '{"model_type": "llama", "auto_map": {"AutoModel": "m.py"}}', "model.safetensors": "x"},
            "code",
        ),
    ],
)
def test_a_model_that_cannot_be_trusted_is_refused(
    world: World, folder: str, files: dict[str, str], sentence: str
) -> None:
    for name, content in files.items():
        script = f"mkdir -p /mnt/claim/{folder} && cat > /mnt/claim/{folder}/{name} <<'X'\n{content}\nX\n"
        world.loader.run("sh", "-c", script)
    world.kubectl.apply(generation(f"from-{folder}", "refused", parent={"model": f"{ROOT}/{folder}"}))
    status = world.ended(f"from-{folder}", 120)
    assert status["phase"] == "Failed"
    failed = stage(status, "resolve")
    assert failed["reason"] == "InvalidModel", failed
    assert sentence in failed["message"]
    assert failed["attempts"] == 1


def test_a_suspended_generation_saves_its_work_and_goes_on(world: World) -> None:
    world.kubectl.apply(generation("sleepy", "sleepy", recipe=FULL_RECIPE))
    world.kubectl.wait("gen", "sleepy", lambda o: stage(o.get("status", {}), "sft").get("state") == "Running", 240)
    world.kubectl("patch", "gen", "sleepy", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    world.phase("sleepy", "Suspended", 60)
    jobs = "characterflywheel.dev/owner=sleepy"
    world.kubectl.wait("gen", "sleepy", lambda _: not _running(world, jobs), 90)
    world.kubectl("patch", "gen", "sleepy", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    status = world.ended("sleepy", 600)
    assert status["verdict"]["result"] == "Promoted", status
    assert stage(status, "sft")["attempts"] == 2
    assert stage(status, "sft")["failures"] == 0
    assert stage(status, "curate")["attempts"] == 1
    assert status["suspendedSeconds"] > 0


def test_abort_ends_it_at_any_time(world: World) -> None:
    world.kubectl.apply(generation("unloved", "unloved", recipe=FULL_RECIPE))
    world.kubectl.wait("gen", "unloved", lambda o: o.get("status", {}).get("phase") == "Running", 60)
    world.kubectl.annotate("gen", "unloved", abort="changed-my-mind")
    status = world.ended("unloved", 60)
    assert status["phase"] == "Aborted"
    world.kubectl.wait("gen", "unloved", lambda _: not _running(world, "characterflywheel.dev/owner=unloved"), 90)


def test_a_deadline_ends_what_takes_too_long(world: World) -> None:
    world.kubectl.apply(generation("late", "late", recipe=FULL_RECIPE, activeDeadlineSeconds=20))
    status = world.ended("late", 120)
    assert status["phase"] == "Failed"
    assert any(c["reason"] == "DeadlineExceeded" for c in status["conditions"])


def _running(world: World, selector: str) -> bool:
    return any(pod["status"]["phase"] in ("Pending", "Running") for pod in world.kubectl.list("pods", selector))
