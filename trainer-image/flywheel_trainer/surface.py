"""What the look of a reply says by itself: a logistic regression on length, lists and emoji, beside a reward model.

What it reaches is the part of a preference (or of a signal) that needs no understanding. A reward model that is hardly
better has learned little else.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression

from flywheel_trainer import style
from flywheel_trainer.data.rows import Message

FEATURES: Final = ("characters", "words", "list", "emoji")
_ITERATIONS: Final = 1000


def features(history: Sequence[Message], reply: str) -> list[float]:
    """The logarithms of the length in characters and in words, and whether there is a list or an emoji."""
    return [
        float(np.log1p(len(reply))),
        float(np.log1p(style.words(history, reply))),
        style.has_list(history, reply),
        style.has_emoji(history, reply),
    ]


def preferred(fitted: ArrayLike, measured: ArrayLike) -> NDArray[np.float64]:
    """The log-odds by which the first of two replies is preferred, for each row of `measured`.

    Both hold the difference of the features, better reply less worse one, a row for each pair. Without an intercept:
    which of the two comes first must not matter.
    """
    x, wanted = _scaled(fitted, measured)
    both = np.concatenate([x, -x])
    labels = np.concatenate([np.ones(len(x)), np.zeros(len(x))])
    model = LogisticRegression(fit_intercept=False, max_iter=_ITERATIONS).fit(both, labels)
    return np.asarray(model.decision_function(wanted), dtype=np.float64)


def signalled(fitted: ArrayLike, labels: ArrayLike, measured: ArrayLike) -> NDArray[np.float64]:
    """The log-odds of the signal for each row of `measured`; `labels`, both 0 and 1 among them, belong to `fitted`."""
    x, wanted = _scaled(fitted, measured, centre=True)
    model = LogisticRegression(max_iter=_ITERATIONS).fit(x, np.asarray(labels, dtype=np.float64))
    return np.asarray(model.decision_function(wanted), dtype=np.float64)


def _scaled(
    fitted: ArrayLike, measured: ArrayLike, *, centre: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both in units of the deviation of the fitted ones; what is to be measured is not looked at."""
    x, wanted = np.asarray(fitted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    middle = x.mean(axis=0) if centre else np.zeros(x.shape[1])
    scale = np.sqrt(((x - middle) ** 2).mean(axis=0))
    scale[scale == 0] = 1.0
    return (x - middle) / scale, (wanted - middle) / scale
