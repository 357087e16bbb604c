"""The safety filter: the classifier that the gateway uses too, over every message; no answer means no curation."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from flywheel_contract.filters import SafetyParams
from flywheel_safety.choice import chosen
from flywheel_safety.classifier import Classifier, ClassifierError, judge
from flywheel_trainer.data.executors import Executor
from flywheel_trainer.errors import ConfigError, StageError

ATTEMPTS: Final = 4
"""How often an endpoint is asked before the stage fails and is tried again as a whole; 7 seconds apart in all."""
_BATCH: Final = 1024
_ROWS: Final = 256
"""Rows that are given out together."""


class SafetyFilter:
    """The classifier that the settings name, asked about rows of texts."""

    def __init__(self, params: SafetyParams, model: Path | None) -> None:
        """`model` is where one by URI lies.

        Raises:
            ConfigError: the classifier cannot be set up.
            ModelError: the model is refused.
        """
        self._made_of = (params, model)
        self._asked = classifier(params, model)

    def __reduce__(self) -> tuple[type["SafetyFilter"], tuple[SafetyParams, Path | None]]:
        """On another machine it is set up anew, with that machine's environment: it may hold a model, or a key."""
        return type(self), self._made_of

    def __call__(self, rows: Sequence[Sequence[str]]) -> list[str | None]:
        """As `unsafe_rows`."""
        return unsafe_rows(self._asked, rows, self._made_of[0].threshold)

    def screen(self, rows: Sequence[Sequence[str]], executor: Executor) -> list[str | None]:
        """As `unsafe_rows`, wherever the executor works."""
        return [category for part in executor.map(self, rows, _ROWS) for category in part]


def classifier(params: SafetyParams, model: Path | None) -> Classifier:
    """The classifier that the settings name; `model` is where one by URI lies.

    Raises:
        ConfigError: it cannot be set up.
        ModelError: the model is refused.
    """
    if model is not None:
        from flywheel_trainer.data.safety_model import TextClassifier  # noqa: PLC0415 -- torch, for one of three kinds

        return TextClassifier(model, params.safe_labels)
    try:
        return chosen(params, os.environ, attempts=ATTEMPTS)
    except ClassifierError as error:
        raise _failure(error) from error


def unsafe_rows(asked: Classifier, rows: Sequence[Sequence[str]], threshold: float) -> list[str | None]:
    """For each row of texts the category of its first unsafe text, or None.

    Raises:
        StageError: the classifier is away: another attempt may succeed.
        ConfigError: it does not take our requests, or its answer is no verdict.
    """
    found: list[str | None] = [None] * len(rows)
    for batch in _batches(rows):
        try:
            categories = judge(asked, [text for _, text in batch], threshold)
        except ClassifierError as error:
            raise _failure(error) from error
        for (number, _), category in zip(batch, categories, strict=True):
            found[number] = found[number] or category
    return found


def _batches(rows: Sequence[Sequence[str]]) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    for number, texts in enumerate(rows):
        for text in texts:
            batch.append((number, text))
            if len(batch) == _BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _failure(error: ClassifierError) -> StageError:
    kind = StageError if error.retryable else ConfigError
    return kind(f"curation.safety: {error}; nothing is curated without a verdict on every message")
