"""Draws replies from a policy: batched generation with left padding, seeded, several replies to each prompt."""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from flywheel_contract.params import SamplingParams
from flywheel_trainer.data.rows import Message
from flywheel_trainer.prompts import fit_prompt, render, token_ids

Report = Callable[[float], None]
"""Told the share that is done, 0 to 1, after each batch."""


def sample_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    params: SamplingParams,
    *,
    count: int = 1,
    seed: int = 0,
    report: Report = lambda share: None,
) -> list[list[str]]:
    """`count` replies to each prompt, in the order of the prompts. The same seed and model give the same replies.

    At most `params.batch_size` sequences are generated at a time, the longest prompts first: what does not fit into
    memory fails at once.
    """
    encoded = [encode_prompt(tokenizer, prompt, params.max_prompt_tokens) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-len(encoded[i]), i))
    replies: list[list[str]] = [[] for _ in prompts]
    torch.manual_seed(seed)
    batches = list(_batches(order, count, params.batch_size))
    for done, (members, each) in enumerate(batches, start=1):
        config = _generation_config(model, tokenizer, params, each)
        texts = _generate(model, tokenizer, [encoded[i] for i in members], config)
        for position, index in enumerate(members):
            replies[index].extend(texts[position * each : (position + 1) * each])
        report(done / len(batches))
    return replies


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], max_tokens: int) -> list[int]:
    """The tokens of a prompt where the reply begins, at most `max_tokens` of them."""
    fitting = fit_prompt(tokenizer, prompt, max_tokens)
    # A single message can be too long by itself; its end is what the reply answers.
    return token_ids(tokenizer, render(tokenizer, fitting, reply_next=True))[-max_tokens:]


def _batches(order: Sequence[int], count: int, size: int) -> Iterator[tuple[list[int], int]]:
    """Prompts, and replies to draw for each, at most `size` sequences together."""
    together = max(1, size // count)
    for start in range(0, len(order), together):
        left = count
        while left:
            each = min(left, size)
            yield list(order[start : start + together]), each
            left -= each


def _generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: SamplingParams, each: int
) -> GenerationConfig:
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = own if isinstance(own, list) else [own]
    return GenerationConfig(
        do_sample=True,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=0,
        # A model that was saved in training may have it switched off.
        use_cache=True,
        max_new_tokens=params.max_new_tokens,
        num_return_sequences=each,
        eos_token_id=sorted({i for i in (*ends, tokenizer.eos_token_id) if i is not None}),
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.inference_mode()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    config: GenerationConfig,
) -> list[str]:
    ids, mask = left_padded(prompts, int(tokenizer.pad_token_id), model.device)
    generated = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    texts = tokenizer.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
    return [str(text).strip() for text in texts]


def left_padded(rows: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (rows, longest row), padded on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
