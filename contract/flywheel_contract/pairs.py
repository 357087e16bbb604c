"""Which pairs are used: limits on how differently two replies may look, and how many reviewers must agree."""

from typing import Final

from pydantic import Field

from flywheel_contract.base import Record

_NULL: Final = "; null keeps all."


class PairFilterParams(Record):
    """Limits on surface differences between the chosen and the rejected reply, so that a model learns what is better
    and not what is longer. A pair beyond one of them is dropped, and counted under the first."""

    max_length_ratio: float | None = Field(
        4.0, gt=1, le=1000, description=f"Characters of the longer reply for each one of the shorter{_NULL}"
    )
    max_emoji_difference: int | None = Field(5, ge=0, le=1000, description=f"Emoji that one has more{_NULL}")
    max_list_item_difference: int | None = Field(5, ge=0, le=1000, description=f"List items that one has more{_NULL}")
    max_line_difference: int | None = Field(None, ge=0, le=10_000, description=f"Lines that one has more{_NULL}")
    max_question_difference: int | None = Field(
        None, ge=0, le=1000, description=f"Question marks that one has more{_NULL}"
    )


class AgreementParams(Record):
    """When the reviewers of an item count as agreed."""

    min_reviews: int = Field(2, ge=2, le=100, description="Reviews that an item needs.")
    min_share: float = Field(
        1.0, gt=0.5, le=1, description="Share of the reviews that must say the same; 1 means all of them."
    )
