import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from e2e.demo import reporters, view
from e2e.demo.board import Board, Step, duration
from e2e.demo.objects import Turn

Load = Callable[[str], Turn]
START = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time


def drawn(board: Board, seconds: float = 400.0) -> str:
    console = Console(file=io.StringIO(), width=140, color_system=None)
    console.print(view.render(board, START + timedelta(seconds=seconds)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def board(*turns: Turn) -> Board:
    steps = [Step("Images", START, START + timedelta(seconds=5)), Step("Data", START + timedelta(seconds=5))]
    return Board(START, steps, {t.name: t for t in turns}, ("human-reply", "luna-1", "luna-2"))


def test_a_running_stage_shows_step_loss_and_time_left(recorded: Load) -> None:
    text = drawn(board(recorded("running")))
    line = next(line for line in text.splitlines() if " sft " in line)
    assert "▶" in line
    assert "12/30" in line
    assert "loss 3.21  ETA 45 s" in line
    assert "1:40" in line, "it has run since second 300"
    assert "luna-2: not started" in text
    assert "✓ Images 5 s" in text


def test_what_has_ended_folds_into_its_gates(recorded: Load) -> None:
    text = drawn(board(recorded("ready_reward_model"), recorded("promoted"), recorded("gated")))
    assert "luna-1 Generation: Promoted" in text
    assert "luna-2 Generation: Gated" in text
    assert "✗ win-rate-ceiling-user 0.710 [0.640, 0.780] n=100, not <= 0.65" in text
    assert "✓ 1 of 2 gates: win-rate" in text
    assert "evaluate" not in text


def test_a_failure_says_why(recorded: Load) -> None:
    text = drawn(board(recorded("failed")))
    assert "StageFailed: stage curate: traffic.jsonl, line 3: the row has no user id" in text


def test_an_object_without_status_can_be_drawn() -> None:
    fresh = Turn.parse({"kind": "Generation", "metadata": {"name": "luna-1"}})
    assert "luna-1 Generation: Pending" in drawn(board(fresh))
    assert not fresh.ended


@pytest.mark.parametrize(("seconds", "text"), [(7, "7 s"), (59.6, "1:00"), (125, "2:05"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_a_terminal_each_change_is_one_line(recorded: Load) -> None:
    out = io.StringIO()
    clock = Clock()
    shown = board(recorded("running"))
    reporter = reporters.choose(Console(file=out, width=200), shown, clock)
    with reporter:
        reporter.show()
        reporter.show()
        before = out.getvalue()
        clock.time += timedelta(seconds=31)
        reporter.show()
        shown.turns["luna-1"] = recorded("gated")
        reporter.say("a remark")
        reporter.show()
    assert before.count("luna-1 sft: Running  40%") == 1
    assert before.count("done in 5 s") == 1
    text = out.getvalue()
    assert text.count("luna-1 sft: Running  40%") == 2, "after half a minute it tells how far it is"
    assert text.count("luna-2 is Gated") == 1
    assert "[   31 s]   a remark" in text
    assert "\x1b" not in text


def test_a_terminal_gets_the_live_view(recorded: Load) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140, legacy_windows=False)
    reporter = reporters.LiveReporter(console, board(recorded("running")), Clock())
    with reporter:
        reporter.say("copying")
        reporter.show()
    assert "copying" in out.getvalue()
