"""Reward against divergence, and style, along the way from the parent to the candidate.

Over-optimisation has a shape: the reward rises with the square root of the divergence from where training began,
bends, and falls (Gao, Schulman and Hilton, "Scaling Laws for Reward Model Overoptimization", ICML 2023). What was
walked after the model with the best held-out reward bought nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel_contract.judging import StyleParams
from flywheel_contract.manifest import Measurement
from flywheel_contract.params import EvaluateParams
from flywheel_trainer import intervals, style, style_report
from flywheel_trainer.answers import Answers, Cast
from flywheel_trainer.data.rows import Conversation
from flywheel_trainer.intervals import Estimate

Rewards = Mapping[str, NDArray[np.float64]]
"""The composite rewards of each model's replies, by the model's name, in the order of its `rows`."""


@dataclass(frozen=True)
class Point:
    """A model on the way: reward gained over the parent (in standard deviations of the composite) and KL from it."""

    name: str
    gain: Estimate
    kl: Estimate
    rates: dict[str, float]

    def to_json(self, confidence: float) -> dict[str, Any]:
        """As it stands in the report."""
        gain, kl = (e.measurement(confidence).to_json() for e in (self.gain, self.kl))
        return {"model": self.name, "rewardGain": gain, "kl": kl, "style": self.rates}


def way(
    cast: Cast,
    conversations: Sequence[Conversation],
    rewards: Rewards,
    params: EvaluateParams,
    looks: StyleParams,
    seed: int,
) -> list[Point]:
    """The parent, the models of the stages between, and the candidate, all on the prompts that all of them answered."""
    along = cast.stages()
    shared = sorted(set.intersection(*(set(each.rows) for each in along)))
    users = [conversations[i].user for i in shared]
    histories = [conversations[i].messages[:-1] for i in shared]
    features = style.features(looks)
    start = _on(cast.parent, rewards[cast.parent.name], shared)
    points = []
    for each in along:
        replies = _replies(each, shared)
        points.append(
            Point(
                name=each.name,
                gain=intervals.mean(
                    users, _on(each, rewards[each.name], shared) - start, samples=params.bootstrap_samples, seed=seed
                ),
                kl=divergence(each, shared, users, params, seed),
                rates={f.name: float(style.values(f, histories, replies).mean()) for f in features},
            )
        )
    return points


def divergence(each: Answers, rows: Sequence[int], users: list[str], params: EvaluateParams, seed: int) -> Estimate:
    """KL(model || parent) in nats per token on these prompts."""
    nats, tokens = each.divergence(rows)
    return intervals.ratio(users, nats, tokens, samples=params.bootstrap_samples, seed=seed)


def kl_without_reward(points: Sequence[Point], confidence: float) -> Measurement:
    """The divergence (nats per token) that was spent after the model with the best reward; 0 where none was.

    The candidate must be worse than the best by more than chance: the interval of the difference, on the same prompts
    and over the same resampled users, leaves out 0.
    """
    candidate = points[-1]
    best = max(points, key=lambda point: point.gain.value)
    lost = intervals.combine(
        lambda a, b: np.asarray(a) - np.asarray(b), best.gain, candidate.gain, users=best.gain.users
    )
    low = lost.measurement(confidence).low
    spent = candidate.kl.value - best.kl.value if low is not None and low > 0 else 0.0
    return Measurement(value=max(0.0, spent), n=candidate.gain.users)


def jumps(
    cast: Cast,
    conversations: Sequence[Conversation],
    rewards: Rewards,
    params: EvaluateParams,
    looks: StyleParams,
    seed: int,
) -> tuple[list[str], dict[str, Any]]:
    """The artefacts that jumped from parent to candidate, and every artefact's rates, increase and liking.

    The reward's liking is measured on the replies of all models that answered a prompt.
    """
    rows = cast.candidate.rows
    users = [conversations[i].user for i in rows]
    histories = [conversations[i].messages[:-1] for i in rows]
    everyone = [each for each in cast.distinct() if each.rows == rows]
    scores = np.stack([rewards[each.name] for each in everyone], axis=1)
    changes, likings, report = [], [], {}
    for feature in style.features(looks):
        values = {each.name: style.values(feature, histories, each.replies) for each in everyone}
        found = style_report.change(
            feature,
            users,
            values[cast.parent.name],
            values[cast.candidate.name],
            samples=params.bootstrap_samples,
            seed=seed,
        )
        stacked = np.stack(list(values.values()), axis=1)
        liked = style_report.preference(users, list(stacked), list(scores), samples=params.bootstrap_samples, seed=seed)
        changes.append(found)
        likings.append(liked)
        report[feature.name] = found.to_json("parent", "candidate", params.confidence)
        if liked is not None:
            report[feature.name]["rewardCorrelation"] = liked.measurement(params.confidence).to_json()
    jumped = style_report.jumps(changes, likings, looks)
    for name in jumped:
        report[name]["jumped"] = True
    return jumped, report


def _on(each: Answers, values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
    place = {row: i for i, row in enumerate(each.rows)}
    return values[[place[row] for row in rows]]


def _replies(each: Answers, rows: Sequence[int]) -> list[str]:
    place = {row: i for i, row in enumerate(each.rows)}
    return [each.replies[place[row]] for row in rows]
