"""From replies and rewards of models to metrics with intervals. No model is loaded here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flywheel_contract.judging import StyleParams
from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import EvaluateParams
from flywheel_contract.stages import Origin
from flywheel_trainer import drift, intervals, sentiment, style
from flywheel_trainer.answers import Answers, Cast
from flywheel_trainer.data.rows import Conversation
from flywheel_trainer.intervals import Estimate

_Rates = tuple[Metric, dict[Origin, Metric], Metric]
_POINTWISE: Final[_Rates] = (
    Metric.WIN_RATE,
    {Origin.INTERNAL: Metric.WIN_RATE_INTERNAL, Origin.USER: Metric.WIN_RATE_USER},
    Metric.WIN_RATE_GAP,
)
_PAIRWISE: Final = {
    Metric.WIN_RATE: Metric.PAIRWISE_WIN_RATE,
    Metric.WIN_RATE_INTERNAL: Metric.PAIRWISE_WIN_RATE_INTERNAL,
    Metric.WIN_RATE_USER: Metric.PAIRWISE_WIN_RATE_USER,
    Metric.WIN_RATE_GAP: Metric.PAIRWISE_WIN_RATE_GAP,
}
_STYLE: Final = (
    (Metric.LIST_RATE, Metric.LIST_RATE_INCREASE, style.has_list),
    (Metric.EMOJI_RATE, Metric.EMOJI_RATE_INCREASE, style.has_emoji),
    (Metric.STOCK_PHRASE_RATE, Metric.STOCK_PHRASE_RATE_INCREASE, style.has_stock_phrase),
    (Metric.WALL_OF_TEXT_RATE, Metric.WALL_OF_TEXT_RATE_INCREASE, style.is_wall_of_text),
    (Metric.POSITIVE_SENTIMENT_RATE, Metric.POSITIVE_SENTIMENT_RATE_INCREASE, sentiment.is_positive),
)
"""The production metrics that a rule decides."""


@dataclass(frozen=True)
class Judgement:
    """What models said to the same prompts, and what it was worth.

    `rewards` and each of `by_reward_model` are by the name of the model that replied, in the order of its rows.
    `preferred` is, by the rival's name (baseline, parent), the pairwise judge's probability that the candidate's reply
    is better than the rival's; empty where no such judge was asked.
    `further` are measurements that do not come from rewards (judge, benchmarks), with their part of the report.
    """

    rows: list[Conversation]
    cast: Cast
    rewards: Mapping[str, NDArray[np.float64]]
    by_reward_model: dict[str, Mapping[str, NDArray[np.float64]]]
    general_users: list[str]
    preferred: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    further: dict[Metric, Measurement] = field(default_factory=dict)
    further_report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """The metrics for gates, and the whole report."""

    metrics: dict[Metric, Measurement]
    counts: dict[str, int]
    report: dict[str, Any]
    sentence: str


class Bootstrap:
    """Estimates over users with the stage's parameters."""

    def __init__(self, params: EvaluateParams, seed: int) -> None:
        self._samples, self._seed, self._confidence = params.bootstrap_samples, seed, params.confidence

    def ratio(self, users: list[str], top: NDArray[np.float64], bottom: NDArray[np.float64], salt: int = 0) -> Estimate:
        """The sum of `top` over the sum of `bottom`."""
        return intervals.ratio(users, top, bottom, samples=self._samples, seed=self._seed + salt)

    def mean(self, users: list[str], values: NDArray[np.float64], salt: int = 0) -> Estimate:
        """The mean over rows."""
        return self.ratio(users, values, np.ones(len(users)), salt)

    def measured(self, estimate: Estimate) -> Measurement:
        """With its interval."""
        return estimate.measurement(self._confidence)


def measure(judgement: Judgement, params: EvaluateParams, looks: StyleParams, seed: int) -> Measured:
    """All metrics of stage evaluate that the judgement allows."""
    bootstrap = Bootstrap(params, seed)
    cast = judgement.cast
    users = [row.user for row in judgement.rows]
    wins = wins_over(judgement.rewards, cast.candidate, cast.baseline)
    over_parent = win_rates(judgement.rows, wins_over(judgement.rewards, cast.candidate, cast.parent), bootstrap)
    points = drift.way(cast, judgement.rows, judgement.rewards, params, looks, seed)
    jumped, artefacts = drift.jumps(cast, judgement.rows, judgement.rewards, params, looks, seed)
    kl = drift.divergence(cast.candidate, cast.candidate.rows, users, params, seed)
    metrics = {
        **win_rates(judgement.rows, wins, bootstrap),
        Metric.WIN_RATE_PARENT: over_parent[Metric.WIN_RATE],
        **_pairwise(judgement, wins, bootstrap),
        **_looks(judgement, list(range(len(users))), bootstrap),
        **_perplexities(judgement, bootstrap),
        Metric.HELD_OUT_KL: bootstrap.measured(kl),
        Metric.KL_WITHOUT_REWARD: drift.kl_without_reward(points, params.confidence),
        Metric.STYLE_JUMPS: Measurement(value=len(jumped), n=len(set(users))),
        **judgement.further,
    }
    counts = _counts(judgement, wins)
    by_model = {
        name: win_rates(judgement.rows, wins_over(scores, cast.candidate, cast.baseline), bootstrap)
        for name, scores in judgement.by_reward_model.items()
    }
    report = {
        "metrics": _named(metrics),
        "counts": counts,
        "models": {
            "candidate": cast.candidate.name,
            "baseline": cast.baseline.name,
            "parent": cast.parent.name,
            "checkpoints": [each.name for each in cast.checkpoints],
        },
        "againstParent": _named(over_parent),
        "rewardModels": {name: _named(rates) for name, rates in by_model.items()},
        "byOrigin": _by_origin(judgement, bootstrap),
        "baselineStyle": _baseline_style(judgement),
        "way": [point.to_json(params.confidence) for point in points],
        "artefacts": artefacts,
        "jumps": jumped,
        **judgement.further_report,
    }
    return Measured(metrics, counts, report, _sentence(metrics, len(judgement.rows), jumped))


def _named(metrics: Mapping[Metric, Measurement]) -> dict[str, Any]:
    return {name.value: m.to_json() for name, m in metrics.items()}


def wins_over(rewards: Mapping[str, NDArray[np.float64]], first: Answers, second: Answers) -> NDArray[np.float64]:
    """1 where the first one's reply is worth more, 0 where less, a half where both are worth the same."""
    return intervals.wins(rewards[first.name], rewards[second.name])


def win_rates(rows: list[Conversation], wins: NDArray[np.float64], bootstrap: Bootstrap) -> dict[Metric, Measurement]:
    """Per origin, the mean of both (each counts half, however many prompts it has), and the distance between them.

    The distance is an absolute value, so its interval never reaches below 0.
    """
    whole, by_origin, distance = _POINTWISE
    found: dict[Origin, Estimate] = {}
    for salt, origin in enumerate(Origin):
        chosen = [i for i, row in enumerate(rows) if row.origin is origin]
        if chosen:
            # Different seeds: the same draw for both origins would make them vary together.
            found[origin] = bootstrap.mean([rows[i].user for i in chosen], wins[chosen], salt)
    measured = {by_origin[origin]: bootstrap.measured(estimate) for origin, estimate in found.items()}
    if len(found) == 1:
        (only,) = found.values()
        return {whole: bootstrap.measured(only), **measured}
    internal, user = found[Origin.INTERNAL], found[Origin.USER]
    both = intervals.combine(lambda a, b: (a + b) / 2, internal, user, users=internal.users + user.users)
    gap = intervals.combine(lambda a, b: np.abs(a - b), internal, user, users=min(internal.users, user.users))
    return {whole: bootstrap.measured(both), **measured, distance: bootstrap.measured(gap)}


def _pairwise(judgement: Judgement, wins: NDArray[np.float64], bootstrap: Bootstrap) -> dict[Metric, Measurement]:
    """The win rates of the pairwise judge, and how often it and the pointwise rewards contradict each other.

    A contradiction is a win for one and a loss for the other; a tie of either counts half of one.
    """
    if not judgement.preferred:
        return {}
    cast = judgement.cast
    theirs = {name: intervals.wins(sure, np.full(len(wins), 0.5)) for name, sure in judgement.preferred.items()}
    rates = win_rates(judgement.rows, theirs[cast.baseline.name], bootstrap)
    over_parent = win_rates(judgement.rows, theirs[cast.parent.name], bootstrap)
    users = [row.user for row in judgement.rows]
    apart = bootstrap.mean(users, np.abs(wins - theirs[cast.baseline.name]))
    return {
        **{_PAIRWISE[name]: rate for name, rate in rates.items()},
        Metric.PAIRWISE_WIN_RATE_PARENT: over_parent[Metric.WIN_RATE],
        Metric.PAIRWISE_DISAGREEMENT: bootstrap.measured(apart),
    }


def _values(artefact: style.Artefact, judgement: Judgement, replies: list[str]) -> NDArray[np.float64]:
    return np.array([artefact(row.messages[:-1], reply) for row, reply in zip(judgement.rows, replies, strict=True)])


def _style_rates(judgement: Judgement, chosen: Sequence[int], bootstrap: Bootstrap) -> dict[Metric, Measurement]:
    users = [judgement.rows[i].user for i in chosen]
    measured = {}
    for rate, increase, artefact in _STYLE:
        candidate = _values(artefact, judgement, judgement.cast.candidate.replies)[chosen]
        baseline = _values(artefact, judgement, judgement.cast.baseline.replies)[chosen]
        measured[rate] = bootstrap.measured(bootstrap.mean(users, candidate))
        measured[increase] = bootstrap.measured(bootstrap.mean(users, candidate - baseline))
    return measured


def _lengths(judgement: Judgement, chosen: Sequence[int], bootstrap: Bootstrap) -> dict[Metric, Measurement]:
    users = [judgement.rows[i].user for i in chosen]
    candidate = _values(style.words, judgement, judgement.cast.candidate.replies)[chosen]
    baseline = _values(style.words, judgement, judgement.cast.baseline.replies)[chosen]
    measured = {Metric.REPLY_LENGTH: bootstrap.measured(bootstrap.mean(users, candidate))}
    if baseline.sum() > 0:
        measured[Metric.REPLY_LENGTH_RATIO] = bootstrap.measured(bootstrap.ratio(users, candidate, baseline))
    return measured


def _looks(judgement: Judgement, chosen: Sequence[int], bootstrap: Bootstrap) -> dict[Metric, Measurement]:
    """What the replies to some prompts look like, and what they are worth more than the parent's."""
    cast = judgement.cast
    gained = (judgement.rewards[cast.candidate.name] - judgement.rewards[cast.parent.name])[chosen]
    users = [judgement.rows[i].user for i in chosen]
    return {
        **_style_rates(judgement, chosen, bootstrap),
        **_lengths(judgement, chosen, bootstrap),
        Metric.REWARD_GAIN: bootstrap.measured(bootstrap.mean(users, gained)),
    }


def _by_origin(judgement: Judgement, bootstrap: Bootstrap) -> dict[str, Any]:
    """The looks of each origin that has prompts, for the report: a stage's result has no room for them."""
    rows = {o.value: [i for i, row in enumerate(judgement.rows) if row.origin is o] for o in Origin}
    return {origin: _named(_looks(judgement, own, bootstrap)) for origin, own in rows.items() if own}


def _perplexities(judgement: Judgement, bootstrap: Bootstrap) -> dict[Metric, Measurement]:
    candidate, baseline = judgement.cast.candidate.general, judgement.cast.baseline.general
    if candidate is None or baseline is None:
        raise ValueError("candidate and baseline must have read the general hold-out")
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
        "emptyCandidateReplies": sum(not text for text in judgement.cast.candidate.replies),
        "emptyBaselineReplies": sum(not text for text in judgement.cast.baseline.replies),
        "generalReplies": len(judgement.general_users),
    }


def _baseline_style(judgement: Judgement) -> dict[str, float]:
    """The rates that the increases are measured from."""
    replies = judgement.cast.baseline.replies
    rates = {rate.value: float(_values(f, judgement, replies).mean()) for rate, _, f in _STYLE}
    return {**rates, Metric.REPLY_LENGTH.value: float(_values(style.words, judgement, replies).mean())}


def _sentence(metrics: dict[Metric, Measurement], prompts: int, jumped: list[str]) -> str:
    def told(name: Metric) -> str:
        m = metrics[name]
        return f"{m.value:.1%} ({m.low:.1%} to {m.high:.1%})"

    sources = [f"{o.value} {told(name)}" for o, name in _POINTWISE[1].items() if name in metrics]
    said = f"win rate {told(Metric.WIN_RATE)} on {prompts} prompts: {', '.join(sources)}"
    return said + (f"; style jumped with the reward: {', '.join(jumped)}" if jumped else "")
