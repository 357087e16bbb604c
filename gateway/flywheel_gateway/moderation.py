"""Whether a text is safe, by a classifier behind one small protocol; a classifier that fails means *not safe*.

The embedded default is alt-profanity-check, a linear model over words: quick, offline, and blind to harm that is said
politely. It is the floor of what a production line needs; another one takes its place by `Classifier`.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Question:
    """Sentences, and who waits for what the worst of them is."""

    parts: list[str]
    answer: asyncio.Future[bool]


class Moderator:
    """Asks the classifier in a thread of its own, so that streams go on meanwhile.

    What comes while it is busy is asked together: of a call's time, most is spent however many texts there are.
    """

    def __init__(self, threshold: float, classifier: Classifier = profanity) -> None:
        self.threshold = threshold
        self._classifier = classifier
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="moderation")
        self._waiting: list[_Question] = []
        self._worker: asyncio.Task[None] | None = None
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
        loop = asyncio.get_running_loop()
        question = _Question(parts, loop.create_future())
        self._waiting.append(question)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await question.answer

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while self._waiting:
            # Whoever is gone by now asks no more.
            asked, self._waiting = [question for question in self._waiting if not question.answer.done()], []
            if asked and not await self._answer(asked) and len(asked) > 1:
                # One text that breaks the classifier must not refuse the others.
                for question in asked:
                    await self._answer([question])

    async def _answer(self, asked: Sequence[_Question]) -> bool:
        """Answers all of them, or none and False; a single one is answered by its error."""
        parts = [part for question in asked for part in question.parts]
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._pool, self._classifier, parts)
            scores = [float(score) for score in answer]
            if len(scores) != len(parts) or not all(map(math.isfinite, scores)):
                raise UnsafeTextError("the classifier did not answer one number per text")
        except Exception as error:  # noqa: BLE001 -- a classifier may raise anything: whoever asked gets it
            if len(asked) == 1:
                self.failures += 1
                _log.error("the classifier failed (%s)", type(error).__qualname__)
                if not asked[0].answer.done():
                    refused = UnsafeTextError("the classifier failed")
                    refused.__cause__ = error
                    asked[0].answer.set_exception(refused)
            return False
        place = iter(scores)
        for question in asked:
            worst = max(next(place) for _ in question.parts)
            if not question.answer.done():
                question.answer.set_result(worst >= self.threshold)
        return True
