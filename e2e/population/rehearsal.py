"""A population against fixed replies, without servers and without time: what a test of a given size would see."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from e2e.population.life import draw_people
from e2e.population.settings import Settings


@dataclass(frozen=True)
class Rehearsed:
    """What one person did. Only who came at all is counted: nobody else is exposed."""

    arm: str
    messages: int
    active_days: int


def rehearse(settings: Settings, voices: Mapping[str, Sequence[str]]) -> list[Rehearsed]:
    """Plays all days. `voices` holds, by arm, the replies that its model draws from; users are split evenly."""
    arms = sorted(voices)
    split, speak = random.Random(f"{settings.seed}/split"), random.Random(f"{settings.seed}/speak")
    found = []
    for person in draw_people(settings.users, settings.seed, settings.habits):
        arm = split.choice(arms)
        messages = active_days = 0
        for day in range(settings.days):
            visits = person.visits(day)
            active_days += bool(visits)
            for _ in visits:
                topic, said, going = person.topic(), 0, True
                while going:
                    person.says(topic)
                    said += 1
                    going = person.goes_on(speak.choice(voices[arm]), said)
                messages += said
        if active_days:
            found.append(Rehearsed(arm, messages, active_days))
    return found


def means(rows: Sequence[Rehearsed], arm: str) -> tuple[int, float, float]:
    """Users of an arm, messages per user, active days per user."""
    mine = [row for row in rows if row.arm == arm]
    return len(mine), fmean(row.messages for row in mine), fmean(row.active_days for row in mine)
