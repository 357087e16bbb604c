"""The geometry of the report's two plots; the template draws them as SVG. Units are those of the viewBox."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

WIDTH: Final = 640
ROW: Final = 26
_LEFT, _RIGHT, _TOP = 190, 60, 24
_HEIGHT: Final = 300


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval on a line of its own, and its value."""

    label: str
    text: str
    y: float
    low: float
    high: float
    value: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A tick or a guide: where it is, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates between 0 and 1 with their intervals, one under the other."""

    height: int
    bars: list[Bar]
    marks: list[Mark]


@dataclass(frozen=True, slots=True)
class Dot:
    """A model on its way: divergence along, reward up, with the interval of the reward."""

    label: str
    x: float
    y: float
    low: float
    high: float
    turned: bool
    """The label goes to the left of the dot: there is no room on the right."""


@dataclass(frozen=True, slots=True)
class Way:
    """Reward over the root of the divergence."""

    dots: list[Dot]
    xs: list[Mark]
    ys: list[Mark]


def rates(measured: Sequence[tuple[str, Mapping[str, Any]]], guides: Sequence[float] = (0.5, 0.65)) -> Rates:
    """Label and measurement (value, low, high) of each rate."""

    def x(share: float) -> float:
        return round(_LEFT + min(max(share, 0.0), 1.0) * (WIDTH - _LEFT - _RIGHT), 1)

    bars = [
        Bar(
            label,
            f"{m['value']:.1%}",
            _TOP + ROW * (number + 0.5),
            x(m.get("low", m["value"])),
            x(m.get("high", m["value"])),
            x(m["value"]),
        )
        for number, (label, m) in enumerate(measured)
    ]
    marks = [Mark(x(at), f"{at:.0%}") for at in guides]
    return Rates(_TOP + ROW * len(bars) + 12, bars, marks)


def way(points: Sequence[Mapping[str, Any]]) -> Way:
    """The points of the report's `way`. A divergence estimated below 0 is drawn at 0."""
    along = [math.sqrt(max(0.0, p["kl"]["value"])) for p in points]
    gains = [p["rewardGain"] for p in points]
    lows = [g.get("low", g["value"]) for g in gains]
    highs = [g.get("high", g["value"]) for g in gains]
    far = max([*along, 1e-6])
    bottom, top = min([*lows, 0.0]), max([*highs, 0.0])
    span = max(top - bottom, 1e-6)

    def x(value: float) -> float:
        return round(60 + value / far * (WIDTH - 160), 1)

    def y(value: float) -> float:
        return round(20 + (top - value) / span * (_HEIGHT - 70), 1)

    dots = [
        Dot(p["model"], x(a), y(g["value"]), y(low), y(high), a > 0.8 * far)
        for p, a, g, low, high in zip(points, along, gains, lows, highs, strict=True)
    ]
    xs = [Mark(x(far * k / 4), f"{far * k / 4:.2g}") for k in range(5)]
    ys = [Mark(y(bottom + span * k / 4), f"{bottom + span * k / 4:+.2g}") for k in range(5)]
    return Way(dots, xs, ys)
