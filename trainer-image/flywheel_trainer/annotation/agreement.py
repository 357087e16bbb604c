"""How far several reviewers agree: on one item by the majority's share, on all of them by Krippendorff's alpha.

Alpha is 1 less the observed disagreement over the one expected by chance: 1 is perfect, 0 is chance (Krippendorff,
"Content Analysis", 2004, chapter 11). It takes any number of reviewers, who need not have seen the same items.
"""

from collections import Counter
from collections.abc import Sequence

import krippendorff
import numpy as np

from flywheel_contract.pairs import AgreementParams


def majority(answers: Sequence[str]) -> tuple[str, float]:
    """The most frequent answer and its share; a draw goes to the first in the alphabet, with its share.

    Raises:
        ValueError: there are no answers.
    """
    if not answers:
        raise ValueError("nobody has answered: give at least one answer")
    answer, count = min(Counter(answers).items(), key=lambda item: (-item[1], item[0]))
    return answer, count / len(answers)


def agreed(answers: Sequence[str], params: AgreementParams) -> str | None:
    """What the reviewers of one item agree on; None where they do not, or are too few."""
    if len(answers) < params.min_reviews:
        return None
    answer, share = majority(answers)
    return answer if share >= params.min_share else None


def alpha(items: Sequence[Sequence[str]], values: Sequence[str]) -> float | None:
    """Krippendorff's nominal alpha over the answers to one question, item by item; `values` are all that occur.

    None where it is not defined: no item has two answers, or nobody ever gave a second value.
    """
    counts = np.array([[answers.count(value) for value in values] for answers in map(list, items)], dtype=np.int64)
    pairable = counts[counts.sum(axis=1) >= 2] if len(items) else counts
    if not len(pairable) or (pairable.sum(axis=0) > 0).sum() < 2:
        return None
    used = pairable.sum(axis=0) > 0
    return float(
        krippendorff.alpha(
            value_counts=pairable[:, used],
            value_domain=list(range(int(used.sum()))),
            level_of_measurement="nominal",
        )
    )
