"""How far a model is from its predecessor: the mean KL divergence per token of the replies.

Measured in a pass of its own, because TRL reports none where it holds no reference, and an estimate from sampled
tokens where it does. Here it is exact per position: KL(p||q) = sum over the vocabulary of p (log p - log q).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from flywheel_contract.manifest import Measurement
from flywheel_trainer.errors import NotFiniteError

Reply = tuple[list[int], int]
"""The tokens of a conversation, and where its reply begins."""


@torch.inference_mode()
def per_sequence(policy: PreTrainedModel, reference: PreTrainedModel, rows: Sequence[Reply]) -> NDArray[np.float64]:
    """KL(policy || reference) in nats per token of each reply. Both models are left in evaluation mode."""
    policy.eval()
    reference.eval()
    return np.array([_one(policy, reference, ids, start) for ids, start in rows])


def measurement(values: NDArray[np.float64], when: str) -> Measurement:
    """The mean over sequences, with the normal 95 % interval where there are several.

    Raises:
        NotFiniteError: a model gave NaN.
    """
    mean = float(values.mean())
    if not math.isfinite(mean):
        raise NotFiniteError(f"the divergence from the predecessor is {mean} {when}; look for broken weights")
    if len(values) < 2:
        return Measurement(value=mean, n=len(values))
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return Measurement(value=mean, low=mean - half, high=mean + half, n=len(values))


def _one(policy: PreTrainedModel, reference: PreTrainedModel, ids: list[int], start: int) -> float:
    tokens = torch.tensor([ids])
    # Position i predicts token i + 1: the reply's first token is predicted one before it.
    first = max(start - 1, 0)
    logp = _log_probabilities(policy, tokens)[first:-1]
    logq = _log_probabilities(reference, tokens)[first:-1].to(logp.device)
    return float((logp.exp() * (logp - logq)).sum(-1).mean())


def _log_probabilities(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens.to(model.device), use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)
