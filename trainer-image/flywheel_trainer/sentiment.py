"""Positive sentiment by rule: VADER's lexicon (Hutto and Gilbert, ICWSM 2014), for English."""

from collections.abc import Sequence
from functools import cache
from typing import Final

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from flywheel_trainer.data.rows import Message

POSITIVE: Final = 0.05
"""The compound score from which its authors call a text positive."""


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def is_positive(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply's compound score is positive."""
    return float(_analyzer().polarity_scores(reply)["compound"] >= POSITIVE)
