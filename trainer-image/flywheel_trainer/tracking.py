"""Experiment trackers: Weights & Biases, MLflow and TensorBoard, by the environment variable FLYWHEEL_REPORT_TO.

A tracker is a convenience and must not cost a training: each one lives in a thread of its own that the training never
waits for, and one that is away, slow or misconfigured is given up and named in the stage's message. Credentials and
addresses are the tracker's own variables (WANDB_API_KEY, WANDB_MODE, MLFLOW_TRACKING_URI, ...), which
`runtime.secretEnv` and `runtime.env` bring. What a tracker writes to disk (TensorBoard's events, offline runs) ends up
in `logs/`.
"""

import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flywheel_contract.paths import REPORT_TO
from flywheel_contract.stage_spec import inputs_digest
from flywheel_trainer.context import StageContext, is_main_process
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.progress import monotonic

_log = logging.getLogger(__name__)

END_SECONDS: Final = 30.0
"""How long the end of a training waits for a tracker to send what it still holds."""


class Tracker(Protocol):
    """A connection to a tracker, opened when it is made."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the values of a step."""

    def close(self) -> None:
        """Sends the rest and ends the run."""


class _TensorBoard:
    def __init__(self, ctx: StageContext, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 -- seconds, and only where it is asked for

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, ctx: StageContext, folder: Path) -> None:
        import wandb  # noqa: PLC0415

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", ctx.spec.group),
            name=_run_name(ctx),
            # The same run in every attempt at the same inputs.
            id=inputs_digest(ctx.spec).removeprefix("sha256:")[:16],
            resume="allow",
            dir=str(folder),
            config=ctx.spec.params.to_json(),
            settings=wandb.Settings(init_timeout=END_SECONDS, finish_timeout=END_SECONDS, console="off", silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"train/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, ctx: StageContext, folder: Path) -> None:
        # Its own defaults wait for two minutes, seven times over.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").as_uri()
        if uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient  # noqa: PLC0415

        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", ctx.spec.group)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
        self._id = self._client.create_run(experiment, run_name=_run_name(ctx)).info.run_id
        for key, value in ctx.spec.params.to_json().items():
            self._client.log_param(self._id, key, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415

        self._client.log_batch(self._id, [Metric(name, value, 0, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


TRACKERS: Final[Mapping[str, Callable[[StageContext, Path], Tracker]]] = {
    "WandB": _WandB,
    "MLflow": _MLflow,
    "TensorBoard": _TensorBoard,
}


class Line:
    """A tracker in a thread of its own. What goes wrong there ends the tracking, never the training."""

    def __init__(self, name: str, connect: Callable[[], Tracker]) -> None:
        self.name = name
        self.trouble: str | None = None
        """What went wrong, once something has."""
        self._waiting: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(connect,), name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Leaves the values of a step to the thread."""
        if self.trouble is None:
            self._waiting.put((step, dict(values)))

    def end(self) -> None:
        """There is no more to come."""
        self._waiting.put(None)

    def wait(self, seconds: float) -> None:
        """Waits, after the end, for what is left to be sent, but no longer than `seconds`."""
        self._thread.join(seconds)
        if self._thread.is_alive() and self.trouble is None:
            self.trouble = "it was still sending when the stage had to go on"

    def _work(self, connect: Callable[[], Tracker]) -> None:
        try:
            tracker = connect()
            while (item := self._waiting.get()) is not None:
                tracker.log(*item)
            tracker.close()
        except Exception as error:  # noqa: BLE001 -- whatever a tracker throws is no reason to lose a training
            text = (str(error).splitlines() or [""])[0]
            self.trouble = f"{type(error).__name__}: {text[:160]}"
            _log.warning("tracker %s is given up: %s", self.name, self.trouble)


class TrackingCallback(TrainerCallback):
    """Hands every logged step to the trackers, and notes for the stage's message which of them failed."""

    def __init__(self, ctx: StageContext, names: list[str], folder: Path) -> None:
        self._ctx = ctx
        self._names = names
        self._folder = folder
        self._lines: list[Line] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Opens the trackers; the training does not wait for them."""
        self._lines = [Line(name, lambda n=name: TRACKERS[n](self._ctx, self._folder)) for name in self._names]  # type: ignore[misc]

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: object,
    ) -> None:
        """Passes a step on."""
        values = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        for line in self._lines:
            line.log(state.global_step, values)

    def on_train_end(self, *_: object, **__: object) -> None:
        """Ends the trackers, and waits for all of them together: after SIGTERM there is a limit."""
        for line in self._lines:
            line.end()
        deadline = monotonic() + END_SECONDS
        for line in self._lines:
            line.wait(max(0.0, deadline - monotonic()))
            if line.trouble is not None:
                self._ctx.notes.append(f"tracker {line.name} was given up ({line.trouble})")


def callback(ctx: StageContext) -> TrackingCallback | None:
    """The callback for the trackers that are asked for; None where there are none, and in all but one process.

    Raises:
        ConfigError: the name of a tracker is unknown.
    """
    names = [name for name in os.environ.get(REPORT_TO, "").split(",") if name]
    if unknown := [name for name in names if name not in TRACKERS]:
        raise ConfigError(f"reportTo: {', '.join(unknown)} is unknown; choose from {', '.join(TRACKERS)}")
    return TrackingCallback(ctx, names, folder(ctx)) if names and is_main_process() else None


def folder(ctx: StageContext) -> Path:
    """Where trackers write what they keep on disk; it outlives an interrupted attempt."""
    return ctx.work / "tracking"


def _run_name(ctx: StageContext) -> str:
    return f"{ctx.spec.owner}/{ctx.spec.stage.value}"
