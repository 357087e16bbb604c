"""Curation in one process and on a Ray cluster: the same rows, the same counts, the same sentence when it fails."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from e2e import tiny_data
from flywheel_contract.filters import PrivacyParams, SafetyParams
from flywheel_contract.metric_names import Metric
from flywheel_contract.paths import RAY_ADDRESS
from flywheel_trainer.data import executors
from flywheel_trainer.data.executors import HERE, executor
from flywheel_trainer.data.privacy import PrivacyFilter
from flywheel_trainer.data.rows import Conversation
from flywheel_trainer.data.safety import SafetyFilter
from flywheel_trainer.errors import DataError, StageError
from tests.trainer.workshop import free_port
from tests.trainer_data.on_ray import GCS, doubled
from tests.trainer_data.workbench import Workbench

REPOSITORY = Path(__file__).parents[2]
MAIL = "write to a.b@example.com"
SLUR = "fuck you, you stupid bitch"
NAMESPACE = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Ray listens on the machine's own address whatever it is told; here there is none but loopback."""


def rows() -> list[dict[str, Any]]:
    """Some of them with identifiers, some unsafe, some that say the same."""
    found = tiny_data.traffic(600)
    for number, row in enumerate(found):
        text = MAIL if number % 40 == 0 else SLUR if number % 40 == 1 else f"{number} and {number * 7} things"
        row["messages"][0]["content"] += f" {text}"
    return found


def laid_out(root: Path) -> tuple[Workbench, Path]:
    """A claim with the rows, and the StageSpec of a curation with every filter that looks at rows one by one."""
    (root / "lab").mkdir(parents=True)
    bench = Workbench(root)
    params = {"privacy": {"mode": "Redact"}, "diversity": {"keepFraction": 0.6}}
    return bench, bench.spec("curate", [bench.input("traffic", bench.data("traffic", rows()))], **params)


def test_batches_keep_their_order_and_an_empty_list_has_none() -> None:
    assert list(HERE.map(doubled, range(9), 4)) == [[0, 2, 4, 6], [8, 10, 12, 14], [16]]
    assert list(HERE.map(doubled, [], 4)) == []
    with pytest.raises(DataError, match="row 13 is wrong"):
        list(HERE.map(doubled, range(20), 4))


@pytest.mark.full
def test_a_ray_cluster_leaves_what_one_process_leaves(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare: Ray would open ports on this machine's network")
    (here, spec), (there, sent) = laid_out(tmp_path / "here"), laid_out(tmp_path / "there")
    command = [*NAMESPACE, sys.executable, "-m", "tests.trainer_data.on_ray", str(sent)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["curate"] == 0, ran.stderr[-4000:]
    assert told["doubled"] == [2 * number for number in range(12)]
    assert told["wrong"] == "DataError: row 13 is wrong"
    assert told["gone"].startswith(f"StageError: the Ray cluster at RAY_ADDRESS={GCS} cannot be reached")

    inputs = json.loads(spec.read_text(encoding="utf-8"))
    alone = here.manifest(here.succeed("curate", inputs["inputs"], **inputs["params"]))
    spread = there.manifest(there.result())
    assert alone.metrics[Metric.REDACTED_PRIVACY].value > 5
    assert alone.metrics[Metric.DROPPED_SAFETY].value > 5
    assert (spread.outputs, spread.metrics, spread.counts) == (alone.outputs, alone.metrics, alone.counts)


def test_a_cluster_that_is_away_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RAY_ADDRESS, f"ray://127.0.0.1:{free_port()}")
    with (
        pytest.raises(StageError, match="cannot be reached"),
        executor(print),
    ):
        pass


def test_a_head_that_starts_with_the_stage_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens its port at the second look; what answers there is no Ray, which is another matter."""
    monkeypatch.setattr(executors, "_POLL_SECONDS", 0.01)
    said: list[str] = []
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))

        def look(message: str) -> None:
            said.append(message)
            head.listen()

        executors._await_head(f"ray://127.0.0.1:{head.getsockname()[1]}", 30, look)
    assert said == ["waiting for the Ray cluster's head"]


@pytest.mark.parametrize(("there", "outcome"), [(3, "all"), (1, "some"), (0, "none")])
def test_workers_are_waited_for_as_long_as_there_is_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, there: int, outcome: str
) -> None:
    nodes = [{"Alive": True}]  # the head
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr(executors, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(executors, "STARTING_SECONDS", 0.3)
    said: list[str] = []

    def look(message: str) -> None:
        said.append(message)
        if len(nodes) <= there:
            nodes.extend([{"Alive": True}, {"Alive": False}] if there == 1 else [{"Alive": True}])

    if outcome == "none":
        with pytest.raises(StageError, match="none of the 3 workers"):
            executors._await_workers(3, look)
    else:
        executors._await_workers(3, look)
    assert said[0] == "waiting for workers of the Ray cluster: 0 of 3"
    assert ("goes on with 1 of 3 workers" in caplog.text) is (outcome == "some")


def test_a_filter_travels_as_its_settings() -> None:
    row = rows()[0]
    conversation = Conversation.model_validate(row)
    privacy = PrivacyFilter(PrivacyParams(), ["luna"])
    again = pickle.loads(pickle.dumps(privacy))
    assert again([conversation]).dropped == privacy([conversation]).dropped == {"EMAIL_ADDRESS": 1}
    safety = pickle.loads(pickle.dumps(SafetyFilter(SafetyParams(), None)))
    assert safety([[SLUR], ["good morning"]])[1] is None
    assert safety([[SLUR], ["good morning"]])[0] is not None
