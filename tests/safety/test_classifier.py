"""From scores to a verdict."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_safety.classifier import BrokenAnswerError, Classifier, judge

SCORES = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(0, 1))


class Fixed(Classifier):
    """Answers what it was given."""

    name = "fixed/1"

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def score(self, texts: object) -> object:  # type: ignore[override] # also what is no answer
        return self._answer


@given(st.lists(SCORES, max_size=4), st.floats(0.01, 1))
def test_a_text_is_unsafe_exactly_where_a_category_reaches_the_threshold(
    scores: list[Mapping[str, float]], threshold: float
) -> None:
    verdicts = judge(Fixed(scores), ["text"] * len(scores), threshold)
    for verdict, given_scores in zip(verdicts, scores, strict=True):
        assert (verdict is None) == all(value < threshold for value in given_scores.values())
        if verdict is not None:
            assert given_scores[verdict] == max(given_scores.values())


def test_of_equals_the_first_by_name_so_that_counts_do_not_change() -> None:
    assert judge(Fixed([{"b": 0.9, "a": 0.9}]), ["text"], 0.5) == ["a"]


@pytest.mark.parametrize("answer", [None, [], [{}, {}], "x", [None], [{"a": None}], [{"a": -0.1}], [{"a": 1.1}]])
def test_what_is_no_answer_is_an_error_and_quotes_no_text(answer: object) -> None:
    with pytest.raises(BrokenAnswerError) as failure:
        judge(Fixed(answer), ["a secret text"], 0.5)
    assert "fixed/1" in str(failure.value)
    assert "secret" not in str(failure.value)
