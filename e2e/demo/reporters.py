"""Two ways to show a board: a live view on a terminal, plain lines elsewhere (a log, CI)."""

import os
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, RenderableType
from rich.live import Live

from e2e.demo import view
from e2e.demo.board import Board, duration
from e2e.demo.objects import Turn, seconds
from flywheel_operator.model.phases import StageState
from flywheel_operator.model.status import StageStatus

REFRESH_PER_SECOND = 2
PLAIN_EVERY_SECONDS = 30.0
BUSY = (StageState.QUEUED, StageState.RUNNING, StageState.RETRYING)
"""Stages that speak for themselves."""

Clock = Callable[[], datetime]


class Reporter(Protocol):
    """Where the board goes."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(self, *error: object) -> None:
        """End; what was shown stays on the screen."""
        ...

    def say(self, text: str) -> None:
        """A remark of the step that runs."""
        ...

    def show(self) -> None:
        """The board has changed."""
        ...


def choose(console: Console, board: Board, clock: Clock) -> Reporter:
    """Live on a terminal that can move its cursor, else plain."""
    able = console.is_terminal and not console.is_dumb_terminal and "NO_LIVE" not in os.environ
    return LiveReporter(console, board, clock) if able else PlainReporter(console, board, clock)


class LiveReporter:
    """Draws the board anew twice a second."""

    def __init__(self, console: Console, board: Board, clock: Clock) -> None:
        """`clock` tells the time."""
        self._board, self._clock = board, clock
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=REFRESH_PER_SECOND)

    def __enter__(self) -> Self:
        """Take the lower part of the screen."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last picture there."""
        self._live.stop()

    def say(self, text: str) -> None:
        """Beside the step that runs."""
        if self._board.steps:
            self._board.steps[-1].note = text

    def show(self) -> None:
        """Nothing to do: it is drawn anyway."""

    def _draw(self) -> RenderableType:
        return view.render(self._board, self._clock())


class PlainReporter:
    """Prints a line where something has changed, and twice a minute how far the running stage is."""

    def __init__(self, console: Console, board: Board, clock: Clock) -> None:
        """`clock` tells the time."""
        self._console, self._board, self._clock = console, board, clock
        self._steps_begun = 0
        self._steps_ended = 0
        self._seen: dict[tuple[str, str], str] = {}
        self._last = board.began

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing to tidy."""

    def say(self, text: str) -> None:
        """As a line."""
        self._line(f"  {text}")

    def show(self) -> None:
        """Tell what is new since the last time."""
        for step in self._board.steps[self._steps_ended :]:
            if self._board.steps.index(step) >= self._steps_begun:
                self._steps_begun += 1
                self._line(step.title)
            if step.ended is not None:
                self._steps_ended += 1
                self._line(f"  done in {duration(step.seconds(self._clock()))}")
        for turn in self._board.turns.values():
            self._turn(turn)

    def _turn(self, turn: Turn) -> None:
        for stage in turn.stages:
            if stage.state is not StageState.PENDING:
                self._stage(turn, stage)
        said = turn.why()
        told = f"{turn.outcome}: {said}" if said and not turn.came_to_an_answer else turn.outcome
        busy = any(s.state in BUSY for s in turn.stages)
        if not busy and self._news(turn.name, "", told):
            self._line(f"{turn.name} is {told}")
            for gate in turn.gates if turn.ended else ():
                self._line(f"    {gate.verdict:<11} {gate.name}: {gate.message}")

    def _stage(self, turn: Turn, stage: StageStatus) -> None:
        now = self._clock()
        changed = self._news(turn.name, stage.name.value, stage.state.value)
        due = stage.state is StageState.RUNNING and (now - self._last).total_seconds() >= PLAIN_EVERY_SECONDS
        if not changed and not due:
            return
        self._last = now
        took = seconds(stage, now)
        parts = [
            f"{turn.name} {stage.name.value}: {stage.state.value}",
            f"{stage.progress.percent}%" if stage.progress and stage.state is StageState.RUNNING else "",
            view.numbers(stage),
            duration(took) if took is not None else "",
            stage.message if stage.state in (StageState.FAILED, StageState.RETRYING, StageState.SUCCEEDED) else "",
        ]
        self._line("  ".join(part for part in parts if part))

    def _news(self, turn: str, stage: str, text: str) -> bool:
        if self._seen.get((turn, stage)) == text:
            return False
        self._seen[turn, stage] = text
        return True

    def _line(self, text: str) -> None:
        clock = duration((self._clock() - self._board.began).total_seconds())
        self._console.print(f"[{clock:>7}] {text}", markup=False, highlight=False, soft_wrap=True)
