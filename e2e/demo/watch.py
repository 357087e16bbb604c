"""Waits for objects of ours to come to an end, and shows them while they do."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from e2e.demo.board import Board
from e2e.demo.errors import DemoError
from e2e.demo.objects import KINDS, Turn
from e2e.demo.reporters import Reporter
from e2e.kubectl import Kubectl, KubectlError

POLL_SECONDS = 3.0
SILENCE_SECONDS = 900.0
"""So long may nothing at all change in any status: the longest stage tells its progress much more often."""
PATIENCE = 20
"""So many looks in a row may fail: an API server that restarts is no reason to give up."""


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def turns(kubectl: Kubectl) -> dict[str, Turn]:
    """All RewardModels and Generations in the namespace, by name."""
    items = kubectl.list(",".join(KINDS.values()))
    return {item["metadata"]["name"]: Turn.parse(item) for item in items}


class TurnFailedError(DemoError):
    """An object ended without the answer that it was made for."""

    def __init__(self, turn: Turn) -> None:
        """Name the object."""
        super().__init__(f"{turn.kind} {turn.name} is {turn.outcome}. {turn.why()}")
        self.turn = turn


def follow(kubectl: Kubectl, names: Sequence[str], board: Board, reporter: Reporter) -> None:
    """Look every few seconds until all `names` have ended, and show what has changed.

    Raises:
        TurnFailedError: one ended without an answer.
        DemoError: nothing has changed for a long time, or the API server does not answer.
    """
    failures = 0
    before, changed = "", time.monotonic()
    while True:
        try:
            board.turns.update(turns(kubectl))
            failures = 0
        except (KubectlError, json.JSONDecodeError) as error:
            failures += 1
            if failures >= PATIENCE:
                raise DemoError(f"the API server has not answered {PATIENCE} times in a row: {error}") from error
        reporter.show()
        found = [board.turns[name] for name in names if name in board.turns]
        for turn in found:
            if turn.ended and not turn.came_to_an_answer:
                raise TurnFailedError(turn)
        if len(found) == len(names) and all(turn.ended for turn in found):
            return
        picture = "".join(turn.status.model_dump_json() for turn in found)
        if picture != before:
            before, changed = picture, time.monotonic()
        elif time.monotonic() - changed > SILENCE_SECONDS:
            raise DemoError(f"{', '.join(names)}: no status has changed for {SILENCE_SECONDS / 60:.0f} minutes")
        time.sleep(POLL_SECONDS)
