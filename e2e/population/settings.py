"""What can be set of a population."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


@dataclass(frozen=True)
class Habits:
    """How people of this population are. Chances are 0 to 1."""

    visits_per_day: float = 0.7
    """Mean of the activity rates of indifferent people."""
    tail: float = 3.0
    """Shape of the rates' Pareto law; the smaller, the more is done by few. Above 1."""
    busiest: float = 2.5
    """No rate is higher: one person must not decide a test of a hundred."""
    going_on: float = -0.4
    """Log-odds of another message after a reply that is neither liked nor disliked."""
    taste: float = 1.4
    """How much a liked reply (1) or a disliked one (0) moves these log-odds up or down."""
    returning: float = 0.7
    """How much the mood moves the log of the activity rate."""
    memory: float = 0.6
    """What is left of the mood after one more reply."""
    longest: int = 5
    """Messages of a visit, at most."""
    think_seconds: float = 0.3
    """Mean time between a reply and the next message."""
    streamed: float = 0.15
    """Share of the requests that are streamed."""
    thumbs: float = 0.2
    """Chance that a reply with a clear liking gets a thumb."""
    consenting: float = 0.95
    """Share of the people whose chats may be trained on."""


@dataclass(frozen=True)
class Settings:
    """A population at one lineage."""

    url: str
    """The public Service, e.g. `http://luna`."""
    users: int
    days: int
    day_seconds: float
    seed: int = 0
    max_requests: int = 10_000
    """It ends after so many chats."""
    max_tokens: int = 20
    at_once: int = 24
    """Visits that may go on at the same time; others wait at the door."""
    timeout_seconds: float = 60
    report_seconds: float = 2
    habits: Habits = field(default_factory=Habits)

    def __post_init__(self) -> None:
        if min(self.users, self.days, self.max_requests, self.at_once) < 1 or self.day_seconds <= 0:
            raise ValueError("a population has at least one user, day, request and place, and its days last")
        if self.habits.tail <= 1:
            raise ValueError("habits.tail must be above 1: below, the mean rate does not exist")

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Settings as `to_json` wrote them, or a part of them.

        Raises:
            ValueError: an unknown name, or a number out of range.
        """
        value = json.loads(text)
        habits = _known(Habits, value.pop("habits", {}))
        return cls(**_known(cls, value), habits=Habits(**habits))

    def to_json(self) -> str:
        """All of it, as JSON."""
        return json.dumps(asdict(self))


def _known(kind: type, value: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(value) - {f.name for f in fields(kind)})
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}")
    return value
