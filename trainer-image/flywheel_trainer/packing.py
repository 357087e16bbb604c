"""Packing puts several conversations into one sequence. That is only right where they do not see each other.

Flash attention is told where each begins. Without it, transformers builds a block-diagonal mask from position ids that
start anew; not every architecture and attention does. Which of the two holds is not looked up but tried: two rows are
packed, the first one is exchanged, and what the model says about the second must not change.
"""

from collections.abc import Sequence
from typing import Final

import torch
from transformers import PreTrainedModel

from flywheel_trainer.errors import ConfigError

_TOKENS: Final = 64
"""Of each row; a leak shows in a few."""
_TOLERANCE: Final = 1e-5
"""Relative. Masked positions count for exactly nothing, so that even bf16 gives the same number twice."""


@torch.inference_mode()
def leak(model: PreTrainedModel, first: Sequence[int], second: Sequence[int]) -> float:
    """How much the logits of `second` depend on the row that is packed before it, relative to their size."""
    before, row = list(first[:_TOKENS]), list(second[:_TOKENS])
    vocabulary = model.get_input_embeddings().weight.shape[0]
    exchanged = [(token + 1) % vocabulary for token in before]
    training = model.training
    model.eval()
    one, other = (_logits(model, rows, row)[len(before) :] for rows in (before, exchanged))
    model.train(training)
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-12))


def check(model: PreTrainedModel, first: Sequence[int], second: Sequence[int]) -> None:
    """Refuses packing where packed rows see each other.

    Raises:
        ConfigError: they do.
    """
    if (found := leak(model, first, second)) > _TOLERANCE:
        attention = getattr(model.config, "_attn_implementation", None)
        raise ConfigError(
            f"packing: with {type(model).__name__} and attention {attention} packed rows see each other (the logits of "
            f"one change by {found:.1%} with the row before it); leave packing out, or use flash attention"
        )


def _logits(model: PreTrainedModel, before: list[int], row: list[int]) -> torch.Tensor:
    where = model.device
    ids = torch.tensor([before + row], device=where)
    # As TRL's collator does it: positions start anew, and there is no attention mask.
    positions = torch.tensor([[*range(len(before)), *range(len(row))]], device=where)
    return model(input_ids=ids, position_ids=positions, use_cache=False).logits[0].float()
