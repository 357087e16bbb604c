"""Agreement of several reviewers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_contract.pairs import AgreementParams
from flywheel_trainer.annotation import measuring
from flywheel_trainer.annotation.agreement import agreed, alpha, majority
from flywheel_trainer.data.rows import Preference

ALL = AgreementParams()
TWO_THIRDS = AgreementParams(min_share=0.66)


def pair(*choices: str, chosen: str = "a", rejected: str = "b") -> Preference:
    return Preference.model_validate(
        {
            "conversation": "c", "user": "u", "origin": "Internal",
            "prompt": [{"role": "user", "content": "Hi"}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "reviews": [{"reviewer": f"r{i}", "choice": choice} for i, choice in enumerate(choices)],
        }
    )  # fmt: skip


def test_the_majority_and_its_share() -> None:
    assert majority(["yes", "no", "yes"]) == ("yes", 2 / 3)
    assert majority(["no", "yes"]) == ("no", 0.5)
    with pytest.raises(ValueError, match="nobody has answered"):
        majority([])


@pytest.mark.parametrize(
    ("answers", "params", "expected"),
    [
        (["yes"], ALL, None),
        (["yes", "yes"], ALL, "yes"),
        (["yes", "yes", "no"], ALL, None),
        (["yes", "yes", "no"], TWO_THIRDS, "yes"),
        (["yes", "no"], TWO_THIRDS, None),
    ],
)
def test_agreement_needs_enough_reviews_and_a_large_enough_share(
    answers: list[str], params: AgreementParams, expected: str | None
) -> None:
    assert agreed(answers, params) == expected


def test_alpha_is_the_books() -> None:
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), part C: four observers, twelve units: 0.743.
    units = ["111", "2223", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3"]
    assert alpha([list(unit) for unit in units], list("12345")) == pytest.approx(0.743, abs=0.001)


def test_alpha_is_not_defined_without_two_answers_or_a_second_value() -> None:
    assert alpha([], ["yes", "no"]) is None
    assert alpha([["yes"], ["no"]], ["yes", "no"]) is None
    assert alpha([["yes", "yes"], ["yes", "yes"]], ["yes", "no"]) is None


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=2, max_size=4), min_size=2, max_size=20))
def test_alpha_is_one_exactly_where_all_agree(items: list[list[str]]) -> None:
    value = alpha(items, list("abc"))
    if value is not None:
        assert value <= 1 + 1e-12
        assert (value > 1 - 1e-12) == all(len(set(answers)) == 1 for answers in items)


def test_pairs_with_several_reviews_measure_only_where_these_agree() -> None:
    rows = [pair("Chosen", "Chosen"), pair("Chosen", "Tie"), pair("Chosen"), pair(), pair("Rejected", "Rejected")]
    assert measuring.measurable(rows, ALL) == [True, False, False, False, False]


def test_pairs_with_one_review_each_all_measure() -> None:
    assert measuring.measurable([pair("Chosen"), pair()], ALL) == [True, True]
    assert measuring.agreement([pair("Chosen"), pair()]) is None


def test_one_reviewer_counts_once() -> None:
    row = pair("Chosen", "Chosen").model_copy(
        update={"reviews": [r.model_copy(update={"reviewer": "same"}) for r in pair("Rejected", "Chosen").reviews]}
    )
    assert row.choices == ["Chosen"]


def test_agreement_does_not_depend_on_which_reply_is_called_chosen() -> None:
    told = [pair("Chosen", "Chosen"), pair("Chosen", "Chosen", chosen="b", rejected="a"), pair("Chosen", "Rejected")]
    measured = measuring.agreement(told)
    assert measured is not None
    assert measured.n == 3
    # Turned to one order: aa, bb, ab.
    assert measured.value == pytest.approx(alpha([["a", "a"], ["b", "b"], ["a", "b"]], ["a", "b"]))
