"""A classifier of one user signal: will the user go on, press the thumb, ask for another reply?

It reads a conversation up to a reply and answers with one logit. Users of the hold-out only measure it: how well it
tells the ones who gave the signal from the others (and whether it still does in each slice of time), whether its
probabilities mean what they say, and what the looks of a reply and random labels reach in its place.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from transformers import PreTrainedTokenizerBase

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import RewardStageParams
from flywheel_contract.stages import Origin, RewardModelType, Role
from flywheel_trainer import calibration, classifier, discrimination, intervals, probes, reports, surface, training
from flywheel_trainer.context import StageContext, StageOutcome
from flywheel_trainer.data.rows import Message
from flywheel_trainer.data.screening import Screen
from flywheel_trainer.data.split import held_out
from flywheel_trainer.errors import DataError
from flywheel_trainer.examples import require, screened_traffic
from flywheel_trainer.intervals import Estimate
from flywheel_trainer.models import load_reward
from flywheel_trainer.prompts import fit_prompt, render, split_tools, token_ids, with_character
from flywheel_trainer.rewards import READ_TOGETHER, Scorer
from flywheel_trainer.signals import SignalExample, examples

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95
PROBED: Final = 2000
"""At most so many replies of each side go into the control with shuffled labels."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as it is scored: the whole conversation up to it, with the character, within the length."""

    user: str
    origin: Origin
    time: datetime | None
    messages: list[Message]
    given: bool

    @property
    def looks(self) -> list[float]:
        """The surface features of the reply."""
        return surface.features(self.messages[:-1], self.messages[-1]["content"])


def run(ctx: StageContext) -> StageOutcome:
    """Trains the classifier, leaves it, and measures it on held-out users."""
    params: RewardStageParams = ctx.spec.params
    base = ctx.input(Role.POLICY).path
    start = training.prepare(ctx, params, base, classifier.reader(RewardModelType.USER_SIGNAL))
    fitted, measured, counts = _split(ctx, start.tokenizer)
    tokens = [[(token_ids(start.tokenizer, render(start.tokenizer, r.messages)), r.given)] for r in fitted]
    history = classifier.fit(ctx, params, start, tokens)
    model = training.leave_model(ctx, params, start)
    ctx.progress(message="measuring on held-out users")
    scorer = Scorer("the new one", load_reward(model, params.precision), start.tokenizer)
    scores = scorer.score([r.messages for r in measured], READ_TOGETHER * params.batch_size)
    judge = Judge(measured, scores, ctx.spec.seed)
    metrics = judge.metrics()
    metrics |= _over_surface(judge, fitted)
    over_time, report = judge.over_time(params.signal.time_slices if params.signal else 0)
    shuffled = probes.shuffled_auc(
        base,
        params.precision,
        [r.messages for r in fitted[:PROBED]],
        [r.messages for r in measured[:PROBED]],
        share=float(np.mean([r.given for r in fitted])),
        seed=ctx.spec.seed,
    )
    metrics |= over_time
    if shuffled is not None:
        metrics[Metric.SHUFFLED_LABEL_AUC] = Measurement(value=shuffled, n=len(measured[:PROBED]))
    _leave(ctx, report | {"reliability": calibration.reliability(judge.probabilities, judge.given)})
    return StageOutcome(
        metrics={**reports.training(history), **metrics}, counts=counts, message=_sentence(metrics, params, measured)
    )


def _split(ctx: StageContext, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Reply], list[Reply], dict[str, int]]:
    """The replies to fit and the replies to measure; no user is in both."""
    params: RewardStageParams = ctx.spec.params
    if params.signal is None:
        raise TypeError("a model of a user signal was asked for without a signal")
    screen = Screen(ctx)
    found, counts = examples(screened_traffic(ctx, screen), params.signal)
    counts.update(screen.counts)
    fitted: list[Reply] = []
    measured: list[Reply] = []
    for example in found:
        reply = _fitting(ctx, tokenizer, example, params.max_length)
        if reply is None:
            counts["dropped-too-long"] += 1
        else:
            (measured if held_out(reply.user, params.holdout_fraction) else fitted).append(reply)
    what = f"stage reward-model, replies with the signal {params.signal.name}"
    require(fitted, f"{what} to train on")
    require(measured, f"{what} of held-out users")
    given = sum(r.given for r in fitted)
    if given in (0, len(fitted)):
        raise DataError(
            f"signal {params.signal.name}: {given} of the {len(fitted)} replies to train on have it, so there is "
            "nothing to tell apart; check its name in the rows, or set signal.absent"
        )
    rows = {"train-replies": len(fitted), "held-out-replies": len(measured), "train-given": given}
    return fitted, measured, {**counts, **rows, "held-out-given": sum(r.given for r in measured)}


def _fitting(
    ctx: StageContext, tokenizer: PreTrainedTokenizerBase, example: SignalExample, max_length: int
) -> Reply | None:
    """The example with its character and without the oldest turns, as far as needed; None where it never fits."""
    row = example.row
    messages, _ = split_tools(with_character(example.messages, row.character, ctx.spec.characters))
    whole = len(token_ids(tokenizer, render(tokenizer, messages)))
    if whole > max_length:
        prompt = len(token_ids(tokenizer, render(tokenizer, messages[:-1])))
        messages = [*fit_prompt(tokenizer, messages[:-1], max(1, max_length - (whole - prompt))), messages[-1]]
        if len(token_ids(tokenizer, render(tokenizer, messages))) > max_length:
            return None
    return Reply(row.user, row.origin, example.time, messages, example.given)


class Judge:
    """The held-out replies with their logits."""

    def __init__(self, replies: Sequence[Reply], scores: NDArray[np.float64], seed: int) -> None:
        self.replies, self.scores, self._seed = replies, scores, seed
        self.given = np.array([r.given for r in replies], dtype=np.float64)
        self.probabilities = np.asarray(expit(scores), dtype=np.float64)

    def auc(self, rows: Sequence[int] | NDArray[np.intp], scores: NDArray[np.float64] | None = None) -> Estimate | None:
        """The area under the ROC curve on some rows; None where all have the same label."""
        of = self.scores if scores is None else scores
        users = [self.replies[row].user for row in rows]
        return discrimination.auc(users, of[rows], self.given[rows], samples=RESAMPLES, seed=self._seed)

    def metrics(self) -> dict[Metric, Measurement]:
        """Discrimination and calibration, whole and by origin; the scale of the scores; how they go with length."""
        every = range(len(self.replies))
        users = [r.user for r in self.replies]
        rate = intervals.mean(users, self.given, samples=RESAMPLES, seed=self._seed)
        found = {
            Metric.SIGNAL_RATE: rate.measurement(CONFIDENCE),
            Metric.REWARD_MEAN: Measurement(value=float(self.scores.mean()), n=len(self.scores)),
            Metric.REWARD_STD: Measurement(value=float(self.scores.std()), n=len(self.scores)),
            **self._on(every, Metric.SIGNAL_AUC, Metric.CALIBRATION_ERROR),
        }
        for origin, area, error in (
            (Origin.INTERNAL, Metric.SIGNAL_AUC_INTERNAL, Metric.CALIBRATION_ERROR_INTERNAL),
            (Origin.USER, Metric.SIGNAL_AUC_USER, Metric.CALIBRATION_ERROR_USER),
        ):
            own = [row for row in every if self.replies[row].origin is origin]
            if own:
                found |= self._on(own, area, error)
        lengths = [len(r.messages[-1]["content"]) for r in self.replies]
        correlation = probes.rank_correlation(self.scores, lengths)
        if correlation is not None:
            found[Metric.LENGTH_CORRELATION] = Measurement(value=correlation, n=len(lengths))
        return found

    def _on(self, rows: Sequence[int], area: Metric, error: Metric) -> dict[Metric, Measurement]:
        users = [self.replies[row].user for row in rows]
        said = calibration.error(users, self.probabilities[rows], self.given[rows], samples=RESAMPLES, seed=self._seed)
        found = {error: said.measurement(CONFIDENCE)}
        told = self.auc(rows)
        return found if told is None else {area: told.measurement(CONFIDENCE), **found}

    def over_time(self, count: int) -> tuple[dict[Metric, Measurement], dict[str, Any]]:
        """The area in the worst slice of time, and the greatest drift of the scores from the first slice.

        Where a slice cannot be measured (no times, one label only), neither can stability, and both are left out.
        """
        cut = discrimination.slices([r.time for r in self.replies], count)
        areas = [self.auc(part.rows) for part in cut]
        told = []
        for part, area in zip(cut, areas, strict=True):
            line: dict[str, Any] = {
                "first": part.first.isoformat(),
                "last": part.last.isoformat(),
                "replies": len(part.rows),
                "rate": float(self.given[part.rows].mean()),
                "drift": discrimination.drift(self.scores[cut[0].rows], self.scores[part.rows]),
            }
            told.append(line if area is None else line | {"auc": area.measurement(CONFIDENCE).to_json()})
        known = [area for area in areas if area is not None]
        if not cut or len(known) < len(cut):
            return {}, {"slices": told}
        worst = min(known, key=lambda area: area.value)
        drift = max(line["drift"] for line in told[1:])
        fewest = min(area.users for area in known)
        return {
            Metric.SIGNAL_AUC_LOWEST_SLICE: worst.measurement(CONFIDENCE),
            Metric.SIGNAL_DRIFT: Measurement(value=drift, n=fewest),
        }, {"slices": told}


def _over_surface(judge: Judge, fitted: Sequence[Reply]) -> dict[Metric, Measurement]:
    """What the looks of the reply alone reach, and how much more the model does."""
    looks = surface.signalled([r.looks for r in fitted], [r.given for r in fitted], [r.looks for r in judge.replies])
    every = range(len(judge.replies))
    model, plain = judge.auc(every), judge.auc(every, looks)
    if model is None or plain is None:
        return {}
    # The same users under the same seed: the resamples of the two belong together.
    more = intervals.combine(lambda a, b: a - b, model, plain, users=model.users)
    return {
        Metric.SURFACE_AUC: plain.measurement(CONFIDENCE),
        Metric.AUC_OVER_SURFACE: more.measurement(CONFIDENCE),
    }


def _leave(ctx: StageContext, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (ctx.beside("report") / "signal.json").write_text(text + "\n", encoding="utf-8")


def _sentence(metrics: dict[Metric, Measurement], params: RewardStageParams, measured: Sequence[Reply]) -> str:
    name = params.signal.name if params.signal else ""
    area, plain = metrics.get(Metric.SIGNAL_AUC), metrics.get(Metric.SURFACE_AUC)
    if area is None or plain is None:
        return f"{name}: all {len(measured)} held-out replies have the same label, so nothing could be measured"
    lowest = metrics.get(Metric.SIGNAL_AUC_LOWEST_SLICE)
    worst = f"; {lowest.value:.3f} in the worst slice of time" if lowest else "; not measured over time"
    return f"{name}: AUC {area.value:.3f} on {len(measured)} held-out replies (looks alone {plain.value:.3f}){worst}"
