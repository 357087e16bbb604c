"""What happened to a population, as one line of JSON."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Self

EXAMPLES: Final = 10
NOT_ENROLLED: Final = "none"


@dataclass
class Tally:
    """Counts so far. `failed` and `retried` are by kind, `arms` is by test, `replies` and `liked` by arm."""

    users: int = 0
    """Who came at least once."""
    visits: int = 0
    asked: int = 0
    answered: int = 0
    streamed: int = 0
    filtered: int = 0
    """Replies that the gateway cut for safety."""
    feedback: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    """Requests that got no answer for good: by HTTP status, or by the error's name."""
    retried: dict[str, int] = field(default_factory=dict)
    """Connections that broke; the request was sent again on a new one."""
    examples: list[str] = field(default_factory=list)
    """The first failures in words."""
    arms: dict[str, dict[str, int]] = field(default_factory=dict)
    """Users by arm, of each test."""
    switched: int = 0
    """Users who were told two arms of one test: must stay 0."""
    replies: dict[str, int] = field(default_factory=dict)
    liked: dict[str, float] = field(default_factory=dict)
    """Sum of the likings; divided by `replies` it is their mean."""
    slowest_ms: float = 0
    mean_ms: float = 0
    done: bool = False
    why: str = ""
    """Why it ended."""

    @classmethod
    def from_json(cls, line: str) -> Self:
        """A tally from its line."""
        return cls(**json.loads(line))

    def to_json(self) -> str:
        """One line."""
        return json.dumps(vars(self), sort_keys=True)

    @property
    def lost(self) -> int:
        """Requests that got no answer for good."""
        return sum(self.failed.values())

    def liking(self, arm: str) -> float:
        """Mean liking of the replies of an arm, 0 to 1."""
        return self.liked[arm] / self.replies[arm]

    def answer(self, arm: str | None, liked: float, milliseconds: float) -> None:
        """A reply came."""
        name = arm or NOT_ENROLLED
        self.answered += 1
        self.replies[name] = self.replies.get(name, 0) + 1
        self.liked[name] = round(self.liked.get(name, 0.0) + liked, 6)
        self.mean_ms = round(self.mean_ms + (milliseconds - self.mean_ms) / self.answered, 3)
        self.slowest_ms = max(self.slowest_ms, round(milliseconds, 3))

    def failure(self, kind: str, said: str) -> None:
        """A request got no answer for good."""
        _count(self.failed, kind)
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{kind}: {said}"[:200])

    def retry(self, kind: str) -> None:
        """A connection broke and the request goes out again."""
        _count(self.retried, kind)


class Arms:
    """Which arm of which test each user was told."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], str] = {}
        self._switched: set[tuple[str, int]] = set()

    def told(self, user: int, test: str | None, arm: str | None) -> None:
        """A session told a user this arm."""
        if test is None or arm is None:
            return
        if self._seen.setdefault((test, user), arm) != arm:
            self._switched.add((test, user))

    def write(self, tally: Tally) -> None:
        """Puts what was seen into a tally."""
        found: dict[str, Counter[str]] = {}
        for (test, _), arm in self._seen.items():
            found.setdefault(test, Counter())[arm] += 1
        tally.arms = {test: dict(counts) for test, counts in found.items()}
        tally.switched = len(self._switched)


def _count(counts: dict[str, Any], kind: str) -> None:
    counts[kind] = counts.get(kind, 0) + 1
