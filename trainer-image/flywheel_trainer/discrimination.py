"""How well a score tells who gave a signal from who did not, now and over time.

The area under the ROC curve is the chance that a row with the signal scores above one without, a tie counting a half
(Hanley and McNeil, "The Meaning and Use of the Area under a ROC Curve", 1982). The population stability index compares
how scores are spread at two times (Siddiqi, "Credit Risk Scorecards", 2006): the sum over bins of (q - p) ln(q / p).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flywheel_trainer.intervals import Estimate, weights

MAX_BINS: Final = 10
ROWS_PER_BIN: Final = 25
"""By chance alone the index is about (bins - 1)(1/n + 1/m) (Yurdakul and Naranjo, 2020): few rows, few bins."""


def auc(users: Sequence[str], scores: ArrayLike, labels: ArrayLike, *, samples: int, seed: int) -> Estimate | None:
    """The area under the ROC curve, bootstrapped over users; None where all labels are the same.

    The same users with the same seed give resamples that belong together. A resample without one of the labels says
    nothing, and counts a half.
    """
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if label.all() or not label.any():
        return None
    names, owner = np.unique(np.asarray(users, dtype=str), return_inverse=True)
    # By score: rows of one score form a group, so that one cumulative sum answers every resample.
    _, group = np.unique(score, return_inverse=True)
    starts = np.flatnonzero(np.diff(np.sort(group), prepend=-1))
    order = np.argsort(group, kind="stable")
    owner, given = owner[order], label[order].astype(np.float64)

    def area(weight: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = weight[:, owner]
        positive = np.add.reduceat(rows * given, starts, axis=1)
        negative = np.add.reduceat(rows * (1 - given), starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        return np.where(pairs > 0, (positive * below).sum(axis=1) / np.maximum(pairs, 1), 0.5)

    parts = [area(weight) for weight in weights(len(names), samples, seed=seed, width=len(score))]
    return Estimate(float(area(np.ones((1, len(names))))[0]), np.concatenate(parts), len(names))


@dataclass(frozen=True)
class Slice:
    """The held-out rows of one stretch of time."""

    first: datetime
    last: datetime
    rows: NDArray[np.intp]


def slices(times: Sequence[datetime | None], count: int) -> list[Slice]:
    """The rows that have a time, oldest first, cut into `count` slices of equally many; none where they are too few."""
    timed = sorted((time, row) for row, time in enumerate(times) if time is not None)
    if len(timed) < count:
        return []
    found = []
    for part in np.array_split(np.arange(len(timed)), count):
        inside = [timed[i] for i in part]
        found.append(Slice(inside[0][0], inside[-1][0], np.array([row for _, row in inside], dtype=np.intp)))
    return found


def drift(before: ArrayLike, after: ArrayLike) -> float:
    """The population stability index between two sets of scores, in bins of equal mass of the first.

    Half a row is added to every bin, so that an empty one does not make it infinite.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    count = max(2, min(MAX_BINS, min(len(first), len(second)) // ROWS_PER_BIN))
    edges = np.quantile(first, np.linspace(0, 1, count + 1)[1:-1])
    p, q = (_shares(np.searchsorted(edges, scores, side="right"), count) for scores in (first, second))
    return float(((q - p) * np.log(q / p)).sum())


def _shares(bins: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    rows = np.bincount(bins, minlength=count) + 0.5
    return np.asarray(rows / rows.sum(), dtype=np.float64)
