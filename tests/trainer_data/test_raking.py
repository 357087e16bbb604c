"""How many to take from each cell: margins, caps, whole numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_trainer.data.raking import Table, fit, quotas, whole


def table(counts: list[list[int]], rows: list[float], columns: list[float]) -> Table:
    """A table of two dimensions; cells without units are left out, as they are in curation."""
    grid = np.array(counts)
    first, second = np.nonzero(grid)
    return Table(grid[first, second], [first, second], [np.array(rows), np.array(columns)])


def test_two_margins_are_met_at_once_with_as_many_as_there_can_be() -> None:
    given_ = table([[400, 100], [100, 400]], [0.5, 0.5], [0.25, 0.75])
    taken = quotas(given_, tolerance=0.0051, least=1, most=1000)
    assert given_.deviation(taken) <= 0.0061
    assert (taken <= given_.available).all()
    # Of N, the second column takes 0.75 N: 100 of the first row and N / 2 of the second at most, so N is 400.
    assert 370 <= taken.sum() <= 430


def test_shares_that_are_right_already_keep_everything() -> None:
    given_ = table([[10, 20], [30, 40]], [0.3, 0.7], [0.4, 0.6])
    assert quotas(given_, tolerance=0.0, least=1, most=100).tolist() == [10, 20, 30, 40]


def test_a_cap_on_the_total_is_kept() -> None:
    given_ = table([[50, 50], [50, 50]], [0.5, 0.5], [0.5, 0.5])
    assert quotas(given_, tolerance=0.01, least=1, most=100).sum() == 100
    assert quotas(given_, tolerance=0.01, least=200, most=100).sum() == 100


def test_the_floor_is_kept_where_the_target_is_out_of_reach() -> None:
    given_ = table([[10], [990]], [0.5, 0.5], [1.0])
    taken = quotas(given_, tolerance=0.01, least=500, most=1000)
    assert taken.tolist() == [10, 490]


def test_unwanted_cells_fill_up_only_where_nothing_wanted_is_left() -> None:
    given_ = table([[10, 0], [0, 90]], [1.0, 0.0], [0.5, 0.5])
    assert quotas(given_, tolerance=0.01, least=5, most=100).sum() >= 5
    assert quotas(table([[10], [90]], [1.0, 0.0], [1.0]), tolerance=0.01, least=5, most=100).tolist() == [10, 0]
    assert quotas(table([[10], [90]], [1.0, 0.0], [1.0]), tolerance=0.01, least=40, most=100).tolist() == [10, 30]


def test_without_dimensions_everything_is_taken_up_to_the_cap() -> None:
    assert quotas(Table(np.array([30]), [], []), tolerance=0, least=1, most=20).tolist() == [20]


@given(st.lists(st.floats(0, 50), min_size=1, max_size=40))
def test_rounding_keeps_the_total_and_moves_no_cell_by_one(parts: list[float]) -> None:
    taken = np.array(parts)
    rounded = whole(taken)
    assert abs(rounded.sum() - taken.sum()) <= 0.5 + 1e-6
    assert (np.abs(rounded - taken) < 1 + 1e-6).all()


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=3, max_size=3), min_size=2, max_size=4),
    st.integers(1, 100),
    st.data(),
)
def test_what_is_taken_is_there_and_is_as_many_as_asked(
    counts: list[list[int]], percent: int, data: st.DataObject
) -> None:
    def shares(size: int) -> list[float]:
        parts = np.array(data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size).filter(any)), dtype=float)
        return list(parts / parts.sum())

    given_ = table(counts, shares(len(counts)), shares(3))
    everything = int(given_.available.sum())
    total = max(1, everything * percent // 100)
    assert fit(given_, total).sum() == pytest.approx(total, abs=0.01)
    least = max(1, total // 2)
    taken = quotas(given_, tolerance=0.02, least=least, most=total)
    assert (taken >= 0).all()
    assert (taken <= given_.available).all()
    assert least - 1 <= taken.sum() <= total
