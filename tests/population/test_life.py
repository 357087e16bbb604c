"""Who comes when, who goes on, and what a whole population would show of it."""

import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.population.life import Life, draw_people
from e2e.population.rehearsal import means, rehearse
from e2e.population.sayings import TOPICS, saying
from e2e.population.settings import Habits, Settings
from e2e.population.taste import liking

ASKS, PLAIN, CURT = "I love the sea! What do you love about it?", "I love the sea, it is dear to me.", "Sure."


def test_people_like_to_be_asked_and_dislike_curt_replies() -> None:
    assert liking(ASKS) == 1.0
    assert liking(PLAIN) == pytest.approx(0.4)
    assert liking(CURT) == 0.0
    assert liking("") == 0.0
    assert liking("Why?") == pytest.approx(0.6)


def test_the_same_seed_is_the_same_people_however_many_there_are() -> None:
    few, many = draw_people(5, 7, Habits()), draw_people(50, 7, Habits())
    assert few == many[:5]
    assert [p.visits(3) for p in few] == [p.visits(3) for p in many[:5]]
    assert draw_people(5, 8, Habits()) != few


def test_activity_is_heavy_tailed_within_its_bounds() -> None:
    habits = Habits()
    rates = sorted(p.rate for p in draw_people(4000, 1, habits))
    assert fmean(rates) == pytest.approx(habits.visits_per_day, rel=0.05)
    assert rates[-1] <= habits.busiest
    assert rates[0] >= habits.visits_per_day * (habits.tail - 1) / habits.tail
    busy = sum(rates[-400:]) / sum(rates)
    assert busy > 0.2  # a tenth of the people make more than a fifth of the visits


def test_visits_come_as_often_as_the_rate_says_and_in_order() -> None:
    people = draw_people(400, 2, Habits())
    counts = [len(p.visits(day)) for p in people for day in range(10)]
    expected = fmean(p.rate for p in people)
    assert fmean(counts) == pytest.approx(expected, rel=0.06)
    for person in people[:50]:
        times = person.visits(0)
        assert times == sorted(times)
        assert all(0 <= t < 1 for t in times)


@given(seed=st.integers(0, 10**6), day=st.integers(0, 20), low=st.floats(-1, 1), more=st.floats(0, 1))
def test_a_better_mood_never_means_fewer_visits(seed: int, day: int, low: float, more: float) -> None:
    person = Life(0, seed, Habits())
    person.mood = low
    before = len(person.visits(day))
    person.mood = min(low + more, 1.0)
    assert len(person.visits(day)) >= before


@given(st.lists(st.sampled_from([ASKS, PLAIN, CURT, ""]), max_size=30), st.integers(0, 1000))
def test_the_mood_stays_in_its_bounds_and_follows_the_replies(replies: list[str], seed: int) -> None:
    person = Life(0, seed, Habits())
    for reply in replies:
        person.goes_on(reply, 1)
        assert -1 <= person.mood <= 1
    if replies and set(replies) <= {ASKS}:
        assert person.mood > 0


@pytest.mark.parametrize(("reply", "felt"), [(ASKS, 1.0), (PLAIN, 0.0), (CURT, -1.0)])
def test_people_go_on_as_often_as_the_taste_says(reply: str, felt: float) -> None:
    habits = Habits()
    expected = 1 / (1 + math.exp(-(habits.going_on + habits.taste * felt)))
    went = fmean(Life(number, 5, habits).goes_on(reply, 1) for number in range(4000))
    assert went == pytest.approx(expected, abs=0.03)


def test_nobody_says_more_than_the_longest_visit_holds() -> None:
    habits = Habits(going_on=50.0, longest=3)
    person = Life(0, 0, habits)
    assert person.goes_on(ASKS, 2)
    assert not person.goes_on(ASKS, 3)


def test_thumbs_are_pressed_for_clear_likings_only() -> None:
    always = Life(0, 0, Habits(thumbs=1.0))
    assert always.thumb(ASKS) == "thumbs_up"
    assert always.thumb(CURT) == "thumbs_down"
    assert always.thumb(PLAIN) is None
    assert Life(0, 0, Habits(thumbs=0.0)).thumb(ASKS) is None


def test_people_think_stream_and_consent_as_their_habits_say() -> None:
    people = [Life(n, 3, Habits(think_seconds=1.0)) for n in range(2000)]
    assert fmean(p.thinks() for p in people) == pytest.approx(1.0, abs=0.1)
    assert fmean(p.wants_stream() for p in people) == pytest.approx(Habits().streamed, abs=0.03)
    assert fmean(p.consents for p in people) == pytest.approx(Habits().consenting, abs=0.02)
    assert Life(0, 0, Habits(think_seconds=0)).thinks() == 0


def test_sayings_are_many_and_name_their_topic() -> None:
    draw = random.Random(0)
    said = {saying(draw, TOPICS[0]) for _ in range(2000)}
    assert len(said) > 200
    assert all(TOPICS[0] in text for text in said)


def test_a_rehearsal_shows_what_the_taste_does_and_nothing_where_replies_are_alike() -> None:
    settings = Settings("http://x", users=1500, days=5, day_seconds=1, seed=11)
    liked = rehearse(settings, {"control": [PLAIN], "treatment": [ASKS]})
    (n, messages, days), (n_t, messages_t, days_t) = means(liked, "control"), means(liked, "treatment")
    assert n + n_t == len(liked) <= 1500
    assert messages_t > 1.5 * messages
    assert days_t > 1.05 * days
    alike = rehearse(settings, {"control": [PLAIN], "treatment": [PLAIN]})
    assert means(alike, "treatment")[1] == pytest.approx(means(alike, "control")[1], rel=0.15)
    assert rehearse(settings, {"control": [PLAIN], "treatment": [ASKS]}) == liked
