"""How often, and by how much, a trained policy prefers the chosen reply: by source and by origin, after DPO.

The implicit reward of a reply is beta * (log p(reply) - log p_start(reply)) (Rafailov et al., "Direct Preference
Optimization", 2023, equation 5); a pair's margin is that of the chosen less that of the rejected. It is measured on the
saved model and on pairs that were trained on: it tells what was learned from which source, not how well it generalises.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import DpoParams
from flywheel_contract.stages import Origin
from flywheel_trainer import intervals
from flywheel_trainer.context import StageContext
from flywheel_trainer.data.rows import Message
from flywheel_trainer.models import load_policy, load_tokenizer
from flywheel_trainer.perplexity import reply_likelihoods

_RESAMPLES: Final = 1000
_CONFIDENCE: Final = 0.95
_METRICS: Final = {
    Origin.INTERNAL: (Metric.PREFERENCE_ACCURACY_INTERNAL, Metric.PREFERENCE_MARGIN_INTERNAL),
    Origin.USER: (Metric.PREFERENCE_ACCURACY_USER, Metric.PREFERENCE_MARGIN_USER),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair as it was trained on, and where it came from."""

    source: str
    origin: Origin
    user: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def sampled(pairs: Sequence[Pair], each: int, seed: int) -> list[Pair]:
    """At most `each` pairs of every source and origin, drawn by the seed."""
    groups: dict[tuple[str, Origin], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.source, pair.origin), []).append(pair)
    rng = np.random.default_rng(seed)
    return [group[i] for group in groups.values() for i in sorted(rng.permutation(len(group))[:each])]


def margins(pairs: Sequence[Pair], policy: Path, start: Path, params: DpoParams) -> NDArray[np.float64]:
    """The margin of each pair in the implicit reward of the model in `policy` over that in `start`."""
    advantage = [_advantage(pairs, folder, params) for folder in (policy, start)]
    return params.beta * (advantage[0] - advantage[1])


def measure(
    ctx: StageContext, pairs: Sequence[Pair], values: NDArray[np.float64]
) -> tuple[dict[Metric, Measurement], dict[str, Any]]:
    """Metrics by origin, and a report by source and origin, of the `values` of `pairs`."""
    metrics: dict[Metric, Measurement] = {}
    for origin, (accuracy, margin) in _METRICS.items():
        chosen = [index for index, pair in enumerate(pairs) if pair.origin is origin]
        if chosen:
            metrics[accuracy], metrics[margin] = _measured(ctx, [pairs[i].user for i in chosen], values[chosen])
    report: dict[str, Any] = {}
    for source, origin in dict.fromkeys((pair.source, pair.origin) for pair in pairs):
        chosen = [i for i, pair in enumerate(pairs) if (pair.source, pair.origin) == (source, origin)]
        accuracy_of, margin_of = _measured(ctx, [pairs[i].user for i in chosen], values[chosen])
        report.setdefault(source, {})[origin.value] = {
            "pairs": len(chosen), "accuracy": accuracy_of.to_json(), "margin": margin_of.to_json(),
        }  # fmt: skip
    return metrics, report


def _measured(ctx: StageContext, users: Sequence[str], values: NDArray[np.float64]) -> tuple[Measurement, Measurement]:
    accuracy, margin = (
        intervals.mean(users, each, samples=_RESAMPLES, seed=ctx.spec.seed).measurement(_CONFIDENCE)
        for each in (intervals.wins(values, np.zeros_like(values)), values)
    )
    return accuracy, margin


def _advantage(pairs: Sequence[Pair], folder: Path, params: DpoParams) -> NDArray[np.float64]:
    """log p(chosen) - log p(rejected) of each pair."""
    model, tokenizer = load_policy(folder, params.precision), load_tokenizer(folder)
    both = [[*pair.prompt, *reply] for pair in pairs for reply in (pair.chosen, pair.rejected)]
    nats = reply_likelihoods(
        model,
        tokenizer,
        both,
        max_prompt_tokens=params.max_length,
        max_reply_tokens=params.max_length,
        batch_size=params.batch_size,
    ).nats
    return np.asarray(nats[1::2] - nats[0::2])
