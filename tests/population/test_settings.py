"""Settings in and out, and what is refused."""

import pytest

from e2e.population.settings import Habits, Settings

SOME = Settings("http://luna", users=3, days=2, day_seconds=0.5, seed=4, habits=Habits(longest=2))


def test_settings_survive_the_command_line() -> None:
    assert Settings.from_json(SOME.to_json()) == SOME
    least = Settings.from_json('{"url": "http://luna", "users": 1, "days": 1, "day_seconds": 1}')
    assert least.habits == Habits()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"url": "x", "users": 0, "days": 1, "day_seconds": 1}', "at least one user"),
        ('{"url": "x", "users": 1, "days": 1, "day_seconds": 0}', "days last"),
        ('{"url": "x", "users": 1, "days": 1, "day_seconds": 1, "habits": {"tail": 1}}', "tail"),
        ('{"url": "x", "users": 1, "days": 1, "day_seconds": 1, "mood": 1}', "no mood"),
        ('{"url": "x", "users": 1, "days": 1, "day_seconds": 1, "habits": {"size": 1}}', "no size"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings.from_json(text)
