"""Whether probabilities mean what they say: the expected calibration error over bins of equal mass.

Rows are sorted by their probability and cut into bins of (nearly) equally many; the error is the mean distance between
a bin's mean probability and the share of rows in which the outcome came (Naeini, Cooper and Hauskrecht, "Obtaining Well
Calibrated Probabilities Using Bayesian Binning", 2015; equal mass instead of equal width after Nguyen and O'Connor,
"Posterior calibration and exploratory analysis for natural language processing models", 2015). It is never below 0, so
even a calibrated model shows some, the more the fewer rows there are; few rows give few bins, which keeps that small.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flywheel_trainer.intervals import Estimate, weights

MAX_BINS: Final = 10
ROWS_PER_BIN: Final = 10


def error(users: Sequence[str], probabilities: ArrayLike, outcomes: ArrayLike, *, samples: int, seed: int) -> Estimate:
    """The expected calibration error (0 to 1), bootstrapped over users with the bins of the whole.

    Args:
        users: the owner of each row.
        probabilities: what was said, row by row.
        outcomes: what came, 0 or 1 (a half where nobody can tell).
        samples: resamples.
        seed: of the resampling.
    """
    said, came = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    bins = _bins(said)
    names, owner = np.unique(np.asarray(users, dtype=str), return_inverse=True)
    surplus = np.zeros((len(names), bins.max() + 1))
    np.add.at(surplus, (owner, bins), said - came)
    rows = np.bincount(owner, minlength=len(names)).astype(np.float64)
    parts = [
        np.abs(weight @ surplus).sum(axis=1) / (weight @ rows) for weight in weights(len(names), samples, seed=seed)
    ]
    value = float(np.abs(surplus.sum(axis=0)).sum() / len(said))
    return Estimate(value, np.concatenate(parts), len(names))


def reliability(probabilities: ArrayLike, outcomes: ArrayLike) -> list[dict[str, float]]:
    """Each bin's rows, mean probability, and share of rows in which the outcome came."""
    said, came = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    bins = _bins(said)
    found = []
    for number in range(bins.max() + 1):
        inside = bins == number
        found.append(
            {"rows": int(inside.sum()), "said": float(said[inside].mean()), "came": float(came[inside].mean())}
        )
    return found


def _bins(said: NDArray[np.float64]) -> NDArray[np.intp]:
    """The bin of each row."""
    count = max(1, min(MAX_BINS, len(said) // ROWS_PER_BIN))
    rank = np.empty(len(said), dtype=np.intp)
    rank[np.argsort(said, kind="stable")] = np.arange(len(said))
    return rank * count // len(said)
