"""A pointwise Bradley-Terry reward model, and three ways to see whether it learned more than an artefact.

Pairs of a fifth of the users (by a hash of the user id) only measure it. Beside its accuracy on them stand the
accuracy of a rule that knows the length of the replies only, and that of a probe fitted to random labels.
"""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import RewardModelParams
from flywheel_contract.stages import Origin, Role
from flywheel_trainer import intervals, pair_filter, probes, reports, style_report, training
from flywheel_trainer.annotation import measuring
from flywheel_trainer.context import StageContext, StageOutcome, is_main_process
from flywheel_trainer.data.rows import Message, Preference
from flywheel_trainer.data.split import held_out
from flywheel_trainer.examples import encode_pair, preferences, require
from flywheel_trainer.models import load_reward, read_scorer
from flywheel_trainer.prompts import render, split_tools, token_ids
from flywheel_trainer.rewards import Scorer

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


def run(ctx: StageContext) -> StageOutcome:
    """Trains the reward model, leaves it, and measures it on held-out users."""
    params = ctx.spec.params
    base = ctx.input(Role.POLICY).path
    start = training.prepare(ctx, params, base, read_scorer)
    fitted, held, counts = _split(ctx, start.tokenizer)
    alpha = measuring.agreement([pair.row for pair in held])
    measured, counts = _agreed(held, params, counts)
    trainer = RewardTrainer(
        model=start.model,
        args=training.configure(
            ctx,
            RewardConfig,
            params,
            max_length=params.max_length,
            center_rewards_coefficient=params.center_rewards_coefficient,
        ),
        train_dataset=Dataset.from_list([_tokens(start.tokenizer, pair) for pair in fitted]),
        processing_class=start.tokenizer,
        peft_config=training.lora(params, "SEQ_CLS"),
    )
    history = training.train(ctx, trainer)
    training.release(trainer, start)
    model = training.leave_model(ctx, params, start)
    ctx.progress(message="measuring on held-out users")
    scorer = Scorer("the new one", load_reward(model, params.precision), start.tokenizer)
    metrics = _accuracy(ctx, scorer, measured)
    if alpha is not None:
        metrics[Metric.ANNOTATOR_AGREEMENT] = alpha
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


def _split(ctx: StageContext, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Pair], list[Pair], dict[str, int]]:
    """The pairs to fit and the pairs to measure; no user is in both."""
    params: RewardModelParams = ctx.spec.params
    given = preferences(ctx, Role.PREFERENCES)
    rows, dropped = pair_filter.kept(given, params.pair_filter)
    counts = {"rows": len(given), **dropped, "dropped-too-long": 0}
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


def _accuracy(ctx: StageContext, scorer: Scorer, pairs: list[Pair]) -> dict[Metric, Measurement]:
    """Accuracy (a tie counts a half) with its interval over users, and what the scores are like."""
    batch = ctx.spec.params.batch_size
    chosen = scorer.score([pair.chosen for pair in pairs], batch)
    rejected = scorer.score([pair.rejected for pair in pairs], batch)
    won = intervals.wins(chosen, rejected)
    scores = np.concatenate([chosen, rejected])
    found = {
        Metric.REWARD_ACCURACY: _share(ctx, pairs, won),
        Metric.REWARD_MEAN: Measurement(value=float(scores.mean()), n=len(scores)),
        Metric.REWARD_STD: Measurement(value=float(scores.std()), n=len(scores)),
    }
    by_origin = {Origin.INTERNAL: Metric.REWARD_ACCURACY_INTERNAL, Origin.USER: Metric.REWARD_ACCURACY_USER}
    for origin, metric in by_origin.items():
        own = [index for index, pair in enumerate(pairs) if pair.row.origin == origin]
        if own:
            found[metric] = _share(ctx, [pairs[index] for index in own], won[own])
    lengths = [_length(p.row.chosen) for p in pairs] + [_length(p.row.rejected) for p in pairs]
    correlation = probes.rank_correlation(scores, lengths)
    if correlation is not None:
        found[Metric.LENGTH_CORRELATION] = Measurement(value=correlation, n=len(scores))
    return found


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
        for name in (Metric.REWARD_ACCURACY, Metric.LENGTH_ONLY_ACCURACY, Metric.SHUFFLED_LABEL_ACCURACY)
    )
    whole, length, shuffled = values
    return f"accuracy {whole:.3f} on {pairs} held-out pairs (length alone {length:.3f}, shuffled labels {shuffled:.3f})"
