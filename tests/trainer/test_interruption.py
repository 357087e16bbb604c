"""A stage that is told to stop saves, says so, and the next attempt ends where an undisturbed one would have."""

import json
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e import tiny_data
from flywheel_contract.metric_names import Metric
from flywheel_contract.progress import Progress
from flywheel_contract.stage_result import Reason
from flywheel_trainer import checkpoints
from tests.trainer.workshop import Json, Workshop, free_port

pytestmark = pytest.mark.training

STEPS = 150


def watch(port: int, enough: Callable[[Progress], bool], seconds: float = 300) -> Progress:
    """Asks the status endpoint, as the operator does, until `enough`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=5) as answer:
                progress = Progress.model_validate_json(answer.read())
        except OSError:
            progress = Progress()
        if enough(progress):
            return progress
        time.sleep(0.05)
    raise AssertionError("the stage did not get that far")


def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(workshop: Workshop, inputs: list[Json]) -> None:
    params = {"maxSteps": STEPS, "learningRate": 1e-3, "saveSteps": 10_000}
    port = free_port()
    with workshop.started("sft", inputs, {"FLYWHEEL_STATUS_PORT": str(port)}, **params) as stage:
        seen = watch(port, lambda progress: (progress.step or 0) >= 5)
        stage.send_signal(signal.SIGTERM)
        assert stage.wait(60) == 143, (workshop.root / "stderr").read_text()
    assert seen.total_steps == STEPS
    assert seen.loss is not None
    assert seen.eta_seconds is not None
    interrupted = workshop.result()
    assert interrupted.reason is Reason.INTERRUPTED
    assert "checkpoint saved at step" in interrupted.message
    for line in (workshop.root / "stderr").read_text().splitlines():
        if line.startswith("{"):
            assert json.loads(line)["stage"] == "sft"

    [work] = workshop.claim.glob("artifacts/captain/gen-1/sft/*/.work/checkpoints")
    last = checkpoints.last_complete(work)
    assert last is not None
    assert 5 <= last.step < STEPS
    resumed = workshop.succeed("sft", inputs, **params)
    history = workshop.history(resumed)
    assert [line["step"] for line in history] == list(range(1, STEPS + 1))

    (workshop.folder(resumed) / "manifest.json").unlink()
    whole = workshop.succeed("sft", inputs, **params)
    assert not whole.reused
    assert whole.metrics[Metric.TRAIN_LOSS_LAST].value == pytest.approx(
        resumed.metrics[Metric.TRAIN_LOSS_LAST].value, rel=1e-3
    )


def test_stopped_behind_its_last_step_it_trains_no_further(workshop: Workshop, inputs: list[Json]) -> None:
    params = {"maxSteps": 6, "learningRate": 1e-3, "saveSteps": 4}
    first = workshop.succeed("sft", inputs, **params)
    # What a kill between the last checkpoint and the manifest leaves: all but the manifest.
    finished = workshop.history(first)
    folder = workshop.folder(first)
    kept = folder / ".work" / "checkpoints"
    (folder / "manifest.json").unlink()
    kept.mkdir(parents=True)
    checkpoint = kept / "checkpoint-6"
    checkpoint.mkdir()
    for file in (folder / "model").iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    (checkpoint / "trainer_state.json").write_text('{"global_step": 6, "max_steps": 6}', encoding="utf-8")
    (kept / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in finished), encoding="utf-8")
    second = workshop.succeed("sft", inputs, **params)
    assert not second.reused
    assert second.outputs == first.outputs
    assert workshop.history(second) == finished


def test_what_was_killed_before_its_first_checkpoint_has_no_history(workshop: Workshop, inputs: list[Json]) -> None:
    params = {"maxSteps": 6, "learningRate": 1e-3}
    first = workshop.succeed("sft", inputs, **params)
    history = workshop.history(first)
    folder = workshop.folder(first)
    (folder / "manifest.json").unlink()
    (folder / ".work" / "checkpoints").mkdir(parents=True)
    killed = '{"step": 1, "loss": 9.0}\n{"step": 2, "loss": 9.0}\n{"step": 3, "lo'
    (folder / ".work" / "checkpoints" / "metrics.jsonl").write_text(killed, encoding="utf-8")
    second = workshop.succeed("sft", inputs, **params)
    assert [line["loss"] for line in workshop.history(second)] == [line["loss"] for line in history]


def test_a_checkpoint_cut_short_does_not_count(tmp_path: Path) -> None:
    for step, complete in ((2, True), (4, True), (6, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "trainer_state.json").write_text(f'{{"global_step": {step}, "max_steps": 8}}', encoding="utf-8")
    (tmp_path / "checkpoint-4" / "checkpoint-is-incomplete.txt").touch()
    last = checkpoints.last_complete(tmp_path)
    assert last is not None
    assert (last.step, last.finished) == (2, False)
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text('{"global_st', encoding="utf-8")
    assert checkpoints.last_complete(tmp_path) is None


@pytest.mark.full
def test_two_processes_share_the_work(workshop: Workshop, inputs: list[Json]) -> None:
    with workshop.started("sft", inputs, {"FLYWHEEL_PROCESSES": "2"}, maxSteps=6, learningRate=1e-3) as stage:
        assert stage.wait(400) == 0, (workshop.root / "stderr").read_text()
    result = workshop.result()
    assert len(workshop.history(result)) == 6
    assert result.metrics[Metric.KL_AT_START].value == 0


ZERO = {
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


@pytest.mark.full
@pytest.mark.parametrize("stage", [2, 3])
def test_a_deepspeed_configuration_is_passed_through(workshop: Workshop, inputs: list[Json], stage: int) -> None:
    zero = {"stage": stage} | ({"stage3_gather_16bit_weights_on_model_save": True} if stage == 3 else {})
    config = json.dumps({**ZERO, "zero_optimization": zero})
    two = {"FLYWHEEL_PROCESSES": "2"}
    with workshop.started("sft", inputs, two, maxSteps=6, learningRate=1e-3, deepspeedConfig=config) as run:
        assert run.wait(400) == 0, (workshop.root / "stderr").read_text()
    result = workshop.result()
    history = workshop.history(result)
    assert len(history) == 6
    assert history[-1]["loss"] < history[0]["loss"]
    assert result.metrics[Metric.KL_AT_START].value == 0


@pytest.mark.full
@pytest.mark.parametrize("stage", ["reward-model", "sft", "dpo", "rl"])
@pytest.mark.parametrize("zero", [None, 2, 3])
def test_every_training_stage_on_two_processes(
    workshop: Workshop, inputs: list[Json], tiny: Path, stage: str, zero: int | None
) -> None:
    """With data of its own, of which some may not be trained on: both processes leave out the same."""
    pairs = tiny_data.preferences(80)
    for pair in pairs[:8]:
        pair["consent"] = {"training": False}
    policy, prompts = inputs
    own = workshop.input("preferences", workshop.add_data("pairs", pairs))
    given = {"reward-model": [policy, own], "sft": [policy, prompts], "dpo": [policy, own]}
    params: Json = {"maxSteps": 2, "learningRate": 1e-3, "batchSize": 4}
    if stage == "rl":
        judge = workshop.succeed("reward-model", [policy, own], maxSteps=2, batchSize=8)
        parent = {**workshop.input("parent", policy["uri"]), "name": "parent"}
        given["rl"] = [policy, parent, prompts, workshop.input("reward", workshop.model(judge))]
        params |= {"numGenerations": 2, "maxNewTokens": 8, "maxPrompts": 8}
    if zero is not None:
        params["deepspeed"] = {"stage": zero}
    with workshop.started(stage, given[stage], {"FLYWHEEL_PROCESSES": "2"}, **params) as run:
        assert run.wait(400) == 0, (workshop.root / "stderr").read_text()[-6000:]
    result = workshop.result()
    assert len(workshop.history(result)) == 2
    assert result.metrics[Metric.TRAIN_LOSS_LAST].value == pytest.approx(workshop.history(result)[-1]["loss"], rel=1e-4)
    if stage in ("reward-model", "dpo"):
        assert workshop.manifest(result).counts["dropped-consent"] == 8
