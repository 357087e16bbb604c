"""Rates of style artefacts side by side: chosen against rejected, accepted against rejected, model against model.

An artefact *jumps* where its rate rises by more than a tolerance **and** the reward prefers the replies that have
it: the rank correlation of artefact and reward, within the replies to one prompt, is positive. Within prompts: what
differs between prompts (a request for a list, say) is no preference of the reward.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from flywheel_contract.judging import StyleParams
from flywheel_trainer import intervals, style
from flywheel_trainer.context import StageContext
from flywheel_trainer.data.rows import Message, Preference
from flywheel_trainer.intervals import Estimate

REPORT: Final = "style.json"
CONFIDENCE: Final = 0.95
RESAMPLES: Final = 1000


@dataclass(frozen=True)
class Change:
    """One artefact in two sets of replies to the same prompts: rates (means, for a length) and their difference.

    `increase` is a difference of rates; for a length it is relative, second over first less 1, and None where the
    first has none.
    """

    name: str
    binary: bool
    before: Estimate
    after: Estimate
    increase: Estimate | None

    def over(self, params: StyleParams) -> bool:
        """Whether it rose by more than its tolerance."""
        limit = params.tolerance if self.binary else params.length_tolerance
        return self.increase is not None and self.increase.value > limit

    def to_json(self, before: str, after: str, confidence: float = CONFIDENCE) -> dict[str, Any]:
        """Rates and increase with intervals, under the names of the two sets."""
        found = {before: self.before, after: self.after, "increase": self.increase}
        return {name: e.measurement(confidence).to_json() for name, e in found.items() if e is not None}


def change(
    feature: style.Feature,
    users: Sequence[str],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    *,
    samples: int = RESAMPLES,
    seed: int = 0,
) -> Change:
    """The artefact's values in two sets of replies, row by row of `users`."""

    def estimate(column: ArrayLike) -> Estimate:
        return intervals.mean(users, column, samples=samples, seed=seed)

    first, second = estimate(before), estimate(after)
    increase = estimate(after - before) if feature.binary else None
    if not feature.binary and first.value > 0:
        increase = intervals.combine(_growth, first, second, users=first.users)
    return Change(feature.name, feature.binary, first, second, increase)


def _growth(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    # In a resample nobody may have said anything before: there is no ratio, and it counts as no change.
    first, second = np.asarray(before, float), np.asarray(after, float)
    return np.divide(second - first, first, out=np.zeros_like(first), where=first > 0)


def preference(
    users: Sequence[str],
    artefact: Sequence[ArrayLike],
    rewards: Sequence[ArrayLike],
    *,
    samples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate | None:
    """The rank correlation of artefact and reward within the replies to each prompt, between -1 and 1.

    Ranks within a prompt, centred, are put together over all prompts: Spearman's correlation with the prompt's own
    mean rank taken away. None where either never varies within a prompt.

    Args:
        users: the user of each prompt.
        artefact: of each prompt, the artefact of its replies.
        rewards: likewise, their rewards.
    """
    sums = np.array(
        [_products(np.asarray(a, float), np.asarray(r, float)) for a, r in zip(artefact, rewards, strict=True)]
    )
    if not len(sums) or (sums[:, 1:].sum(axis=0) == 0).any():
        return None
    both, first, second = (
        intervals.mean(users, column, samples=samples, seed=seed) for column in (sums[:, 0], sums[:, 1], sums[:, 2])
    )
    return intervals.combine(_correlation, both, first, second, users=both.users)


def _products(artefact: NDArray[np.float64], rewards: NDArray[np.float64]) -> tuple[float, float, float]:
    first, second = rankdata(artefact), rankdata(rewards)
    first, second = first - first.mean(), second - second.mean()
    return float(first @ second), float(first @ first), float(second @ second)


def _correlation(both: ArrayLike, first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    # A resample may hold nobody whose replies vary: it says nothing for either sign.
    root = np.sqrt(np.asarray(first, float) * np.asarray(second, float))
    return np.divide(both, root, out=np.zeros_like(root), where=root > 0)


def jumps(changes: Sequence[Change], preferences: Sequence[Estimate | None], params: StyleParams) -> list[str]:
    """The names of the artefacts that rose by more than their tolerance and that the reward does not disprefer.

    Where the correlation could not be measured, the rise alone counts: what is not known is no acquittal.
    """
    return [
        found.name
        for found, liked in zip(changes, preferences, strict=True)
        if found.over(params) and (liked is None or liked.value > 0)
    ]


def leave_pairs(ctx: StageContext, rows: Sequence[Preference]) -> None:
    """Writes the rates in chosen and rejected replies of pairs beside the stage's outputs.

    Raises:
        ConfigError: a user's pattern cannot be used.
    """
    histories = [row.prompt for row in rows]
    sides = [[_text(row.chosen) for row in rows], [_text(row.rejected) for row in rows]]
    _leave(ctx, [row.user for row in rows], histories, sides, ("chosen", "rejected"), None)


def leave_samples(
    ctx: StageContext,
    users: Sequence[str],
    histories: Sequence[Sequence[Message]],
    replies: Sequence[Sequence[str]],
    rewards: Sequence[Sequence[float]],
) -> None:
    """Writes the rates in the best and worst of the sampled replies to each prompt, and what the reward prefers."""
    usable = [i for i, texts in enumerate(replies) if any(texts)]
    kept = [[(score, text) for score, text in zip(rewards[i], replies[i], strict=True) if text] for i in usable]
    sides = [[max(each)[1] for each in kept], [min(each)[1] for each in kept]]
    names = ("accepted", "rejected")
    _leave(ctx, [users[i] for i in usable], [histories[i] for i in usable], sides, names, kept)


def _leave(
    ctx: StageContext,
    users: list[str],
    histories: Sequence[Sequence[Message]],
    sides: list[list[str]],
    names: tuple[str, str],
    samples: list[list[tuple[float, str]]] | None,
) -> None:
    report: dict[str, Any] = {"rows": len(users), "users": len(set(users)), "artefacts": {}}
    for feature in style.features(ctx.spec.style) if users else ():
        kept, left = (style.values(feature, histories, side) for side in sides)
        found = change(feature, users, left, kept, seed=ctx.spec.seed).to_json(names[1], names[0])
        if samples is not None:
            values = [
                style.values(feature, [history] * len(each), [text for _, text in each])
                for history, each in zip(histories, samples, strict=True)
            ]
            scores = [[score for score, _ in each] for each in samples]
            liked = preference(users, values, scores, seed=ctx.spec.seed)
            if liked is not None:
                found["rewardCorrelation"] = liked.measurement(CONFIDENCE).to_json()
        report["artefacts"][feature.name] = found
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (ctx.beside("style") / REPORT).write_text(text + "\n", encoding="utf-8")


def _text(reply: Sequence[Message]) -> str:
    return reply[-1]["content"]
