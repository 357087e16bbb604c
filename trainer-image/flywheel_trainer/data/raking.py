"""How many to take from each cell, so that the margins of what is taken have given shares.

Iterative proportional fitting, or raking (Deming and Stephan, "On a least squares adjustment of a sampled frequency
table when the expected marginal totals are known", 1940), with a cap in every cell: nothing can be taken twice. The
fitted numbers become whole by rounding their running sum (systematic sampling; Madow and Madow, 1944), which keeps the
total exactly and margins to within few units.

A *cell* is a combination of values, one of each dimension; `codes[d][c]` numbers cell c's value of dimension d.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_ROUNDS: Final = 200
_STILL: Final = 1e-3
"""Units that a cell moves at most in the last round."""


@dataclass(frozen=True, slots=True)
class Table:
    """What there is, and what shares are wanted."""

    available: Ints
    """Units in each cell, at least 1."""
    codes: Sequence[Ints]
    targets: Sequence[Floats]
    """For each dimension, the wanted share of each value; they add up to 1 over the values that any cell has."""

    def margins(self, taken: Floats | Ints, dimension: int) -> Floats:
        """The sums of `taken` over the cells of each value."""
        size = len(self.targets[dimension])
        return np.bincount(self.codes[dimension], weights=taken, minlength=size).astype(np.float64)

    def deviation(self, taken: Floats | Ints) -> float:
        """By how much the share of any value is off at most; 1 where nothing is taken."""
        total = float(taken.sum())
        if total == 0:
            return 1.0
        off = [np.abs(self.margins(taken, d) / total - t).max() for d, t in enumerate(self.targets)]
        return float(max(off, default=0.0))


def quotas(table: Table, *, tolerance: float, least: int, most: int) -> Ints:
    """Units to take from each cell: as many as possible, up to `most`, with every share within `tolerance`.

    Where that would be fewer than `least`, `least` are taken, as near to the targets as they can be.
    """
    most = min(most, int(table.available.sum()))
    least = min(least, most)
    low, high = least, most + 1
    if table.deviation(fit(table, most)) <= tolerance:
        low = most
    # Shares that can be had with many can be had with fewer, so halving finds the largest number.
    while high - low > 1:
        middle = (low + high) // 2
        met = table.deviation(fit(table, middle)) <= tolerance
        low, high = (middle, high) if met else (low, middle)
    return np.minimum(whole(fit(table, low)), table.available)


def fit(table: Table, total: int) -> Floats:
    """`total` units, raked: cells start in proportion to what they have and stay within it."""
    caps = table.available.astype(np.float64)
    taken = caps * (total / caps.sum())
    for _ in range(_ROUNDS):
        before = taken
        # Where targets contradict one another, the one that comes last is met: the first that was named.
        for dimension, target in reversed(list(enumerate(table.targets))):
            margins = table.margins(taken, dimension)
            factors = np.divide(target * total, margins, out=np.zeros_like(margins), where=margins > 0)
            taken = np.minimum(taken * factors[table.codes[dimension]], caps)
        if np.abs(taken - before).max() < _STILL:
            break
    return _filled(taken, caps, total)


def whole(taken: Floats) -> Ints:
    """Whole numbers whose running sum is that of `taken`, rounded."""
    running = np.floor(np.cumsum(taken) + 0.5 - 1e-9)
    return np.diff(running, prepend=0.0).astype(np.intp)


def _filled(taken: Floats, caps: Floats, total: int) -> Floats:
    """Caps may have left less than `total`: the rest is taken in proportion to what is open, the unwanted last."""
    for wanted in (taken > 0, np.ones_like(taken, dtype=np.bool_)):
        free = np.where(wanted, caps - taken, 0.0)
        lacking, room = total - taken.sum(), free.sum()
        if lacking > 0 and room > 0:
            taken = taken + free * min(1.0, lacking / room)
    return np.minimum(taken, caps)
