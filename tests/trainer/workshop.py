"""A claim with a tiny model and data, and a way to run stages on it as the operator would."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e import tiny_data
from flywheel_contract.manifest import Manifest
from flywheel_contract.stage_result import StageResult
from flywheel_contract.stages import Stage
from flywheel_trainer.artifacts import digest_folder
from flywheel_trainer.runner import run_stage

Json = dict[str, Any]
TINY: Json = {"batchSize": 8, "maxLength": 96}
"""Every training stage's parameters start from these."""
UNTRAINED = ("resolve", "curate")


@dataclass(frozen=True)
class Workshop:
    """`root` is the claims' root with one claim, `lab`."""

    root: Path

    @property
    def claim(self) -> Path:
        """The claim's folder."""
        return self.root / "lab"

    def environment(self, **more: str) -> dict[str, str]:
        """What the operator would set in the pod."""
        return {
            "FLYWHEEL_CLAIMS_ROOT": str(self.root),
            "FLYWHEEL_TERMINATION_LOG": str(self.root / "termination-log"),
            "FLYWHEEL_STATUS_PORT": "0",
            **more,
        }

    def add_model(self, source: Path, name: str) -> str:
        """Copies a model into the claim and answers its URI."""
        target = self.claim / "models" / name
        target.mkdir(parents=True)
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        return f"pvc://lab/models/{name}"

    def add_data(self, name: str, rows: list[Json]) -> str:
        """Writes rows and answers their URI."""
        tiny_data.write(self.claim / "data" / name / "data.jsonl", rows)
        return f"pvc://lab/data/{name}"

    def path(self, uri: str) -> Path:
        """The local path of a URI."""
        return self.root / uri.removeprefix("pvc://")

    def input(self, role: str, uri: str, **more: Any) -> Json:  # noqa: ANN401 -- JSON
        """An input as it stands in a StageSpec, resolved."""
        models = ("policy", "baseline", "parent", "checkpoint", "judge", "reward", "embedder")
        kind = "Model" if role in models else "Data"
        return {"name": role, "role": role, "kind": kind, "uri": uri, "digest": digest_folder(self.path(uri)), **more}

    def spec(self, stage: str, inputs: list[Json], **params: Any) -> Path:  # noqa: ANN401 -- JSON
        """Writes a StageSpec and answers its file."""
        screening = {"screening": params.pop("screening")} if "screening" in params else {}
        spec = {
            **screening,
            "stage": stage,
            "owner": "gen-1",
            "group": "captain",
            "artifacts": "pvc://lab/artifacts",
            "inputs": inputs,
            "characters": [{"name": tiny_data.CHARACTER, "systemPrompt": tiny_data.SYSTEM_PROMPT}],
            "seed": 7,
            "params": {**(TINY if stage not in UNTRAINED else {}), **params},
        }
        path = self.root / f"{stage}.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        return path

    def run(self, stage: str, inputs: list[Json], **params: Any) -> tuple[int, StageResult]:  # noqa: ANN401 -- JSON
        """Runs a stage in this process."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment().items():
                patch.setenv(name, value)
            code = run_stage(Stage(stage), self.spec(stage, inputs, **params))
        return int(code), self.result()

    def succeed(self, stage: str, inputs: list[Json], **params: Any) -> StageResult:  # noqa: ANN401 -- JSON
        """Runs a stage that must succeed."""
        code, result = self.run(stage, inputs, **params)
        assert code == 0, result.message
        return result

    @contextlib.contextmanager
    def started(
        self,
        stage: str,
        inputs: list[Json],
        environment: dict[str, str],
        **params: Any,  # noqa: ANN401 -- JSON
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """A stage in a process of its own, as in the pod; nothing of it outlives the block."""
        command = [sys.executable, "-m", "flywheel_trainer", stage, "--spec", str(self.spec(stage, inputs, **params))]
        variables = {**os.environ, **self.environment(**environment)}
        with (self.root / "stderr").open("wb") as log:
            process = subprocess.Popen(command, env=variables, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def result(self) -> StageResult:
        """What the last stage said."""
        return StageResult.from_termination_message((self.root / "termination-log").read_text(encoding="utf-8"))

    def folder(self, result: StageResult) -> Path:
        """The stage's own folder."""
        assert result.manifest_uri is not None
        return self.path(result.manifest_uri).parent

    def manifest(self, result: StageResult) -> Manifest:
        """The manifest that a result names."""
        return Manifest.model_validate_json((self.folder(result) / "manifest.json").read_text(encoding="utf-8"))

    def model(self, result: StageResult) -> str:
        """The URI of the model that a stage left."""
        assert result.manifest_uri is not None
        return result.manifest_uri.removesuffix("manifest.json") + "model"

    def history(self, result: StageResult) -> list[Json]:
        """The logged steps."""
        text = (self.folder(result) / "logs" / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
