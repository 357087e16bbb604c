"""Loss and reward over the steps of every training stage, as PNG files."""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Steps = list[dict[str, float]]

SMOOTHING = 0.8
COLUMNS = 4
COLOUR = "#2a6f97"


def read_steps(text: str) -> Steps:
    """A stage's metrics.jsonl, one line per optimiser step; a line that was cut short ends it."""
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def draw(curves: Mapping[str, Steps], value: str, title: str, file: Path) -> bool:
    """One panel per stage (title -> steps) with `value` over the steps. Nothing is written where no stage has it."""
    panels = {name: [(s["step"], s[value]) for s in steps if value in s] for name, steps in curves.items()}
    panels = {name: points for name, points in panels.items() if points}
    if not panels:
        return False
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.8 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, points) in zip(axes, panels.items(), strict=False):
        _panel(axis, name, value, points)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    return True


def _panel(axis: Axes, name: str, value: str, points: Sequence[tuple[float, float]]) -> None:
    steps, values = [p[0] for p in points], [p[1] for p in points]
    axis.plot(steps, values, color=COLOUR, alpha=0.3, linewidth=1)
    axis.plot(steps, smoothed(values), color=COLOUR, linewidth=1.8)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("step", fontsize=9)
    axis.set_ylabel(value, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential moving average that starts at the first value."""
    return list(accumulate(values, lambda mean, value: SMOOTHING * mean + (1 - SMOOTHING) * value))
