"""The pairwise judge: one model reads a prompt with two replies and says which is the better one.

It reads each pair in both orders. With s(a, b) the logit of "the first is better", the preference is

    p(a over b) = sigmoid((s(a, b) - s(b, a)) / 2)

so that p(a over b) + p(b over a) = 1 whatever the model thinks of places (the remedy of Wang and others, "Large
Language Models are not Fair Evaluators", 2023, for a judge with logits). It is for evaluation only: a policy that is
trained on one view and judged by another shows where it exploits the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel_contract.params import Precision
from flywheel_contract.stages import RewardModelType, Role
from flywheel_trainer.context import LocalInput, StageContext
from flywheel_trainer.data.rows import Message
from flywheel_trainer.models import load_reward, load_tokenizer
from flywheel_trainer.prompts import fit_prompt, render, split_tools, token_ids
from flywheel_trainer.rewards import logits, most_tokens

_FIRST: Final = "\n\nReply A:\n"
_SECOND: Final = "\n\nReply B:\n"
_QUESTION: Final = "\n\nThe better reply is A:"
"""The model answers yes or no with its one logit."""

Prompt = Sequence[Message]


@dataclass
class PairwiseScorer:
    """A pairwise reward model at work."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def preference(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], batch_size: int = 16
    ) -> NDArray[np.float64]:
        """The probability (0 to 1) that the first reply is better than the second, for each prompt.

        `prompts` have the character's system prompt already. Two equal replies give exactly one half.

        Raises:
            NotFiniteError: the model gave no finite number.
        """
        there, back = self.both_orders(prompts, first, second, batch_size)
        return np.asarray(expit((there - back) / 2), dtype=np.float64)

    def both_orders(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], batch_size: int = 16
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The logit of "the first place is better" with the first reply there, and with the second there."""
        rows = [self._tokens(p, a, b) for p, a, b in zip(prompts, first, second, strict=True)]
        rows += [self._tokens(p, b, a) for p, a, b in zip(prompts, first, second, strict=True)]
        found = logits(self.name, self.model, self.tokenizer, rows, batch_size)
        return found[: len(prompts)], found[len(prompts) :]

    def _tokens(self, prompt: Prompt, first: str, second: str) -> list[int]:
        """Replies that are too long lose their ends, both to the same length, so that the order changes nothing."""
        limit = most_tokens(self.model)
        ids = encode(self.tokenizer, prompt, first, second, limit)
        if ids is not None:
            return ids
        room = max(1, (limit - _frame(self.tokenizer)) // 2)
        a, b = (_plain(self.tokenizer, reply)[:room] for reply in (first, second))
        return _joined(self.tokenizer, [], a, b)[-limit:]


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, first: str, second: str, max_length: int
) -> list[int] | None:
    """The tokens of a prompt with two replies in this order; older turns are dropped until they fit, else None.

    What people wrote is never read as a special token of the template.
    """
    prompt, _ = split_tools(prompt)  # what the character could call is no part of what it is judged by
    a, b = _plain(tokenizer, first), _plain(tokenizer, second)
    room = max_length - _frame(tokenizer) - len(a) - len(b)
    if room < 1:
        return None
    kept = token_ids(tokenizer, render(tokenizer, fit_prompt(tokenizer, prompt, room)))
    return _joined(tokenizer, kept, a, b) if len(kept) <= room else None


def load_pairwise(folder: LocalInput, precision: Precision = Precision.AUTO) -> PairwiseScorer:
    """The pairwise model of an input, ready to judge.

    Raises:
        ModelError: it is refused, or is of another kind.
    """
    model = load_reward(folder.path, precision, (RewardModelType.PAIRWISE,))
    return PairwiseScorer(folder.name, model, load_tokenizer(folder.path))


def pairwise_of(ctx: StageContext, precision: Precision = Precision.AUTO) -> PairwiseScorer | None:
    """The pairwise judge of a stage, or None where the spec names none."""
    inputs = ctx.inputs(Role.PAIRWISE)
    return load_pairwise(inputs[0], precision) if inputs else None


def text_of(reply: Sequence[Message]) -> str:
    """The text of a reply as a preference row holds it."""
    return "\n".join(message["content"] for message in reply)


def _joined(tokenizer: PreTrainedTokenizerBase, prompt: list[int], first: list[int], second: list[int]) -> list[int]:
    opening, middle, question = (_plain(tokenizer, text) for text in (_FIRST, _SECOND, _QUESTION))
    return [*prompt, *opening, *first, *middle, *second, *question]


def _frame(tokenizer: PreTrainedTokenizerBase) -> int:
    return sum(len(_plain(tokenizer, text)) for text in (_FIRST, _SECOND, _QUESTION))


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
