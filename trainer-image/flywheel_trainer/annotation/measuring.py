"""Which pairs may measure a preference model: where pairs have several reviews, only those on which these agree.

A model that reaches what one reviewer said is measured against that reviewer's noise, and real gains do not show.
"""

from collections.abc import Sequence
from typing import Final

from flywheel_contract.manifest import Measurement
from flywheel_contract.pairs import AgreementParams
from flywheel_trainer.annotation.agreement import agreed, alpha
from flywheel_trainer.data.rows import Preference

_OTHER: Final = {"Chosen": "Rejected", "Rejected": "Chosen", "Tie": "Tie"}


def measurable(rows: Sequence[Preference], params: AgreementParams) -> list[bool]:
    """Whether each pair may measure. Where no pair has several reviews, there is nothing to choose by: all may."""
    if not any(len(row.choices) > 1 for row in rows):
        return [True] * len(rows)
    return [agreed(row.choices, params) == "Chosen" for row in rows]


def agreement(rows: Sequence[Preference]) -> Measurement | None:
    """Krippendorff's alpha of the reviews over the pairs that have several; `n` is the number of these."""
    several = [_turned(row) for row in rows if len(row.choices) > 1]
    measured = alpha(several, list(_OTHER))
    return None if measured is None else Measurement(value=measured, n=len(several))


def _turned(row: Preference) -> list[str]:
    """The choices, turned round by what the replies say: `chosen` is what most said, and by itself no chance order."""
    turn = [m["content"] for m in row.chosen] > [m["content"] for m in row.rejected]
    return [_OTHER[choice] if turn else choice for choice in row.choices]
