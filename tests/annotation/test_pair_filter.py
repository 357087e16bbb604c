"""Limits on how differently the replies of a pair may look."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_contract.pairs import PairFilterParams
from flywheel_trainer import pair_filter
from tests.annotation.test_agreement import pair

OPEN = PairFilterParams(max_length_ratio=None, max_emoji_difference=None, max_list_item_difference=None)
LIST = "- one\n- two\n3. three"


@pytest.mark.parametrize(
    ("limits", "chosen", "rejected", "reason"),
    [
        ({"max_length_ratio": 2.0}, "x" * 21, "y" * 10, "length-ratio"),
        ({"max_length_ratio": 2.0}, "x" * 20, "y" * 10, None),
        ({"max_length_ratio": 2.0}, "", "y" * 10, "length-ratio"),
        ({"max_emoji_difference": 1}, "\U0001f600\U0001f600", "", "emoji"),
        ({"max_emoji_difference": 1}, "\U0001f600\U0001f600", "\U0001f600", None),
        ({"max_list_item_difference": 2}, LIST, "none", "list-items"),
        ({"max_list_item_difference": 3}, LIST, "none", None),
        ({"max_line_difference": 0}, "a\nb", "ab", "lines"),
        ({"max_question_difference": 0}, "a?", "a", "questions"),
        ({}, "x" * 100_000 + LIST + "?" * 9 + "\U0001f600" * 50, "", None),
    ],
)
def test_a_pair_beyond_a_limit_is_dropped(
    limits: dict[str, float], chosen: str, rejected: str, reason: str | None
) -> None:
    params = OPEN.model_copy(update=limits)
    assert pair_filter.beyond(pair(chosen=chosen, rejected=rejected), params) == reason
    assert pair_filter.beyond(pair(chosen=rejected, rejected=chosen), params) == reason


def test_dropped_pairs_are_counted_under_the_first_reason() -> None:
    rows = [pair(chosen="x" * 100, rejected="y?"), pair(chosen="a\nb\nc", rejected="a b c"), pair()]
    kept, counts = pair_filter.kept(rows, PairFilterParams(max_line_difference=1))
    assert kept == [rows[2]]
    assert counts == {"dropped-length-ratio": 1, "dropped-emoji": 0, "dropped-list-items": 0, "dropped-lines": 1}


@given(st.text(max_size=50), st.text(max_size=50))
def test_without_limits_nothing_is_dropped_and_equal_texts_never(first: str, second: str) -> None:
    assert pair_filter.kept([pair(chosen=first, rejected=second)], OPEN) == (
        [pair(chosen=first, rejected=second)], {},
    )  # fmt: skip
    strict = PairFilterParams(
        max_length_ratio=1.01, max_emoji_difference=0, max_list_item_difference=0,
        max_line_difference=0, max_question_difference=0,
    )  # fmt: skip
    if first:
        assert pair_filter.beyond(pair(chosen=first, rejected=first), strict) is None
