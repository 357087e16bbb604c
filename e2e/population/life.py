"""One person, day by day: when they come, what they say, whether they go on. Pure: the seed and the replies decide."""

import math
import random
from dataclasses import dataclass, field

from e2e.population.sayings import another_topic, saying
from e2e.population.settings import Habits
from e2e.population.taste import CLEARLY_DISLIKED, CLEARLY_LIKED, NEUTRAL, liking

LAST_PART = 0.85
"""Visits begin in this part of a day, so that most end in it."""


@dataclass
class Life:
    """A person. Days and visits are drawn apart: another reply changes the mood, but no arrival by mere luck."""

    number: int
    seed: int
    habits: Habits
    rate: float = field(init=False)
    """Visits a day while indifferent."""
    consents: bool = field(init=False)
    mood: float = field(init=False, default=0.0)
    """-1 to 1: what the last replies left."""

    def __post_init__(self) -> None:
        draw = self._draw("who")
        habits = self.habits
        # A Pareto law of mean `visits_per_day`: the least rate follows from mean and shape.
        least = habits.visits_per_day * (habits.tail - 1) / habits.tail
        self.rate = min(least * draw.paretovariate(habits.tail), habits.busiest)
        self.consents = draw.random() < habits.consenting
        self._talk = self._draw("talk")

    def visits(self, day: int) -> list[float]:
        """When they come on a day, as parts of it, in order; often not at all."""
        draw = self._draw(f"day {day}")
        rate = self.rate * math.exp(self.habits.returning * self.mood)
        # A Poisson process by the gaps between arrivals: a better mood moves them together and adds more.
        times, at = [], draw.expovariate(1.0)
        while at < rate:
            times.append(LAST_PART * at / rate)
            at += draw.expovariate(1.0)
        return times

    def topic(self) -> str:
        """What this visit is about."""
        return another_topic(self._talk)

    def says(self, topic: str) -> str:
        """The next message."""
        return saying(self._talk, topic)

    def wants_stream(self) -> bool:
        """Whether the next reply is streamed."""
        return self._talk.random() < self.habits.streamed

    def thinks(self) -> float:
        """Seconds until the next message."""
        mean = self.habits.think_seconds
        return min(self._talk.expovariate(1 / mean), 5 * mean) if mean > 0 else 0.0

    def thumb(self, reply: str) -> str | None:
        """`thumbs_up`, `thumbs_down` or, mostly, none."""
        pressed = self._talk.random() < self.habits.thumbs
        liked = liking(reply)
        if not pressed or CLEARLY_DISLIKED < liked < CLEARLY_LIKED:
            return None
        return "thumbs_up" if liked >= CLEARLY_LIKED else "thumbs_down"

    def goes_on(self, reply: str, said: int) -> bool:
        """Whether they say one more thing after `reply`, having said `said`; the reply moves their mood."""
        felt = _felt(reply)
        memory = self.habits.memory
        self.mood = memory * self.mood + (1 - memory) * felt
        chance = 1 / (1 + math.exp(-(self.habits.going_on + self.habits.taste * felt)))
        return self._talk.random() < chance and said < self.habits.longest

    def _draw(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}/{what}")


def _felt(reply: str) -> float:
    """-1 to 1, 0 for a reply that is neither liked nor disliked."""
    liked = liking(reply)
    return (liked - NEUTRAL) / (1 - NEUTRAL) if liked >= NEUTRAL else liked / NEUTRAL - 1


def draw_people(users: int, seed: int, habits: Habits) -> list[Life]:
    """The population; the first people are the same, however many there are."""
    return [Life(number, seed, habits) for number in range(users)]
