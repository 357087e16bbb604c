"""The live view: steps, then each turn of the wheel with its stages, progress, losses and gates."""

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from e2e.demo.board import Board, Step, duration
from e2e.demo.objects import Turn, finished, seconds
from flywheel_contract.manifest import Measurement
from flywheel_operator.model.phases import StageState
from flywheel_operator.model.status import StageStatus

BAR_WIDTH = 18
MARKS = {
    StageState.PENDING: ("·", "dim"),
    StageState.QUEUED: ("…", "yellow"),
    StageState.RUNNING: ("▶", "cyan"),
    StageState.RETRYING: ("↻", "yellow"),
    StageState.SUCCEEDED: ("✓", "green"),
    StageState.FAILED: ("✗", "red"),
}
OUTCOMES = {"Promoted": "bold green", "Ready": "bold green", "Gated": "bold yellow", "StaleBaseline": "bold yellow"}
GATE_MARKS = {"Passed": ("✓", "green"), "Failed": ("✗", "red"), "NotMeasured": ("?", "yellow")}


def render(board: Board, now: datetime) -> RenderableType:
    """The whole view. Ended turns fold into a line and their gates, so that it fits on a screen."""
    parts: list[RenderableType] = [Text(f"CharacterFlywheel demo, {duration((now - board.began).total_seconds())}")]
    parts += _steps_done(board.steps, now) + [_step(step, now) for step in board.steps if step.ended is None]
    for name in board.planned:
        turn = board.turns.get(name)
        if turn is None:
            parts.append(Text(f"\n{name}: not started", style="dim"))
        else:
            parts.append(_turn(turn, now))
    return Group(*parts)


def _steps_done(steps: Sequence[Step], now: datetime) -> list[RenderableType]:
    """All finished steps in a paragraph: the screen belongs to what runs."""
    done = [step for step in steps if step.ended is not None]
    if not done:
        return []
    text = Text("✓ ", style="green")
    for number, step in enumerate(done):
        text.append(", " if number else "", style="default")
        text.append(step.title, style="default").append(f" {duration(step.seconds(now))}", style="dim default")
    return [text]


def _step(step: Step, now: datetime) -> RenderableType:
    line = Text.assemble(("▶", "cyan"), f" {step.title} ", (duration(step.seconds(now)), "dim"))
    if step.note:
        line.append(f"  {step.note}", style="dim")
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _turn(turn: Turn, now: datetime) -> RenderableType:
    title = Text.assemble(
        "\n", (turn.name, "bold"), f" {turn.kind}: ", (turn.outcome, OUTCOMES.get(turn.outcome, "bold cyan"))
    )
    title.append(f"  {finished(turn.stages)}/{len(turn.stages)} stages", style="dim")
    if turn.ended:
        return Group(title, *([_gates(turn)] if turn.gates else []), *_last_words(turn))
    return Group(title, _stages(turn, now), *_last_words(turn))


def _last_words(turn: Turn) -> list[RenderableType]:
    """Why it waits or how it ended; a stage that runs speaks for itself."""
    if any(s.state is StageState.RUNNING for s in turn.stages) or not (said := turn.why()) or turn.came_to_an_answer:
        return []
    return [Text(f"  {said}", style="red" if turn.ended else "dim")]


def _stages(turn: Turn, now: datetime) -> Table:
    table = Table.grid(padding=(0, 1))
    for justify in ("left", "left", "left", "right", "left", "right"):
        table.add_column(justify=justify, no_wrap=True)  # type: ignore[arg-type] # rich's own literals
    table.add_column(overflow="ellipsis", no_wrap=True, style="dim", ratio=1)
    for stage in turn.stages:
        mark, style = MARKS[stage.state]
        took = seconds(stage, now)
        table.add_row(
            Text(f"  {mark}", style=style),
            stage.name.value,
            _bar(stage),
            _steps(stage),
            Text(numbers(stage)),
            duration(took) if took is not None else "",
            _message(stage),
        )
    return table


def _bar(stage: StageStatus) -> RenderableType:
    if stage.state is StageState.SUCCEEDED or stage.state is StageState.PENDING:
        return ""
    done = stage.progress.percent if stage.progress is not None else 0
    return ProgressBar(total=100, completed=done, width=BAR_WIDTH)


def _steps(stage: StageStatus) -> str:
    progress = stage.progress
    if stage.state is not StageState.RUNNING or progress is None or progress.step is None:
        return ""
    return f"{progress.step}/{progress.total_steps}" if progress.total_steps else str(progress.step)


def numbers(stage: StageStatus) -> str:
    """Loss, reward and time left of a running stage, and of a finished one from where to where they went."""
    if stage.state is StageState.SUCCEEDED:
        metrics = {m.name: m for m in stage.metrics}
        pairs = (("loss", "trainLossFirst", "trainLossLast"), ("reward", "rlRewardFirst", "rlRewardLast"))
        return "  ".join(
            f"{said} {metrics[first].value:.3g} → {metrics[last].value:.3g}"
            for said, first, last in pairs
            if first in metrics and last in metrics
        )
    progress = stage.progress
    if stage.state is not StageState.RUNNING or progress is None:
        return ""
    parts = [
        f"loss {progress.loss:.3g}" if progress.loss is not None else "",
        f"reward {progress.reward:.3g}" if progress.reward is not None else "",
        f"ETA {duration(progress.eta_seconds)}" if progress.eta_seconds is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def _message(stage: StageStatus) -> str:
    if stage.state is StageState.RUNNING and stage.progress is not None and stage.progress.message:
        return stage.progress.message
    return stage.message if stage.state is not StageState.PENDING else ""


def _gates(turn: Turn) -> RenderableType:
    """Which gates passed, by name, and of each that did not the numbers."""
    table = Table.grid(padding=(0, 1))
    kept = [gate.name for gate in turn.gates if gate.verdict == "Passed"]
    if kept:
        table.add_row(Text("  ✓", style="green"), Text(f"{len(kept)} of {len(turn.gates)} gates: {', '.join(kept)}"))
    for gate in turn.gates:
        mark, style = GATE_MARKS[gate.verdict]
        if gate.verdict != "Passed":
            table.add_row(Text(f"  {mark}", style=style), f"{gate.name} {measured(gate)}, not {gate.bound}")
    return table


def measured(value: object) -> str:
    """A metric or gate as text: value, interval, number of units."""
    if isinstance(value, Measurement):
        number, low, high, n = value.value, value.low, value.high, value.n
    else:
        number, low, high, n = (getattr(value, name) for name in ("value", "low", "high", "n"))
    if number is None:
        return "not measured"
    text = f"{number:.3f}"
    if low is not None and high is not None:
        text += f" [{low:.3f}, {high:.3f}]"
    return text + (f" n={n}" if n is not None else "")
