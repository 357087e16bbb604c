"""Asks the safety classifier (the one that curation uses too); one that cannot answer means *not safe*."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flywheel_gateway.calls import Said
from flywheel_gateway.errors import UnsafeTextError
from flywheel_safety.classifier import Classifier, UnavailableError, judge
from flywheel_safety.sentences import sentences

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Question:
    """Sentences, and who waits for what the worst of them is."""

    parts: list[str]
    answer: asyncio.Future[str | None]


class Moderator:
    """Asks the classifier in a thread of its own, so that streams go on meanwhile.

    What comes while it is busy is asked together: of a call's time, most is spent however many texts there are.
    """

    def __init__(self, threshold: float, classifier: Classifier) -> None:
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

    @property
    def detector(self) -> str:
        """The classifier's name and version, for the events."""
        return self._classifier.name

    async def unsafe(self, texts: Sequence[str]) -> str | None:
        """The category of the first sentence that scores at the threshold or above; None: all of them are safe.

        Raises:
            UnsafeTextError: the classifier failed, or did not answer for each text.
        """
        parts = [sentence for text in texts for sentence in sentences(text)]
        if not parts:
            return None
        loop = asyncio.get_running_loop()
        question = _Question(parts, loop.create_future())
        self._waiting.append(question)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await question.answer

    async def unsafe_in(self, said: Said) -> str | None:
        """As `unsafe`, of a reply.

        Raises:
            UnsafeTextError: as `unsafe`, or it calls something in a way that cannot be read, so not be checked either.
        """
        if not said.readable:
            self.failures += 1
            raise UnsafeTextError("the arguments of a call cannot be read")
        return await self.unsafe([*said.texts()])

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while self._waiting:
            # Whoever is gone by now asks no more.
            asked, self._waiting = [question for question in self._waiting if not question.answer.done()], []
            if asked and not await self._answer(asked):
                # One text that breaks the classifier must not refuse the others.
                for question in asked:
                    await self._answer([question])

    async def _answer(self, asked: Sequence[_Question]) -> bool:
        """Answers all of them, if need be by an error. False: one of several broke it, and none is answered."""
        parts = [part for question in asked for part in question.parts]
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._pool, judge, self._classifier, parts, self.threshold)
        except Exception as error:  # noqa: BLE001 -- a classifier may raise anything: whoever asked gets it
            # Nobody is asked again one by one where nobody answers: each of them would wait for the network.
            if len(asked) > 1 and not isinstance(error, UnavailableError):
                return False
            self.failures += len(asked)
            _log.error("the classifier failed (%s)", type(error).__qualname__)
            for question in asked:
                if not question.answer.done():
                    refused = UnsafeTextError("the classifier failed")
                    refused.__cause__ = error
                    question.answer.set_exception(refused)
            return True
        place = iter(found)
        for question in asked:
            categories = [next(place) for _ in question.parts]
            if not question.answer.done():
                question.answer.set_result(next(filter(None, categories), None))
        return True
