"""From replies and rewards of two models to metrics with intervals. No model is loaded here."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import EvaluateParams
from flywheel_contract.stages import Origin
from flywheel_trainer import intervals, style
from flywheel_trainer.data.rows import Conversation
from flywheel_trainer.intervals import Estimate
from flywheel_trainer.perplexity import Likelihoods

_BY_ORIGIN: Final = {Origin.INTERNAL: Metric.WIN_RATE_INTERNAL, Origin.USER: Metric.WIN_RATE_USER}
_STYLE: Final = (
    (Metric.LIST_RATE, Metric.LIST_RATE_INCREASE, style.has_list),
    (Metric.EMOJI_RATE, Metric.EMOJI_RATE_INCREASE, style.has_emoji),
    (Metric.STOCK_PHRASE_RATE, Metric.STOCK_PHRASE_RATE_INCREASE, style.has_stock_phrase),
)


@dataclass(frozen=True)
class Judgement:
    """What two models said to the same prompts, and what it was worth. All lists and arrays go row by row."""

    rows: list[Conversation]
    candidate: list[str]
    baseline: list[str]
    candidate_rewards: NDArray[np.float64]
    baseline_rewards: NDArray[np.float64]
    by_reward_model: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    general_users: list[str]
    candidate_general: Likelihoods
    baseline_general: Likelihoods


@dataclass(frozen=True)
class Measured:
    """The metrics for gates, and the whole report."""

    metrics: dict[Metric, Measurement]
    counts: dict[str, int]
    report: dict[str, Any]
    sentence: str


class _Bootstrap:
    """Estimates over users with the stage's parameters."""

    def __init__(self, params: EvaluateParams, seed: int) -> None:
        self._samples, self._seed, self._confidence = params.bootstrap_samples, seed, params.confidence

    def ratio(self, users: list[str], top: NDArray[np.float64], bottom: NDArray[np.float64], salt: int = 0) -> Estimate:
        return intervals.ratio(users, top, bottom, samples=self._samples, seed=self._seed + salt)

    def mean(self, users: list[str], values: NDArray[np.float64], salt: int = 0) -> Estimate:
        return self.ratio(users, values, np.ones(len(users)), salt)

    def measured(self, estimate: Estimate) -> Measurement:
        return estimate.measurement(self._confidence)


def measure(judgement: Judgement, params: EvaluateParams, seed: int) -> Measured:
    """All metrics of stage evaluate that the judgement allows."""
    bootstrap = _Bootstrap(params, seed)
    wins = intervals.wins(judgement.candidate_rewards, judgement.baseline_rewards)
    metrics = {
        **_win_rates(judgement.rows, wins, bootstrap),
        **_style_rates(judgement, bootstrap),
        **_lengths(judgement, bootstrap),
        **_perplexities(judgement, bootstrap),
    }
    counts = _counts(judgement, wins)
    by_model = {
        name: _win_rates(judgement.rows, intervals.wins(*pair), bootstrap)
        for name, pair in judgement.by_reward_model.items()
    }
    report = {
        "metrics": {name.value: m.to_json() for name, m in metrics.items()},
        "counts": counts,
        "rewardModels": {name: {m.value: v.to_json() for m, v in rates.items()} for name, rates in by_model.items()},
        "baselineStyle": _baseline_style(judgement),
    }
    return Measured(metrics, counts, report, _sentence(metrics, len(judgement.rows)))


def _win_rates(rows: list[Conversation], wins: NDArray[np.float64], bootstrap: _Bootstrap) -> dict[Metric, Measurement]:
    """Per origin, the mean of both (each counts half, however many prompts it has), and the distance between them.

    The distance is an absolute value, so its interval never reaches below 0.
    """
    found: dict[Origin, Estimate] = {}
    for salt, origin in enumerate(Origin):
        chosen = [i for i, row in enumerate(rows) if row.origin is origin]
        if chosen:
            # Different seeds: the same draw for both origins would make them vary together.
            found[origin] = bootstrap.mean([rows[i].user for i in chosen], wins[chosen], salt)
    measured = {_BY_ORIGIN[origin]: bootstrap.measured(estimate) for origin, estimate in found.items()}
    if len(found) == 1:
        (only,) = found.values()
        return {Metric.WIN_RATE: bootstrap.measured(only), **measured}
    internal, user = found[Origin.INTERNAL], found[Origin.USER]
    both = intervals.combine(lambda a, b: (a + b) / 2, internal, user, users=internal.users + user.users)
    gap = intervals.combine(lambda a, b: np.abs(a - b), internal, user, users=min(internal.users, user.users))
    return {Metric.WIN_RATE: bootstrap.measured(both), **measured, Metric.WIN_RATE_GAP: bootstrap.measured(gap)}


def _values(artefact: style.Artefact, judgement: Judgement, replies: list[str]) -> NDArray[np.float64]:
    return np.array([artefact(row.messages[:-1], reply) for row, reply in zip(judgement.rows, replies, strict=True)])


def _style_rates(judgement: Judgement, bootstrap: _Bootstrap) -> dict[Metric, Measurement]:
    users = [row.user for row in judgement.rows]
    measured = {}
    for rate, increase, artefact in _STYLE:
        candidate = _values(artefact, judgement, judgement.candidate)
        baseline = _values(artefact, judgement, judgement.baseline)
        measured[rate] = bootstrap.measured(bootstrap.mean(users, candidate))
        measured[increase] = bootstrap.measured(bootstrap.mean(users, candidate - baseline))
    return measured


def _lengths(judgement: Judgement, bootstrap: _Bootstrap) -> dict[Metric, Measurement]:
    users = [row.user for row in judgement.rows]
    candidate = _values(style.words, judgement, judgement.candidate)
    baseline = _values(style.words, judgement, judgement.baseline)
    measured = {Metric.REPLY_LENGTH: bootstrap.measured(bootstrap.mean(users, candidate))}
    if baseline.sum() > 0:
        measured[Metric.REPLY_LENGTH_RATIO] = bootstrap.measured(bootstrap.ratio(users, candidate, baseline))
    return measured


def _perplexities(judgement: Judgement, bootstrap: _Bootstrap) -> dict[Metric, Measurement]:
    candidate, baseline = judgement.candidate_general, judgement.baseline_general
    nats = bootstrap.ratio(judgement.general_users, candidate.nats, candidate.tokens)
    # The same text for both, so nats are compared per text: that holds for different tokenizers as well.
    more = bootstrap.ratio(judgement.general_users, candidate.nats - baseline.nats, candidate.tokens)
    return {
        Metric.PERPLEXITY: bootstrap.measured(intervals.combine(np.exp, nats, users=nats.users)),
        Metric.PERPLEXITY_RATIO: bootstrap.measured(intervals.combine(np.exp, more, users=more.users)),
    }


def _counts(judgement: Judgement, wins: NDArray[np.float64]) -> dict[str, int]:
    counts = {}
    for origin in Origin:
        rows = [row for row in judgement.rows if row.origin is origin]
        counts[f"prompts{origin.value}"] = len(rows)
        counts[f"users{origin.value}"] = len({row.user for row in rows})
    return {
        **counts,
        "wins": int((wins == 1).sum()),
        "ties": int((wins == 0.5).sum()),
        "losses": int((wins == 0).sum()),
        "emptyCandidateReplies": sum(not text for text in judgement.candidate),
        "emptyBaselineReplies": sum(not text for text in judgement.baseline),
        "generalReplies": len(judgement.general_users),
    }


def _baseline_style(judgement: Judgement) -> dict[str, float]:
    """The rates that the increases are measured from."""
    rates = {rate.value: float(_values(f, judgement, judgement.baseline).mean()) for rate, _, f in _STYLE}
    return {**rates, Metric.REPLY_LENGTH.value: float(_values(style.words, judgement, judgement.baseline).mean())}


def _sentence(metrics: dict[Metric, Measurement], prompts: int) -> str:
    def told(name: Metric) -> str:
        m = metrics[name]
        return f"{m.value:.1%} ({m.low:.1%} to {m.high:.1%})"

    sources = [f"{o.value} {told(name)}" for o, name in _BY_ORIGIN.items() if name in metrics]
    return f"win rate {told(Metric.WIN_RATE)} on {prompts} prompts: {', '.join(sources)}"
