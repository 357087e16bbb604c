"""The protocol of a safety classifier, and the one way in which its answer becomes a verdict.

A classifier that cannot answer raises; whoever asked must then treat the text as unsafe (fail closed).
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

Scores = Mapping[str, float]
"""Category -> probability (0 to 1) that the text is of it. A category that is left out scores 0."""


class Classifier(Protocol):
    """Says of texts how unsafe they are."""

    @property
    def name(self) -> str:
        """`name/version`, as events and reports carry it: another name, another yardstick."""
        ...

    def score(self, texts: Sequence[str]) -> Sequence[Scores]:
        """The scores of each text, of any length.

        Raises:
            ClassifierError: it cannot answer.
        """
        ...


class ClassifierError(Exception):
    """There is no verdict. The message names the cause and the fix, never a text."""

    retryable: ClassVar[bool] = False
    """Whether the same question may be answered later."""


class UnavailableError(ClassifierError):
    """The network or the endpoint failed; another attempt may succeed."""

    retryable = True


class RefusedError(ClassifierError):
    """The endpoint does not take our requests, or the classifier cannot be set up: somebody has to mend it."""


class BrokenAnswerError(ClassifierError):
    """The answer is not one set of scores per text."""


def judge(classifier: Classifier, texts: Sequence[str], threshold: float) -> list[str | None]:
    """Of each text the category that scores highest, if it reaches the threshold; None: the text is safe.

    Raises:
        ClassifierError: the classifier failed, or its answer is not one set of scores from 0 to 1 per text.
    """
    if not texts:
        return []
    answer = classifier.score(texts)
    if not isinstance(answer, Sequence) or len(answer) != len(texts):
        raise BrokenAnswerError(f"the safety classifier {classifier.name} did not answer once per text")
    return [_worst(classifier, scores, threshold) for scores in answer]


def _worst(classifier: Classifier, scores: object, threshold: float) -> str | None:
    if not isinstance(scores, Mapping) or not all(is_score(value) for value in scores.values()):
        raise BrokenAnswerError(f"the safety classifier {classifier.name} answered something that is no score")
    # Of categories with the same score the first by name, so that counts do not depend on an order.
    unsafe = sorted((-value, category) for category, value in scores.items() if value >= threshold)
    return unsafe[0][1] if unsafe else None


def is_score(value: object) -> bool:
    """Whether `value` is a probability."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 1  # type: ignore[arg-type, operator] # it is a number
