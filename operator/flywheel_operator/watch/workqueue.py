"""The queue of objects to look at: each at most once, one pass per object at a time, failures with growing pauses."""

import asyncio
import random as _random
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

SHORTEST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 300.0
AT_ONCE: Final = 3
"""So many failures in a row are tried again at once, where that makes sense; then the pauses begin."""
_JITTER: Final = 0.2


def pause(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row (1 or more): 1, 2, 4 ... 300, give or take a fifth.

    `chance` is in [0, 1]; it spreads objects that failed together.
    """
    base = SHORTEST_PAUSE * 2.0 ** min(failures - 1, 20)
    return min(LONGEST_PAUSE, max(SHORTEST_PAUSE, min(base, LONGEST_PAUSE) * (1 - _JITTER + 2 * _JITTER * chance)))


class WorkQueue(Generic[KeyT]):
    """What waits to be looked at. All methods belong to one event loop.

    A key is in at most one of three places: ready (someone may take it), active (someone looks at it), or nowhere. One
    that is added while it is active is ready again as soon as that pass is done. Beside that, it may have one timer;
    taking the key ends the timer, since every pass decides anew when to look again.
    """

    def __init__(self, clock: Callable[[], float], random: Callable[[], float] = _random.random) -> None:
        """`clock` is monotonic, in seconds; `random` draws from [0, 1)."""
        self._clock = clock
        self._random = random
        self._ready: dict[KeyT, float] = {}
        self._active: dict[KeyT, float] = {}
        self._again: dict[KeyT, float] = {}
        self._timers: dict[KeyT, float] = {}
        self._failures: dict[KeyT, int] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def add(self, key: KeyT) -> None:
        """Look at `key` as soon as someone is free."""
        self._add(key, self._clock())

    def add_after(self, key: KeyT, delay: float) -> None:
        """Look at `key` in `delay` seconds; an earlier timer stays."""
        due = self._clock() + delay
        self._timers[key] = min(due, self._timers.get(key, due))
        self._changed.set()

    def retry(self, key: KeyT, *, at_once: bool = False) -> float:
        """Counts a failure and sets the timer for the next try; says in how many seconds that is."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = 0.0 if at_once and failures <= AT_ONCE else pause(failures, self._random())
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: KeyT) -> None:
        """Forgets the failures of `key`."""
        self._failures.pop(key, None)

    def failures(self, key: KeyT) -> int:
        """Failures in a row."""
        return self._failures.get(key, 0)

    def poll(self) -> KeyT | None:
        """Takes the key that has been ready longest; None where none is. `done` must follow."""
        now = self._clock()
        for key in sorted((k for k, due in self._timers.items() if due <= now), key=self._timers.__getitem__):
            self._add(key, self._timers.pop(key))
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._timers.pop(key, None)
        self._active[key] = now
        return key

    def done(self, key: KeyT) -> None:
        """The pass over `key` is over."""
        del self._active[key]
        if key in self._again:
            self._add(key, self._again.pop(key))

    async def get(self) -> KeyT | None:
        """Waits for a key and takes it; None once the queue is closed."""
        while not self._closed:
            key = self.poll()
            if key is not None:
                return key
            self._changed.clear()
            due = min(self._timers.values(), default=None)
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return None

    def close(self) -> None:
        """Nobody gets anything any more."""
        self._closed = True
        self._changed.set()

    def __len__(self) -> int:
        """Keys that are ready."""
        return len(self._ready)

    def oldest_seconds(self) -> float:
        """For how long the oldest ready key has been waiting; 0 where none is."""
        return self._age(self._ready)

    def longest_pass_seconds(self) -> float:
        """For how long the longest pass under way has been running; 0 where none is."""
        return self._age(self._active)

    def _age(self, since: dict[KeyT, float]) -> float:
        return self._clock() - min(since.values()) if since else 0.0

    def _add(self, key: KeyT, since: float) -> None:
        place = self._again if key in self._active else self._ready
        place.setdefault(key, since)
        self._changed.set()
