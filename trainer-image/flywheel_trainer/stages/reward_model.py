"""A reward model on preferences, pointwise or pairwise, and ways to see whether it learned more than an artefact.

Pairs of a fifth of the users (by a hash of the user id) only measure it. Beside its accuracy on them stand those of a
rule that knows the length of the replies only, of a logistic regression on their looks, and of a probe fitted to
random labels. A model of a user signal is another matter (`signal_model`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from scipy.special import expit
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import RewardModelParams, RewardStageParams
from flywheel_contract.stages import Origin, RewardModelType, Role
from flywheel_trainer import (
    calibration,
    classifier,
    intervals,
    pair_filter,
    probes,
    reports,
    style_report,
    surface,
    training,
)
from flywheel_trainer.annotation import measuring
from flywheel_trainer.callbacks import History
from flywheel_trainer.context import StageContext, StageOutcome, is_main_process
from flywheel_trainer.data.rows import Message, Preference
from flywheel_trainer.data.screening import Screen
from flywheel_trainer.data.split import held_out
from flywheel_trainer.examples import encode_pair, require, screened_preferences
from flywheel_trainer.models import load_reward, read_scorer
from flywheel_trainer.pairwise import PairwiseScorer, encode, text_of
from flywheel_trainer.prompts import render, split_tools, token_ids
from flywheel_trainer.rewards import READ_TOGETHER, Scorer
from flywheel_trainer.stages import signal_model

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair as it is scored: two whole conversations over one prompt."""

    row: Preference
    chosen: list[Message]
    rejected: list[Message]

    @property
    def longer_by(self) -> int:
        """By how many characters the chosen reply is longer."""
        return _length(self.row.chosen) - _length(self.row.rejected)

    @property
    def prompt(self) -> list[Message]:
        """The prompt that both replies follow."""
        return self.chosen[: len(self.chosen) - len(self.row.chosen)]

    @property
    def better(self) -> str:
        """The text of the chosen reply."""
        return text_of(self.row.chosen)

    @property
    def worse(self) -> str:
        """The text of the rejected reply."""
        return text_of(self.row.rejected)

    @property
    def looks(self) -> np.ndarray:
        """By how much the chosen reply has more of each surface feature."""
        chosen, rejected = (surface.features(self.prompt, text) for text in (self.better, self.worse))
        return np.subtract(chosen, rejected)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the trained model says of the held-out pairs. The arrays go pair by pair."""

    margins: np.ndarray
    """The log-odds that the chosen reply is the better one."""
    metrics: dict[Metric, Measurement]
    """What only this kind of model has."""
    lengths: np.ndarray
    leanings: np.ndarray
    """Two numbers for each pair, whose rank correlation is what the model makes of length."""


def run(ctx: StageContext) -> StageOutcome:
    """Trains the reward model, leaves it, and measures it on held-out users."""
    params: RewardStageParams = ctx.spec.params
    if params.type is RewardModelType.USER_SIGNAL:
        return signal_model.run(ctx)
    pairwise = params.type is RewardModelType.PAIRWISE
    base = ctx.input(Role.POLICY).path
    start = training.prepare(ctx, params, base, classifier.reader(params.type) if pairwise else read_scorer)
    fitted, held, counts = _split(ctx, start.tokenizer)
    alpha = measuring.agreement([pair.row for pair in held])
    measured, counts = _agreed(held, params, counts)
    fit, judge = (_fit_pairwise, _judge_pairwise) if pairwise else (_fit_pointwise, _judge_pointwise)
    history = fit(ctx, params, start, fitted)
    model = training.leave_model(ctx, params, start)
    ctx.progress(message="measuring on held-out users")
    said = judge(params, model, start.tokenizer, measured)
    metrics = {**said.metrics, **_accuracy(ctx, said.margins, measured), **_calibration(ctx, said.margins, measured)}
    metrics |= _surface(ctx, said.margins, fitted, measured)
    if alpha is not None:
        metrics[Metric.ANNOTATOR_AGREEMENT] = alpha
    correlation = probes.rank_correlation(said.leanings, said.lengths)
    if correlation is not None:
        metrics[Metric.LENGTH_CORRELATION] = Measurement(value=correlation, n=len(said.leanings))
    metrics[Metric.LENGTH_ONLY_ACCURACY] = _length_only(ctx, fitted, measured)
    probe = probes.Probe(base, params.precision, [(p.chosen, p.rejected) for p in fitted + measured], len(fitted))
    users = [p.row.user for p in measured]
    metrics[Metric.SHUFFLED_LABEL_ACCURACY] = probe.shuffled(users, ctx.spec.seed).measurement(CONFIDENCE)
    counts["probe-accuracy-permille"] = round(1000 * probe.honest())
    return StageOutcome(
        metrics={**reports.training(history), **metrics},
        counts=counts,
        message=_sentence(metrics, len(measured)),
    )


def _fit_pointwise(ctx: StageContext, params: RewardStageParams, start: training.Start, pairs: list[Pair]) -> History:
    trainer = RewardTrainer(
        model=start.model,
        args=training.configure(
            ctx,
            RewardConfig,
            params,
            max_length=params.max_length,
            center_rewards_coefficient=params.center_rewards_coefficient,
        ),
        train_dataset=Dataset.from_list([_tokens(start.tokenizer, pair) for pair in pairs]),
        processing_class=start.tokenizer,
        peft_config=training.lora(params, "SEQ_CLS"),
    )
    history = training.train(ctx, trainer)
    training.release(trainer, start)
    return history


def _fit_pairwise(ctx: StageContext, params: RewardStageParams, start: training.Start, pairs: list[Pair]) -> History:
    """Each pair in both orders side by side, so that no place is the better one in any step."""
    examples = []
    for pair in pairs:
        there = encode(start.tokenizer, pair.prompt, pair.better, pair.worse, params.max_length)
        back = encode(start.tokenizer, pair.prompt, pair.worse, pair.better, params.max_length)
        if there is not None and back is not None:
            examples.append([(there, True), (back, False)])
    require(examples, "stage reward-model, pairs of which both replies fit into maxLength")
    return classifier.fit(ctx, params, start, examples)


def _judge_pointwise(
    params: RewardStageParams, model: Path, tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]
) -> Verdicts:
    scorer = Scorer("the new one", load_reward(model, params.precision), tokenizer)
    scores = scorer.score(
        [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)], READ_TOGETHER * params.batch_size
    )
    chosen, rejected = np.split(scores, 2)
    lengths = [_length(p.row.chosen) for p in pairs] + [_length(p.row.rejected) for p in pairs]
    found = {
        Metric.REWARD_MEAN: Measurement(value=float(scores.mean()), n=len(scores)),
        Metric.REWARD_STD: Measurement(value=float(scores.std()), n=len(scores)),
    }
    return Verdicts(chosen - rejected, found, np.array(lengths), scores)


def _judge_pairwise(
    params: RewardStageParams, model: Path, tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]
) -> Verdicts:
    judge = load_reward(model, params.precision, (RewardModelType.PAIRWISE,))
    there, back = PairwiseScorer("the new one", judge, tokenizer).both_orders(
        [p.prompt for p in pairs],
        [p.better for p in pairs],
        [p.worse for p in pairs],
        READ_TOGETHER * params.batch_size,
    )
    users = [p.row.user for p in pairs]
    same = intervals.mean(users, np.sign(there) == -np.sign(back), samples=RESAMPLES, seed=0)
    margins, longer = (there - back) / 2, np.array([p.longer_by for p in pairs])
    return Verdicts(
        margins,
        {Metric.ORDER_AGREEMENT: same.measurement(CONFIDENCE)},
        np.concatenate([longer, -longer]),
        np.concatenate([margins, -margins]),
    )


def _split(ctx: StageContext, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Pair], list[Pair], dict[str, int]]:
    """The pairs to fit and the pairs to measure; no user is in both."""
    params: RewardModelParams = ctx.spec.params
    screen = Screen(ctx)
    given = screened_preferences(ctx, screen)
    rows, dropped = pair_filter.kept(given, params.pair_filter)
    counts = {"rows": len(given), **screen.counts, **dropped, "dropped-too-long": 0}
    fitted: list[Pair] = []
    measured: list[Pair] = []
    for row in rows:
        pair = encode_pair(ctx, tokenizer, row, params.max_length)
        if pair is None:
            counts["dropped-too-long"] += 1
            continue
        pair = split_tools(pair[0])[0], split_tools(pair[1])[0]  # a reward model reads what is said
        (measured if held_out(row.user, params.holdout_fraction) else fitted).append(Pair(row, *pair))
    require(fitted, "stage reward-model, pairs to train on")
    require(measured, "stage reward-model, pairs of held-out users")
    if is_main_process():
        style_report.leave_pairs(ctx, [pair.row for pair in fitted + measured])
    return fitted, measured, counts | {"train-pairs": len(fitted), "held-out-pairs": len(measured)}


def _agreed(held: list[Pair], params: RewardModelParams, counts: dict[str, int]) -> tuple[list[Pair], dict[str, int]]:
    """The held-out pairs that may measure: those on which reviewers agree, where there are several reviews."""
    usable = measuring.measurable([pair.row for pair in held], params.agreement)
    measured = [pair for pair, use in zip(held, usable, strict=True) if use]
    require(measured, "stage reward-model, pairs of held-out users on which several reviewers agree")
    return measured, counts | {"measured-pairs": len(measured), "held-out-no-agreement": len(held) - len(measured)}


def _tokens(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> dict[str, list[int]]:
    return {
        "chosen_ids": token_ids(tokenizer, render(tokenizer, pair.chosen)),
        "rejected_ids": token_ids(tokenizer, render(tokenizer, pair.rejected)),
    }


def _accuracy(ctx: StageContext, margins: np.ndarray, pairs: list[Pair]) -> dict[Metric, Measurement]:
    """Accuracy (a tie counts a half) with its interval over users, whole and by origin."""
    won = intervals.wins(margins, np.zeros(len(margins)))
    found = {Metric.REWARD_ACCURACY: _share(ctx, pairs, won)}
    for metric, own in _by_origin(pairs, Metric.REWARD_ACCURACY_INTERNAL, Metric.REWARD_ACCURACY_USER).items():
        found[metric] = _share(ctx, [pairs[index] for index in own], won[own])
    return found


def _calibration(ctx: StageContext, margins: np.ndarray, pairs: list[Pair]) -> dict[Metric, Measurement]:
    """How far the probability of the preferred reply is from how often it is the chosen one, whole and by origin."""
    sure, right = expit(np.abs(margins)), intervals.wins(margins, np.zeros(len(margins)))

    def error(rows: Sequence[int]) -> Measurement:
        users = [pairs[index].row.user for index in rows]
        found = calibration.error(users, sure[rows], right[rows], samples=RESAMPLES, seed=ctx.spec.seed)
        return found.measurement(CONFIDENCE)

    by_origin = _by_origin(pairs, Metric.CALIBRATION_ERROR_INTERNAL, Metric.CALIBRATION_ERROR_USER)
    return {Metric.CALIBRATION_ERROR: error(range(len(pairs)))} | {m: error(own) for m, own in by_origin.items()}


def _surface(
    ctx: StageContext, margins: np.ndarray, fitted: list[Pair], measured: list[Pair]
) -> dict[Metric, Measurement]:
    """What the looks of the replies alone reach on the held-out pairs, and how much more the model does."""
    looks = surface.preferred([p.looks for p in fitted], [p.looks for p in measured])
    by_looks, by_model = (intervals.wins(found, np.zeros(len(found))) for found in (looks, margins))
    return {
        Metric.SURFACE_ACCURACY: _share(ctx, measured, by_looks),
        Metric.ACCURACY_OVER_SURFACE: _share(ctx, measured, by_model - by_looks),
    }


def _by_origin(pairs: list[Pair], internal: Metric, user: Metric) -> dict[Metric, list[int]]:
    """The rows of each origin that has any, under its metric."""
    found = {
        metric: [index for index, pair in enumerate(pairs) if pair.row.origin == origin]
        for origin, metric in ((Origin.INTERNAL, internal), (Origin.USER, user))
    }
    return {metric: own for metric, own in found.items() if own}


def _length_only(ctx: StageContext, fitted: list[Pair], measured: list[Pair]) -> Measurement:
    """The better of two rules on the training pairs, "longer wins" and "shorter wins", on the held-out pairs."""
    sign = 1 if np.sign([pair.longer_by for pair in fitted]).sum() >= 0 else -1
    return _share(ctx, measured, intervals.wins([sign * pair.longer_by for pair in measured], np.zeros(len(measured))))


def _share(ctx: StageContext, pairs: list[Pair], won: np.ndarray) -> Measurement:
    users = [pair.row.user for pair in pairs]
    return intervals.mean(users, won, samples=RESAMPLES, seed=ctx.spec.seed).measurement(CONFIDENCE)


def _length(reply: list[Message]) -> int:
    return sum(len(message["content"]) for message in reply)


def _sentence(metrics: dict[Metric, Measurement], pairs: int) -> str:
    values = (
        metrics[name].value
        for name in (
            Metric.REWARD_ACCURACY,
            Metric.LENGTH_ONLY_ACCURACY,
            Metric.SURFACE_ACCURACY,
            Metric.SHUFFLED_LABEL_ACCURACY,
        )
    )
    whole, length, looks, shuffled = values
    return (
        f"accuracy {whole:.3f} on {pairs} held-out pairs (length alone {length:.3f}, length, lists and emoji "
        f"{looks:.3f}, shuffled labels {shuffled:.3f})"
    )
