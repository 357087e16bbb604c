"""A stage that several pods share learns what one pod would have learned, and ends as a whole."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_result import Reason, StageResult
from flywheel_contract.stages import Stage
from flywheel_trainer import launch
from tests.trainer.workshop import Json, Workshop, free_port

STEPS = 6
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
"""Relative. fp32 rounds at 6e-8; a few thousand sums per loss in another order, and six steps of Adam, whose first
ones divide by the gradient's own size, make up to three digits of that."""


def pod(node: int, **more: str) -> dict[str, str]:
    """What the operator sets in pod number `node` of two."""
    return {
        "FLYWHEEL_NODES": "2",
        "FLYWHEEL_MASTER_ADDRESS": "127.0.0.1",
        "JOB_COMPLETION_INDEX": str(node),
        "FLYWHEEL_PROCESSES": "1",
        **more,
    }


@contextlib.contextmanager
def two_pods(workshop: Workshop, spec: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """A launcher for each of two nodes, which meet on the loopback; nothing of them outlives the block."""
    port = str(free_port())
    started = []
    for node in range(2):
        own = pod(node, FLYWHEEL_MASTER_PORT=port, FLYWHEEL_TERMINATION_LOG=str(workshop.root / f"log-{node}"))
        command = [sys.executable, "-m", "flywheel_trainer", "sft", "--spec", str(spec)]
        with (workshop.root / f"stderr-{node}").open("wb") as log:
            environment = {**os.environ, **workshop.environment(**own)}
            started.append(subprocess.Popen(command, env=environment, stderr=log, start_new_session=True))
    try:
        yield started
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def told(workshop: Workshop, node: int) -> StageResult:
    """What a pod said at its end."""
    return StageResult.from_termination_message((workshop.root / f"log-{node}").read_text(encoding="utf-8"))


@pytest.mark.training
def test_zero_3_over_two_nodes_has_the_losses_of_one(workshop: Workshop, inputs: list[Json]) -> None:
    common = {"maxSteps": STEPS, "learningRate": 1e-3}
    spec = workshop.spec("sft", inputs, **common, batchSize=4, deepspeedConfig=ZERO_3)
    with two_pods(workshop, spec) as pods:
        codes = [process.wait(400) for process in pods]
    assert codes == [0, 0], (workshop.root / "stderr-0").read_text() + (workshop.root / "stderr-1").read_text()
    shared, second = told(workshop, 0), told(workshop, 1)
    assert (second.reason, second.manifest_uri) == (Reason.SUCCEEDED, None), "the first pod alone leaves a manifest"
    alone = workshop.succeed("sft", inputs, **common, batchSize=8)
    losses = [[line["loss"] for line in workshop.history(result)] for result in (shared, alone)]
    assert len(losses[0]) == STEPS
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCE)
    assert losses[0][-1] < losses[0][0]
    assert shared.metrics[Metric.KL_AT_START].value == 0


def test_a_first_pod_that_cannot_be_found_is_waited_for_and_then_said(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in workshop.environment(**pod(1, FLYWHEEL_MASTER_ADDRESS="nobody.invalid")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "RENDEZVOUS_SECONDS", 0.01)
    together = launch.gang(Stage.SFT)
    assert together is not None
    assert launch.run(["sft"], Stage.SFT, together) == 1
    result = workshop.result()
    assert result.reason is Reason.FAULT
    assert "the first of the 2 pods, nobody.invalid, could not be found" in result.message


def test_it_goes_on_once_the_first_pod_is_known() -> None:
    asked: list[str] = []

    def resolve(name: str) -> None:
        asked.append(name)
        if len(asked) < 3:
            raise OSError("not yet")

    assert launch.await_address("first", 30, resolve)
    assert asked == ["first"] * 3


def test_sigterm_while_it_waits_burns_no_retry(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_TERMINATION_LOG", workshop.environment()["FLYWHEEL_TERMINATION_LOG"])

    def stop(_name: str, _seconds: float) -> bool:
        signal.raise_signal(signal.SIGTERM)
        return True

    monkeypatch.setattr(launch, "await_address", stop)
    assert launch.run(["sft"], Stage.SFT, launch.Gang(1, 2, 1, "first", 1)) == 143
    assert workshop.result().reason is Reason.INTERRUPTED


def test_every_process_is_told_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in pod(1, FLYWHEEL_PROCESSES="4").items():
        monkeypatch.setenv(name, value)
    together = launch.gang(Stage.SFT)
    assert together is not None
    told = together.environment(2)
    assert (told["RANK"], told["WORLD_SIZE"], told["LOCAL_RANK"], told["GROUP_RANK"]) == ("6", "8", "2", "1")
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("127.0.0.1", "29500")
    assert launch.gang(Stage.EVALUATE) is None, "it does not share its work"
    monkeypatch.setenv("RANK", "6")
    assert launch.gang(Stage.SFT) is None, "one of several does its own part"
