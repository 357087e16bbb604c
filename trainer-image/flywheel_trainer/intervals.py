"""Intervals by the bootstrap over users.

Replies to one user are alike, so users are what is drawn with replacement, each with all rows (Efron and Tibshirani,
"An Introduction to the Bootstrap", 1993, chapter 8). Percentile intervals; the same seed gives the same numbers. `n` is
the number of users, the units that were drawn: a thousand rows of one user are one unit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flywheel_contract.manifest import Measurement

_CELLS_AT_ONCE: Final = 4_000_000
"""Resamples times users that are held in memory at a time."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic, its value in each resample, and the number of users behind it. `combine` makes one of several."""

    value: float
    resamples: NDArray[np.float64]
    users: int

    def measurement(self, confidence: float) -> Measurement:
        """The value with its two-sided percentile interval, widened to hold the value itself."""
        tail = (1 - confidence) / 2
        low, high = np.quantile(self.resamples, [tail, 1 - tail])
        return Measurement(
            value=self.value, low=min(float(low), self.value), high=max(float(high), self.value), n=self.users
        )


def ratio(users: Sequence[str], numerators: ArrayLike, denominators: ArrayLike, *, samples: int, seed: int) -> Estimate:
    """The sum of `numerators` over the sum of `denominators`, row by row of `users`.

    Raises:
        ValueError: no rows, or rows of different numbers.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not len(users) == len(top) == len(bottom) > 0:
        raise ValueError(f"{len(users)} users, {len(top)} numerators, {len(bottom)} denominators: give each row one")
    names, owner = np.unique(np.asarray(users, dtype=str), return_inverse=True)
    tops = np.bincount(owner, weights=top, minlength=len(names))
    bottoms = np.bincount(owner, weights=bottom, minlength=len(names))
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS_AT_ONCE // len(names))
    parts = []
    for start in range(0, samples, chunk):
        drawn = rng.integers(0, len(names), size=(min(chunk, samples - start), len(names)))
        parts.append(tops[drawn].sum(axis=1) / bottoms[drawn].sum(axis=1))
    return Estimate(float(top.sum() / bottom.sum()), np.concatenate(parts), len(names))


def weights(users: int, samples: int, *, seed: int, width: int | None = None) -> Iterator[NDArray[np.float64]]:
    """How often each of `users` is drawn, for `samples` resamples, some rows of (resample, user) at a time.

    `width`: what a resample takes in memory, where that is more than the users.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS_AT_ONCE // max(users, width or 0))
    for start in range(0, samples, chunk):
        drawn = rng.multinomial(users, np.full(users, 1 / users), size=min(chunk, samples - start))
        yield drawn.astype(np.float64)


def mean(users: Sequence[str], values: ArrayLike, *, samples: int, seed: int) -> Estimate:
    """The mean over rows; users with many rows weigh as many times, as they do in traffic."""
    return ratio(users, values, np.ones(len(users)), samples=samples, seed=seed)


def paired_difference(
    users: Sequence[str], first: ArrayLike, second: ArrayLike, *, samples: int, seed: int
) -> Estimate:
    """The mean of `first - second`, where both were measured on the same rows."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return mean(users, difference, samples=samples, seed=seed)


def combine(function: Callable[..., ArrayLike], *estimates: Estimate, users: int) -> Estimate:
    """`function` of estimates, with `users` units behind it.

    Estimates over the same users with the same seed vary together, as they should; over different users they need
    different seeds, or they would too.
    """
    value = float(np.asarray(function(*(e.value for e in estimates))))
    resamples = np.asarray(function(*(e.resamples for e in estimates)), dtype=np.float64)
    return Estimate(value, resamples, users)


def wins(candidate: ArrayLike, baseline: ArrayLike) -> NDArray[np.float64]:
    """1 where the candidate scores higher, 0 where lower, a half where both score the same."""
    first, second = np.asarray(candidate, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    return (np.sign(first - second) + 1) / 2
