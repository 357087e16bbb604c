"""The population at the servers, in real time."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from e2e.population.browser import Browser, Messages, RequestError, Visit
from e2e.population.life import Life, draw_people
from e2e.population.settings import Settings
from e2e.population.tally import Arms, Tally
from e2e.population.taste import liking

REMEMBERED: Final = 8
"""Messages of a conversation that a client sends again: the small models have a short context."""
DAYS_OVER: Final = "the days are over"
REQUESTS_SPENT: Final = "the requests are spent"
STOPPED: Final = "it was stopped"
OVERDUE: Final = "the last visits did not end"
CLOSING_SECONDS: Final = 15.0
"""For the visits that go on when the last day is over."""


class Town:
    """All people of a population. `run` once."""

    def __init__(self, settings: Settings, report: Callable[[Tally], None]) -> None:
        """`report` is given the tally every `report_seconds`, and at the end with `done`."""
        self.tally = Tally()
        self._settings, self._report = settings, report
        self._arms = Arms()
        self._door = asyncio.Semaphore(settings.at_once)
        self._over = asyncio.Event()
        self._came: set[int] = set()

    def stop(self, why: str = STOPPED) -> None:
        """Nobody comes any more; who is talking ends with the reply that is under way."""
        if not self._over.is_set():
            self.tally.why = why
            self._over.set()

    async def run(self) -> Tally:
        """Lives all days, or until the requests are spent or `stop` is called, and answers the last tally."""
        settings = self._settings
        people = draw_people(settings.users, settings.seed, settings.habits)
        began = time.monotonic()
        everybody = asyncio.gather(*(self._live(person, began) for person in people))
        ticking = asyncio.create_task(self._tick())
        longest = settings.days * settings.day_seconds + settings.timeout_seconds + CLOSING_SECONDS
        try:
            async with asyncio.timeout(longest):
                await everybody
            self.stop(DAYS_OVER)
        except TimeoutError:
            self.stop(OVERDUE)
        finally:
            ticking.cancel()
            self.tally.done = True
            self._show()
        return self.tally

    async def _live(self, person: Life, began: float) -> None:
        browser = Browser(self._settings.url, self._settings.timeout_seconds, self.tally.retry)
        length = self._settings.day_seconds
        for day in range(self._settings.days):
            morning = began + day * length
            if await self._over_before(morning):
                return
            for part in person.visits(day):
                if await self._over_before(morning + part * length):
                    return
                async with self._door:
                    await self._visit(person, browser)
        await self._over_before(began + self._settings.days * length)

    async def _over_before(self, moment: float) -> bool:
        """Waits until `moment`, of the monotonic clock; whether the town was stopped before."""
        seconds = moment - time.monotonic()
        if seconds > 0 and not self._over.is_set():
            try:
                await asyncio.wait_for(self._over.wait(), seconds)
            except TimeoutError:
                pass
        return self._over.is_set()

    async def _visit(self, person: Life, browser: Browser) -> None:
        self.tally.visits += 1
        try:
            async with browser.visit() as visit:
                opened = await visit.session(training=person.consents)
                self._came.add(person.number)
                self._arms.told(person.number, opened.test, opened.arm)
                await self._converse(person, visit, opened.arm)
        except RequestError as error:
            self.tally.failure(error.kind, str(error))

    async def _converse(self, person: Life, visit: Visit, arm: str | None) -> None:
        settings, tally = self._settings, self.tally
        messages: Messages = []
        topic, said, going = person.topic(), 0, True
        while going and not self._over.is_set():
            if tally.asked >= settings.max_requests:
                self.stop(REQUESTS_SPENT)
                return
            messages = [*messages[-(REMEMBERED - 1) :], {"role": "user", "content": person.says(topic)}]
            stream = person.wants_stream()
            tally.asked += 1
            tally.streamed += stream
            reply = await visit.chat(messages, max_tokens=settings.max_tokens, stream=stream)
            said += 1
            tally.answer(arm, liking(reply.text), reply.milliseconds)
            tally.filtered += reply.filtered
            messages.append({"role": "assistant", "content": reply.text})
            thumb = person.thumb(reply.text)
            if thumb is not None:
                await visit.feedback(thumb, reply.turn)
                tally.feedback += 1
            going = person.goes_on(reply.text, said)
            if going and await self._over_before(time.monotonic() + person.thinks()):
                return

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._settings.report_seconds)
            self._show()

    def _show(self) -> None:
        self.tally.users = len(self._came)
        self._arms.write(self.tally)
        self._report(self.tally)
