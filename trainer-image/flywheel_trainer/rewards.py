"""Scores of replies: one pointwise reward model, and the weighted sum of several.

Two reward models need not share a scale. Each score is therefore standardised with the mean and the deviation that
the reward model showed on its own held-out rows (they stand in the snapshot and in its manifest), so that weights mean
what they say and a reward of today can be compared with one of tomorrow; standardising within a batch would hide both.
A UserSignal term is the logit of the signal's probability: for rare signals probabilities crowd near 0, and a few
that do not would outweigh everything after standardising.
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
from flywheel_contract.stage_spec import RewardScale
from flywheel_contract.stages import Role
from flywheel_trainer.context import LocalInput, StageContext
from flywheel_trainer.data.rows import Message
from flywheel_trainer.errors import ConfigError, NotFiniteError
from flywheel_trainer.models import load_reward, load_tokenizer
from flywheel_trainer.prompts import fit_prompt, render, split_tools, token_ids

_log = logging.getLogger(__name__)

READ_TOGETHER: Final = 4
"""Rows that a training stage reads at once for each that it trains on at once: no activations are kept for them."""
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

        Of a UserSignal model it is the logit of the signal's probability.

        Raises:
            NotFiniteError: a reward is NaN or infinite.
        """
        return logits(self.name, self.model, self.tokenizer, [self._tokens(m) for m in conversations], batch_size)

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        messages, _ = split_tools(messages)  # what the character could call is no part of what it is judged by
        limit = most_tokens(self.model)
        ids = token_ids(self.tokenizer, render(self.tokenizer, messages))
        if len(ids) > limit:
            reply = len(ids) - len(token_ids(self.tokenizer, render(self.tokenizer, messages[:-1])))
            kept = fit_prompt(self.tokenizer, messages[:-1], max(1, limit - reply))
            ids = token_ids(self.tokenizer, render(self.tokenizer, [*kept, messages[-1]]))
        return ids[:limit]


def most_tokens(model: PreTrainedModel) -> int:
    """The longest sequence that a reward model is given."""
    return min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS)


def logits(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], batch_size: int
) -> NDArray[np.float64]:
    """The one logit of each row of tokens, in the order given; the shortest are read first, to pad little.

    Raises:
        NotFiniteError: one is NaN or infinite.
    """
    # Sequence classification reads the last token that is no padding, and finds it by this id.
    model.config.pad_token_id = tokenizer.pad_token_id
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    scores = np.zeros(len(rows))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        scores[chosen] = _forward(model, tokenizer.pad_token_id, [rows[index] for index in chosen])
    if not np.isfinite(scores).all():
        raise NotFiniteError(f"reward model {name} gave a reward that is no finite number")
    return scores


@torch.inference_mode()
def _forward(model: PreTrainedModel, pad: int, rows: Sequence[list[int]]) -> NDArray[np.float64]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return found.squeeze(-1).double().cpu().numpy()


def load_scorer(folder: LocalInput, precision: Precision = Precision.AUTO) -> Scorer:
    """The reward model of an input, ready to score.

    Raises:
        ModelError: it is refused, or is none.
    """
    return Scorer(folder.name, load_reward(folder.path, precision), load_tokenizer(folder.path))


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
        ConfigError: there is none, or one of several has no scale.
        ModelError: one is refused, or reads two replies at once.
    """
    inputs = ctx.inputs(Role.REWARD)
    if not inputs:
        raise ConfigError(f"stage {ctx.spec.stage} needs a reward model; name one in spec.rewards")
    return Composite(tuple(_term(ctx, each, precision, alone=len(inputs) == 1) for each in inputs))


def _term(ctx: StageContext, each: LocalInput, precision: Precision, *, alone: bool) -> Term:
    scale = each.spec.scale or _measured_scale(ctx, each)
    if scale is None and not alone:
        raise ConfigError(
            f"reward {each.name}: neither its spec nor a manifest beside {each.spec.uri} tells mean and deviation of "
            "its scores, so it cannot be added to others; train it as a RewardModel, or let it be the only reward"
        )
    if scale is None:
        # A single term puts replies into the same order whatever its scale.
        _log.warning("reward %s: no manifest tells its mean and deviation; its scores are taken as they are", each.name)
        scale = RewardScale(mean=0.0, std=1.0)
    return Term(load_scorer(each, precision), each.weight, scale.mean, scale.std)


def _measured_scale(ctx: StageContext, each: LocalInput) -> RewardScale | None:
    manifest = ctx.manifest_beside(each.spec)
    metrics = manifest.metrics if manifest is not None else {}
    mean, deviation = metrics.get(Metric.REWARD_MEAN), metrics.get(Metric.REWARD_STD)
    if mean is None or deviation is None or deviation.value <= 0:
        return None
    return RewardScale(mean=mean.value, std=deviation.value)
