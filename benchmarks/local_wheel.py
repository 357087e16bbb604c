"""The operator's own planner with processes of this machine for Jobs: a wheel without a cluster, for benchmarks.

What a stage is told, how its result becomes status, and what the gates say is the operator's code. Only the room that
talks to Kubernetes is replaced. Nothing is served, so Generations have to ask for `promotion: Manual`: they stop where
a person would look at them.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from flywheel_contract.stage_result import StageResult
from flywheel_contract.stages import Stage
from flywheel_operator.manifests.snapshot import SNAPSHOT_KEY
from flywheel_operator.model.objects import Generation, RewardModel
from flywheel_operator.model.observed import JobState, JobView, ObservedGeneration, ObservedRewardModel, Settings
from flywheel_operator.model.phases import REWARD_MODEL_TERMINAL, TERMINAL, Phase
from flywheel_operator.model.snapshot import Snapshot
from flywheel_operator.plan import generation as generations
from flywheel_operator.plan import reward_model as reward_models
from flywheel_operator.plan.actions import Manifest, Plan

SETTINGS: Final = Settings(trainer_image="local")
SPEC_KEY: Final = "stage.json"
KIBIBYTE: Final = 1024
"""In which Linux counts the resident memory of a process."""


class Stuck(RuntimeError):
    """The planner waits for something that nobody here will bring."""


@dataclass(frozen=True, slots=True)
class Run:
    """A stage that ran: its wall-clock and CPU time, and the most memory that its process had."""

    owner: str
    stage: Stage
    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass
class LocalWheel:
    """Claims are folders below `root`, which also keeps the stages' logs."""

    root: Path
    runs: list[Run] = field(default_factory=list)
    _jobs: dict[str, JobView] = field(default_factory=dict)
    _snapshots: dict[str, Snapshot] = field(default_factory=dict)

    def reward_model(self, manifest: Manifest) -> RewardModel:
        """Trains and judges a RewardModel.

        Raises:
            Stuck: it waits for something.
        """
        model = RewardModel.model_validate(_admitted(manifest))
        while model.status.phase not in REWARD_MODEL_TERMINAL:
            plan = reward_models.plan(ObservedRewardModel(model, datetime.now(UTC), SETTINGS, jobs=self._jobs))
            self._carry_out(model.metadata.name, plan, moved=plan.status != model.status)
            model = model.model_copy(update={"status": plan.status})
        return model

    def generation(self, manifest: Manifest, rewards: list[RewardModel]) -> Generation:
        """Trains and judges a Generation, until it waits for a person's approval or has ended.

        Raises:
            Stuck: it waits for something.
        """
        made = Generation.model_validate(_admitted(manifest))
        while made.status.phase not in {*TERMINAL, Phase.AWAITING_PROMOTION}:
            name = made.metadata.name
            observed = ObservedGeneration(
                made,
                datetime.now(UTC),
                SETTINGS,
                generations={name: made},
                reward_models={model.metadata.name: model for model in rewards},
                snapshot=self._snapshots.get(name),
                jobs=self._jobs,
            )
            plan = generations.plan(observed)
            self._carry_out(name, plan, moved=plan.status != made.status)
            made = made.model_copy(update={"status": plan.status})
        return made

    def folder(self, uri: str) -> Path:
        """Where what a `pvc://` URI names lies here."""
        return self.root / uri.removeprefix("pvc://")

    def _carry_out(self, owner: str, plan: Plan[Any], *, moved: bool) -> None:
        if not plan.create and not moved:
            raise Stuck(f"{owner}: " + "; ".join(c.message for c in plan.status.conditions))
        maps = [manifest["data"] for manifest in plan.create if manifest["kind"] == "ConfigMap"]
        for data in maps:
            if SNAPSHOT_KEY in data:
                self._snapshots[owner] = Snapshot.model_validate_json(data[SNAPSHOT_KEY])
        specs = [data[SPEC_KEY] for data in maps if SPEC_KEY in data]
        jobs = [manifest["metadata"]["name"] for manifest in plan.create if manifest["kind"] == "Job"]
        for name, spec in zip(jobs, specs, strict=True):
            self._jobs[name] = self._run(owner, name, spec)

    def _run(self, owner: str, job: str, spec: str) -> JobView:
        """Runs a stage to its end, as the Job's pod would."""
        folder = self.root / "jobs" / job
        folder.mkdir(parents=True)
        (folder / SPEC_KEY).write_text(spec, encoding="utf-8")
        stage = Stage(json.loads(spec)["stage"])
        told = folder / "termination-log"
        environment = os.environ | {
            "FLYWHEEL_CLAIMS_ROOT": str(self.root),
            "FLYWHEEL_STATUS_PORT": "0",
            "FLYWHEEL_TERMINATION_LOG": str(told),
            "OMP_WAIT_POLICY": "PASSIVE",  # as in the trainer's image
        }
        command = [sys.executable, "-m", "flywheel_trainer", stage.value, "--spec", str(folder / SPEC_KEY)]
        began = time.monotonic()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            # Not Popen.wait: only wait4 tells the peak of this very process.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        run = Run(owner, stage, time.monotonic() - began, cpu, usage.ru_maxrss * KIBIBYTE)
        self.runs.append(run)
        result = _result(told)
        said = result.message if result is not None else f"no result, exit {process.returncode}: {folder / 'log'}"
        sys.stderr.write(f"{owner} {stage.value}: {run.seconds:.0f} s, {said}\n")
        state = JobState.SUCCEEDED if process.returncode == 0 else JobState.FAILED
        return JobView(job, state, result=result, exit_code=process.returncode)


def _result(told: Path) -> StageResult | None:
    try:
        return StageResult.model_validate_json(told.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def _admitted(manifest: Manifest) -> Manifest:
    """With what an API server would add."""
    name = manifest["metadata"]["name"]
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": "local", "uid": f"uid-{name}"}}
