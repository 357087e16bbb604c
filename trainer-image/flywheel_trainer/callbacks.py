"""Watches a training run: progress, the history of its steps, NaN, and SIGTERM."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flywheel_contract.manifest import Measurement
from flywheel_trainer.artifacts import write_atomically
from flywheel_trainer.context import StageContext, is_main_process
from flywheel_trainer.errors import NotFiniteError

_MUST_BE_FINITE: Final = ("loss", "grad_norm", "reward", "kl", "objective/scores", "objective/kl")

_SHARE_OF_STEPS: Final = 10
"""A first or last value is the mean over a tenth of the steps: one step's is mostly noise."""


class History:
    """The logged values of each optimiser step, kept in a file across attempts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[dict[str, Any]] = _lines(path)

    def keep_up_to(self, step: int) -> None:
        """Forgets what an interrupted attempt logged behind its last checkpoint; those steps come again."""
        self.steps = [line for line in self.steps if line["step"] <= step]
        if is_main_process():
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in self.steps))

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Appends a step; only the first process writes the file."""
        line = {"step": step, **values}
        self.steps.append(line)
        if is_main_process():
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def first(self, name: str) -> Measurement | None:
        """The mean of `name` over the first tenth of the steps; `n` is their number."""
        return _mean(self._values(name), from_end=False)

    def last(self, name: str) -> Measurement | None:
        """The mean of `name` over the last tenth of the steps."""
        return _mean(self._values(name), from_end=True)

    def median(self, name: str) -> Measurement | None:
        """The median of `name` over all steps."""
        values = self._values(name)
        return Measurement(value=median(values), n=len(values)) if values else None

    def _values(self, name: str) -> list[float]:
        return [line[name] for line in self.steps if isinstance(line.get(name), int | float)]


class StageCallback(TrainerCallback):
    """Tells the status endpoint of every step, stops at NaN, and ends the run with a checkpoint after SIGTERM."""

    def __init__(self, ctx: StageContext, history: History) -> None:
        self._ctx = ctx
        self._history = history
        self._started = 0.0
        self._began = 0.0
        self._seconds = 0.0

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Starts the clock of this attempt."""
        self._started = time.perf_counter()

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Starts the clock of a step."""
        self._began = time.perf_counter()

    def on_step_end(
        self, _args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Stops the clock; after SIGTERM asks for a checkpoint and the end."""
        self._seconds = time.perf_counter() - self._began
        if _any_process(self._ctx.stopping.is_set()):
            self._ctx.stopping.set()
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: object,
    ) -> None:
        """Keeps what a step logged. It comes before the step's checkpoint, so no NaN is ever saved.

        Raises:
            NotFiniteError: names the value and the step.
        """
        logs = logs or {}
        if "train_runtime" in logs:
            return
        for name in _MUST_BE_FINITE:
            value = logs.get(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise NotFiniteError(
                    f"{name} became {value} at step {state.global_step} of {state.max_steps}; "
                    "lower the learning rate, or look for broken rows or weights"
                )
        finite = {k: v for k, v in logs.items() if not isinstance(v, float) or math.isfinite(v)}
        times = {"seconds": round(self._seconds, 6), "elapsed": round(time.perf_counter() - self._started, 6)}
        self._history.add(state.global_step, {**finite, **times})
        self._ctx.progress(
            step=state.global_step,
            total_steps=state.max_steps,
            loss=logs.get("loss"),
            reward=logs.get("reward", logs.get("objective/scores")),
        )

    def on_save(self, *_: object, **__: object) -> None:
        """Takes the checkpoint to where the next attempt finds it."""
        if is_main_process():
            self._ctx.keep_checkpoints()


def _any_process(flag: bool) -> bool:
    """Whether any process says so. All of them must stop at the same step, or the others wait for ever."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flag
    where = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    told = torch.tensor(int(flag), device=where)
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return bool(told.item())


def _mean(values: Sequence[float], *, from_end: bool) -> Measurement | None:
    if not values:
        return None
    count = max(1, len(values) // _SHARE_OF_STEPS)
    part = values[-count:] if from_end else values[:count]
    return Measurement(value=fmean(part), n=count)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The steps in the file. A line that a kill cut short, always the last one, does not count."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return found
