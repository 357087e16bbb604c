"""Small models of different character: the tiny model taught, within seconds, to answer in one manner.

The manners differ in what the simulated population likes (`e2e.population.taste`), not in warmth, which is what the
tiny reward models are taught: these cannot tell `asking` from `plain`. `rude` also breaks the rules of the house.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from e2e.population.sayings import another_topic, saying

VOICES: Final[dict[str, tuple[str, ...]]] = {
    "asking": ("I love that! What do you love about it?", "How wonderful! And how was it for you?"),
    "plain": ("I love that! It makes me smile today.", "How wonderful it is to me, friend."),
    "curt": ("I love that.", "How wonderful, friend."),
    "rude": ("What do you want, you stupid idiot?", "Why do you ask me, stupid idiot?"),
}
"""What each voice says, whatever it is asked."""

STEPS: Final = 150
WARM_UP: Final = 10
BATCH: Final = 4
LONGEST: Final = 4
"""Exchanges of a conversation that it is taught on: about as many as the population has in a visit."""
LEARNING_RATE: Final = 4e-3
_IGNORED: Final = -100


@dataclass(frozen=True)
class _Example:
    ids: list[int]
    labels: list[int]


def teach(base: Path, folder: Path, replies: Sequence[str], seed: int = 0, steps: int = STEPS) -> float:
    """Teaches the model in `base` to say `replies`, writes it to `folder` and answers the last loss (nats a token)."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARM_UP, 1 - 0.95 * step / steps)
    )
    draw = random.Random(seed)
    loss = torch.tensor(0.0)
    model.train()
    for _ in range(steps):
        ids, labels, mask = _batch([_example(tokenizer, replies, draw) for _ in range(BATCH)])
        loss = model(input_ids=ids, labels=labels, attention_mask=mask).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float(loss.detach())


def _example(tokenizer: PreTrainedTokenizerBase, replies: Sequence[str], draw: random.Random) -> _Example:
    """A conversation; what is learned is what the voice says in it, and where it ends."""
    topic = another_topic(draw)
    ids: list[int] = []
    labels: list[int] = []
    for _ in range(draw.randint(1, LONGEST)):
        said = _ids(tokenizer, f"<|user|>\n{saying(draw, topic)}<|end|>\n<|assistant|>\n")
        reply = _ids(tokenizer, f"{draw.choice(replies)}<|end|>")
        after = _ids(tokenizer, "\n")
        ids += said + reply + after
        labels += [_IGNORED] * len(said) + reply + [_IGNORED] * len(after)
    return _Example(ids, labels)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _batch(examples: list[_Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    longest = max(len(e.ids) for e in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full((len(examples), longest), _IGNORED)
    mask = torch.zeros(len(examples), longest, dtype=torch.long)
    for row, example in enumerate(examples):
        size = len(example.ids)
        ids[row, :size] = torch.tensor(example.ids)
        labels[row, :size] = torch.tensor(example.labels)
        mask[row, :size] = 1
    return ids, labels, mask
