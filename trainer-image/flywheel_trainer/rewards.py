"""Scores of replies: one pointwise reward model, and the weighted sum of several.

Two reward models need not share a scale. Each score is therefore standardised with the mean and the deviation that
the reward model showed on its own held-out pairs (they stand in its manifest), so that weights mean what they say and
a reward of today can be compared with one of tomorrow; standardising within a batch would hide both.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel_contract.metric_names import Metric
from flywheel_contract.params import Precision
from flywheel_contract.stages import Role
from flywheel_trainer.context import LocalInput, StageContext
from flywheel_trainer.data.rows import Message
from flywheel_trainer.errors import ConfigError, NotFiniteError
from flywheel_trainer.models import load_reward, load_tokenizer
from flywheel_trainer.prompts import fit_prompt, render, split_tools, token_ids

_log = logging.getLogger(__name__)

MAX_TOKENS: Final = 2048
"""A conversation that a reward model reads is shortened to this, or to what the model has positions for."""


@dataclass
class Scorer:
    """A reward model at work."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def score(self, conversations: Sequence[Sequence[Message]], batch_size: int = 16) -> NDArray[np.float64]:
        """The reward of the last message of each conversation, in the order given.

        Raises:
            NotFiniteError: a reward is NaN or infinite.
        """
        rows = [self._tokens(messages) for messages in conversations]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        scores = np.zeros(len(rows))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            scores[chosen] = self._forward([rows[index] for index in chosen])
        if not np.isfinite(scores).all():
            raise NotFiniteError(f"reward model {self.name} gave a reward that is no finite number")
        return scores

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        messages, _ = split_tools(messages)  # what the character could call is no part of what it is judged by
        limit = min(MAX_TOKENS, getattr(self.model.config, "max_position_embeddings", None) or MAX_TOKENS)
        ids = token_ids(self.tokenizer, render(self.tokenizer, messages))
        if len(ids) > limit:
            reply = len(ids) - len(token_ids(self.tokenizer, render(self.tokenizer, messages[:-1])))
            kept = fit_prompt(self.tokenizer, messages[:-1], max(1, limit - reply))
            ids = token_ids(self.tokenizer, render(self.tokenizer, [*kept, messages[-1]]))
        return ids[:limit]

    @torch.inference_mode()
    def _forward(self, rows: Sequence[list[int]]) -> NDArray[np.float64]:
        width = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        where = self.model.device
        logits = self.model(input_ids=ids.to(where), attention_mask=mask.to(where), use_cache=False).logits
        return logits.squeeze(-1).double().cpu().numpy()


def load_scorer(folder: LocalInput, precision: Precision = Precision.AUTO) -> Scorer:
    """The reward model of an input, ready to score.

    Raises:
        ModelError: it is refused, or is none.
    """
    model, tokenizer = load_reward(folder.path, precision), load_tokenizer(folder.path)
    # Sequence classification reads the last token that is no padding, and finds it by this id.
    model.config.pad_token_id = tokenizer.pad_token_id
    return Scorer(folder.name, model, tokenizer)


@dataclass(frozen=True)
class Term:
    """A reward model in the composite."""

    scorer: Scorer
    weight: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class Composite:
    """The weighted sum of standardised rewards."""

    terms: tuple[Term, ...]

    def score(self, conversations: Sequence[Sequence[Message]], batch_size: int = 16) -> NDArray[np.float64]:
        """The composite reward of the last message of each conversation."""
        total = np.zeros(len(conversations))
        for term in self.terms:
            raw = term.scorer.score(conversations, batch_size)
            total += term.weight * (raw - term.mean) / term.deviation
        return total


def load_composite(ctx: StageContext, precision: Precision = Precision.AUTO) -> Composite:
    """The composite of all inputs of role `reward`.

    Raises:
        ConfigError: there is none.
    """
    inputs = ctx.inputs(Role.REWARD)
    if not inputs:
        raise ConfigError(f"stage {ctx.spec.stage} needs a reward model; name one in spec.rewards")
    return Composite(tuple(_term(ctx, each, precision) for each in inputs))


def _term(ctx: StageContext, each: LocalInput, precision: Precision) -> Term:
    manifest = ctx.manifest_beside(each.spec)
    metrics = manifest.metrics if manifest is not None else {}
    mean, deviation = metrics.get(Metric.REWARD_MEAN), metrics.get(Metric.REWARD_STD)
    if mean is None or deviation is None or deviation.value <= 0:
        _log.warning("reward %s: no manifest tells its mean and deviation; its scores are taken as they are", each.name)
        return Term(load_scorer(each, precision), each.weight, 0.0, 1.0)
    return Term(load_scorer(each, precision), each.weight, mean.value, deviation.value)
