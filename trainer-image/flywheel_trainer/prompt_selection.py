"""Which prompts RL trains on: those where the policy has something to learn, found by sampling it.

A round takes the next candidates in the order of the seed, keeps those near the policy (whose logged reply it finds
likeliest), samples some replies to each, scores them, and chooses by low mean or by high spread. A prompt whose replies
all score the same is never chosen: within a group it has no better and no worse. What is missing is refilled from the
next round, until there are enough prompts, no candidates, or no rounds left.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from flywheel_contract.params import PromptSelectionParams

Nearness = Callable[[Sequence[int]], NDArray[np.float64]]
"""Candidates by index -> how likely the policy finds their logged replies; higher is nearer."""
Rewards = Callable[[Sequence[int]], NDArray[np.float64]]
"""Candidates by index -> (candidates, samples) rewards of fresh replies."""


@dataclass
class Chosen:
    """The chosen candidates and how they were found."""

    indexes: list[int] = field(default_factory=list)
    rounds: int = 0
    candidates: int = 0
    """Looked at."""
    far: int = 0
    """Dropped because the policy finds their logged reply unlikely."""
    sampled: int = 0
    flat: int = 0
    """Dropped because all their replies score the same."""
    passed_over: int = 0
    """Dropped because others of the round score lower, or vary more."""

    def counts(self) -> dict[str, int]:
        """For the manifest."""
        names = {"passed_over": "passedOver"}
        told = {f"selection.{names.get(k, k)}": v for k, v in asdict(self).items() if k != "indexes"}
        return {**told, "selection.chosen": len(self.indexes)}


def choose(total: int, wanted: int, params: PromptSelectionParams, nearness: Nearness, rewards: Rewards) -> Chosen:
    """At most `wanted` of `total` candidates, in the order in which they were chosen.

    Args:
        total: candidates there are; each is its index, in the order in which rounds take them.
        wanted: prompts to train on, and candidates in a round.
        params: by what, how many, how long.
        nearness: asked only where some are to be dropped for it.
        rewards: samples and scores.
    """
    chosen = Chosen()
    while len(chosen.indexes) < wanted and chosen.rounds < params.max_rounds and chosen.candidates < total:
        chosen.rounds += 1
        members = list(range(chosen.candidates, min(chosen.candidates + wanted, total)))
        chosen.candidates += len(members)
        near = _near(members, params.near_policy_fraction, nearness)
        chosen.far += len(members) - len(near)
        found = rewards(near)
        chosen.sampled += len(near)
        spread = found.std(axis=1)
        alive = np.flatnonzero(spread > 0)
        chosen.flat += len(near) - len(alive)
        value = -found.mean(axis=1) if params.by == "LowReward" else spread
        best = alive[np.argsort(-value[alive], kind="stable")]
        taken = min(math.ceil(params.keep_fraction * len(near)), len(best), wanted - len(chosen.indexes))
        chosen.passed_over += len(best) - taken
        chosen.indexes += [near[position] for position in best[:taken]]
    return chosen


def _near(members: list[int], fraction: float, nearness: Nearness) -> list[int]:
    if fraction == 1:
        return members
    keep = max(1, round(fraction * len(members)))
    order = np.argsort(-nearness(members), kind="stable")[:keep]
    return [members[position] for position in sorted(order)]
