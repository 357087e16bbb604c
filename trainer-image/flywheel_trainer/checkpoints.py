"""Checkpoints of transformers' Trainer: which one can be gone on from.

Saving is not atomic. A checkpoint counts when trainer_state.json, which is written last, is there, and the sentinel
`checkpoint-is-incomplete.txt` that transformers puts down while it saves on SIGTERM is not.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SENTINEL: Final = "checkpoint-is-incomplete.txt"
_STATE: Final = "trainer_state.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    total_steps: int

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train; the Trainer would take one step too many."""
        return self.step >= self.total_steps


def last_complete(folder: Path) -> Checkpoint | None:
    """The complete checkpoint of the highest step below `folder`."""
    return max(_complete(folder), key=lambda checkpoint: checkpoint.step, default=None)


def vouches(file: Path) -> bool:
    """Whether `file` is what makes a checkpoint complete, so that it has to be copied last."""
    return file.name == _STATE


def forget(folder: Path) -> None:
    """Removes all that earlier attempts left in `folder`."""
    shutil.rmtree(folder)
    folder.mkdir()


def _complete(folder: Path) -> Iterator[Checkpoint]:
    for path in folder.glob("checkpoint-*"):
        if (path / _SENTINEL).exists():
            continue
        try:
            state = json.loads((path / _STATE).read_text(encoding="utf-8"))
            yield Checkpoint(path, int(state["global_step"]), int(state["max_steps"]))
        except (OSError, ValueError, KeyError):
            # Cut short while it was written: an attempt was killed here, and the one before counts.
            continue
