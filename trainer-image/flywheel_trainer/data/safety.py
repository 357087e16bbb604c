"""The safety filter: the probability of abusive or obscene language by a small embedded classifier.

alt-profanity-check is a linear model over words: quick, offline, and blind to harm that is said politely. It is the
floor of the filter, not the whole of what a production line needs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def unsafe_probabilities(texts: Sequence[str]) -> NDArray[np.float64]:
    """One probability (0 to 1) per text."""
    from profanity_check import predict_prob  # noqa: PLC0415 -- unpickles its own model files: seconds

    return np.asarray(predict_prob(list(texts)), dtype=np.float64) if texts else np.zeros(0)
