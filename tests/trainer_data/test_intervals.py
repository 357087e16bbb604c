"""The bootstrap over users, by property."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_trainer import intervals

ROWS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(-100, 100)), min_size=1, max_size=60)


def columns(rows: list[tuple[str, float]]) -> tuple[list[str], list[float]]:
    return [user for user, _ in rows], [value for _, value in rows]


@given(ROWS, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_the_interval_holds_the_mean_and_stays_inside_the_data(rows: list[tuple[str, float]], seed: int) -> None:
    users, values = columns(rows)
    found = intervals.mean(users, values, samples=100, seed=seed).measurement(0.9)
    assert found.value == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= found.low <= found.value <= found.high <= max(values) + 1e-9
    assert found.n == len(set(users))


@given(ROWS, st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_same_seed_gives_the_same_interval_in_any_order_of_rows(rows: list[tuple[str, float]], seed: int) -> None:
    first = intervals.mean(*columns(rows), samples=100, seed=seed).measurement(0.9)
    again = intervals.mean(*columns(rows[::-1]), samples=100, seed=seed).measurement(0.9)
    assert (first.low, first.high) == pytest.approx((again.low, again.high))


@given(ROWS, st.floats(-10, 10))
@settings(max_examples=30, deadline=None)
def test_a_constant_difference_has_an_interval_of_no_width(rows: list[tuple[str, float]], shift: float) -> None:
    users, values = columns(rows)
    shifted = [v + shift for v in values]
    found = intervals.paired_difference(users, shifted, values, samples=100, seed=0).measurement(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((shift, shift, shift), abs=1e-6)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=30))
def test_wins_of_both_sides_add_up_to_one(pairs: list[tuple[float, float]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    assert intervals.wins(one, other) + intervals.wins(other, one) == pytest.approx(np.ones(len(pairs)))
    assert intervals.wins(one, one) == pytest.approx(np.full(len(pairs), 0.5))


def test_rows_of_one_user_move_together() -> None:
    users = [f"u{i % 10}" for i in range(1000)]
    values = [float(i % 10) for i in range(1000)]
    by_user = intervals.mean(users, values, samples=1000, seed=1).measurement(0.95)
    by_row = intervals.mean([str(i) for i in range(1000)], values, samples=1000, seed=1).measurement(0.95)
    assert by_user.high - by_user.low > 5 * (by_row.high - by_row.low)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = rng.normal(1.0, 1.0, size=40)
        found = intervals.mean([str(i) for i in range(40)], values, samples=300, seed=trial).measurement(0.9)
        covered += found.low <= 1.0 <= found.high
    assert 0.82 <= covered / 200 <= 0.96


def test_a_ratio_is_of_sums() -> None:
    found = intervals.ratio(["a", "a", "b"], [1, 2, 3], [10, 10, 20], samples=100, seed=0)
    assert found.value == pytest.approx(6 / 40)


def test_combined_estimates_of_the_same_users_vary_together() -> None:
    users = [str(i) for i in range(30)]
    values = np.arange(30.0)
    one, twice = (intervals.mean(users, values * k, samples=200, seed=3) for k in (1, 2))
    found = intervals.combine(lambda a, b: b / a, one, twice, users=30).measurement(0.95)
    assert (found.low, found.value, found.high) == pytest.approx((2, 2, 2))


def test_many_users_are_resampled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    users = [str(i) for i in range(50)]
    whole = intervals.mean(users, np.arange(50.0), samples=100, seed=0)
    monkeypatch.setattr(intervals, "_CELLS_AT_ONCE", 350)
    pieces = intervals.mean(users, np.arange(50.0), samples=100, seed=0)
    assert pieces.resamples == pytest.approx(whole.resamples)


@pytest.mark.parametrize(("users", "values"), [([], []), (["a"], [1.0, 2.0])])
def test_rows_that_do_not_match_are_refused(users: list[str], values: list[float]) -> None:
    with pytest.raises(ValueError, match="give each row one"):
        intervals.ratio(users, values, values, samples=100, seed=0)
