"""How well a model predicts given replies: the negative log-likelihood of each, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel_trainer.data.rows import Message
from flywheel_trainer.errors import NotFiniteError
from flywheel_trainer.prompts import fit_prompt, render, token_ids
from flywheel_trainer.sampling import left_padded


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Per conversation: the summed negative log-likelihood of its last message in nats, and its number of tokens.

    The perplexity of a set is `exp(sum(nats) / sum(tokens))`.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.float64]


def reply_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    max_prompt_tokens: int,
    max_reply_tokens: int,
    batch_size: int,
    report: Callable[[float], None] = lambda share: None,
) -> Likelihoods:
    """Scores the last message of each conversation, given what was said before it.

    Raises:
        NotFiniteError: a likelihood is NaN or infinite.
    """
    parts = [_split(tokenizer, messages, max_prompt_tokens, max_reply_tokens) for messages in conversations]
    order = sorted(range(len(parts)), key=lambda i: -sum(map(len, parts[i])))
    nats = np.zeros(len(parts))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        nats[chosen] = _batch(model, tokenizer, [parts[i] for i in chosen])
        report((start + len(chosen)) / len(order))
    if not np.isfinite(nats).all():
        raise NotFiniteError("the likelihood of a held-out reply is no finite number")
    return Likelihoods(nats, np.array([len(reply) for _, reply in parts], dtype=np.float64))


def _split(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_prompt_tokens: int, max_reply_tokens: int
) -> tuple[list[int], list[int]]:
    """The tokens of the prompt and of the reply; the reply has the template's end of turn."""
    prompt = fit_prompt(tokenizer, messages[:-1], max_prompt_tokens)
    before = render(tokenizer, prompt, reply_next=True)
    whole = render(tokenizer, [*prompt, messages[-1]])
    # A template may render a conversation differently once it goes on; then the bare reply is scored.
    reply = whole[len(before) :] if whole.startswith(before) else messages[-1]["content"] + str(tokenizer.eos_token)
    return token_ids(tokenizer, before)[-max_prompt_tokens:], token_ids(tokenizer, reply)[:max_reply_tokens]


@torch.inference_mode()
def _batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, parts: list[tuple[list[int], list[int]]]
) -> NDArray[np.float64]:
    ids, mask = left_padded([prompt + reply for prompt, reply in parts], int(tokenizer.pad_token_id), model.device)
    keep = max(len(reply) for _, reply in parts)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    # Left padding puts all replies at the end, so the logits of everything before them are never computed.
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep + 1, use_cache=False
    ).logits[:, :-1]
    losses = cross_entropy(logits.float().flatten(0, 1), ids[:, -keep:].flatten(), reduction="none").view(
        len(parts), keep
    )
    inside = torch.tensor([[0] * (keep - len(reply)) + [1] * len(reply) for _, reply in parts], device=ids.device)
    return np.asarray((losses.view(len(parts), keep) * inside).sum(-1).double().cpu().numpy())
