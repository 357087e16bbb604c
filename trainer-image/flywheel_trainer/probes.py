"""Cheap controls for a reward model: a linear probe on the features of the model that it started from.

The probe is a ridge regression, without intercept, on the difference of the mean last hidden states of the two replies'
conversations. `honest` fits it to the real labels: it tells what the frozen features know, and that the probe can
learn at all. `shuffled` turns each label around by a coin, in the training pairs and in the held-out pairs alike, fits,
and counts how often the turned label is met. Nothing can be learned from coins, so it must come out at one half; more
would mean that training and measuring share something that they must not. It is the mean over several throws.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, spearmanr

from flywheel_contract.params import Precision
from flywheel_trainer import intervals
from flywheel_trainer.data.rows import Message
from flywheel_trainer.models import device, dtype_of, load_tokenizer, read_policy
from flywheel_trainer.prompts import render, token_ids

THROWS: Final = 256
_RIDGE: Final = 1.0
_RESAMPLES: Final = 2000
_BATCH: Final = 16


class Probe:
    """A probe over pairs of conversations, of which the first `fitted` are to be trained on."""

    def __init__(
        self, base: Path, precision: Precision, pairs: Sequence[tuple[list[Message], list[Message]]], fitted: int
    ) -> None:
        features = _features(base, precision, [messages for pair in pairs for messages in pair])
        difference = features[0::2] - features[1::2]
        # Of the training pairs alone: the held-out ones must not be looked at.
        scale = np.sqrt((difference[:fitted] ** 2).mean(axis=0)) + 1e-8
        self._train, self._test = difference[:fitted] / scale, difference[fitted:] / scale

    def honest(self) -> float:
        """The accuracy of the probe with real labels on the held-out pairs."""
        met = self._met(np.ones((len(self._train), 1)), np.ones((len(self._test), 1)))
        return float(met.mean())

    def shuffled(self, users: Sequence[str], seed: int) -> intervals.Estimate:
        """The accuracy with random labels; `users` own the held-out pairs."""
        rng = np.random.default_rng(seed)
        train = rng.choice([-1.0, 1.0], size=(len(self._train), THROWS))
        test = rng.choice([-1.0, 1.0], size=(len(self._test), THROWS))
        return intervals.mean(users, self._met(train, test).mean(axis=1), samples=_RESAMPLES, seed=seed)

    def _met(self, train: NDArray[np.float64], test: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each held-out pair and each column of labels: 1 where the probe answers the label, else 0."""
        gram = self._train.T @ self._train + _RIDGE * np.eye(self._train.shape[1])
        weights = np.linalg.solve(gram, self._train.T @ train)
        return intervals.wins(self._test @ weights * test, np.zeros_like(test))


def shuffled_auc(
    base: Path,
    precision: Precision,
    fitted: Sequence[list[Message]],
    measured: Sequence[list[Message]],
    *,
    share: float,
    seed: int,
) -> float | None:
    """The area under the ROC curve of a probe of the same kind for labels that a coin threw, 1 in a `share` of rows.

    It is the mean over the throws in which both labels came up among the measured, and must come out at one half. None
    where no throw had both.
    """
    features = _features(base, precision, [*fitted, *measured])
    features -= features[: len(fitted)].mean(axis=0)
    features /= np.sqrt((features[: len(fitted)] ** 2).mean(axis=0)) + 1e-8
    train, test = features[: len(fitted)], features[len(fitted) :]
    rng = np.random.default_rng(seed)
    labels = rng.random((len(features), THROWS)) < share
    gram = train.T @ train + _RIDGE * np.eye(train.shape[1])
    scores = test @ np.linalg.solve(gram, train.T @ (labels[: len(fitted)] - share))
    ranks = rankdata(scores, axis=0)
    given = labels[len(fitted) :]
    positive = given.sum(axis=0)
    pairs = positive * (len(test) - positive)
    areas = ((ranks * given).sum(axis=0) - positive * (positive + 1) / 2)[pairs > 0] / pairs[pairs > 0]
    return float(areas.mean()) if len(areas) else None


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float | None:
    """Spearman's rank correlation, or None where one side does not vary."""
    first, second = np.asarray(first), np.asarray(second)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


@torch.inference_mode()
def _features(base: Path, precision: Precision, conversations: Sequence[list[Message]]) -> NDArray[np.float64]:
    """The mean last hidden state of each conversation."""
    model = read_policy(base, dtype_of(precision)).to(device()).eval()
    tokenizer = load_tokenizer(base)
    rows = [token_ids(tokenizer, render(tokenizer, messages)) for messages in conversations]
    # Of like lengths together, to pad little.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found = np.empty((len(rows), model.config.hidden_size))
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        part = [rows[index] for index in chosen]
        width = max(map(len, part))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in part], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part], device=model.device)
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
        weight = mask.unsqueeze(-1)
        found[chosen] = ((hidden * weight).sum(1) / weight.sum(1)).cpu().numpy()
    return found
