"""Whether a text is safe, by a classifier behind one small protocol; a classifier that fails means *not safe*.

The embedded default is alt-profanity-check, a linear model over words: quick, offline, and blind to harm that is said
politely. It is the floor of what a production line needs; another one takes its place by `Classifier`.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from flywheel_gateway.errors import UnsafeTextError
from flywheel_gateway.sentences import sentences

_log = logging.getLogger(__name__)


class Classifier(Protocol):
    """Scores texts; called from one thread that is not the event loop's."""

    def __call__(self, texts: Sequence[str]) -> Sequence[float]:
        """One probability (0 to 1) of being unsafe per text. Whatever it raises counts as unsafe."""
        ...


def profanity(texts: Sequence[str]) -> Sequence[float]:
    """The embedded classifier."""
    from profanity_check import predict_prob  # noqa: PLC0415 -- unpickles its own model files: seconds

    return [float(p) for p in predict_prob(list(texts))]


class Moderator:
    """Asks the classifier in a thread of its own, one text after the other, so that streams go on meanwhile."""

    def __init__(self, threshold: float, classifier: Classifier = profanity) -> None:
        self.threshold = threshold
        self._classifier = classifier
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="moderation")
        self.failures = 0

    async def warm_up(self) -> None:
        """Loads the model, so that no request waits for it. A classifier that cannot load fails closed later."""
        try:
            await self.unsafe(["Hello."])
        except UnsafeTextError:
            _log.error("the classifier cannot be used: everything that it should check is refused")

    async def unsafe(self, texts: Sequence[str]) -> bool:
        """Whether a sentence of the texts scores at the threshold or above.

        Raises:
            UnsafeTextError: the classifier failed, or did not answer with one number per text.
        """
        parts = [sentence for text in texts for sentence in sentences(text)]
        if not parts:
            return False
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._pool, self._classifier, parts)
            scores = [float(score) for score in answer]
        except Exception as error:
            self.failures += 1
            _log.error("the classifier failed (%s)", type(error).__qualname__)
            raise UnsafeTextError("the classifier failed") from error
        if len(scores) != len(parts) or not all(map(math.isfinite, scores)):
            self.failures += 1
            raise UnsafeTextError("the classifier did not answer one number per text")
        return max(scores) >= self.threshold

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)
