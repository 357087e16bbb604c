"""What annotators look at (`Item`) and what they said about it (`Label`): a strict row each, in JSON Lines.

Teams with a tool of their own write labels directly; docs/annotation.md shows each kind.
"""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError, model_validator

from flywheel_contract.base import Record
from flywheel_contract.stages import Origin
from flywheel_trainer.data.rows import Consent, Message, Time, ToolCall, explained
from flywheel_trainer.errors import DataError

MAX_REPLIES: Final = 6
TEXT_MAX_LENGTH: Final = 100_000

Text = Annotated[str, Field(max_length=TEXT_MAX_LENGTH)]
Id = Annotated[str, Field(min_length=1, max_length=256)]


class Kind(StrEnum):
    """What is asked about the last reply of a conversation. Of every reply: is it a false refusal, is it templated."""

    RANKING = "Ranking"
    """Which of several replies is better; optionally a better one than all."""
    REWRITE = "Rewrite"
    """A better reply than the one that is there."""
    STEERABILITY = "Steerability"
    """A provocation: which of the replies breaks the character's description or rules; where all do, a good one."""
    TOOL_CALL = "ToolCall"
    """Whether to call a tool here, and whether the proposed call is good."""
    SIDE_BY_SIDE = "SideBySide"
    """Which of two models' replies is better, without knowing whose is whose."""


REPLIES: Final[dict[Kind, tuple[int, int]]] = {
    Kind.RANKING: (2, MAX_REPLIES),
    Kind.REWRITE: (1, 1),
    Kind.STEERABILITY: (1, MAX_REPLIES),
    Kind.TOOL_CALL: (2, 2),
    Kind.SIDE_BY_SIDE: (2, 2),
}
"""Fewest and most replies of an item. Of a ToolCall the first is without the call, the second with it."""


class Reply(Record):
    """A reply that is judged."""

    text: Text
    source: str = Field("", max_length=64, description="Who wrote it; annotators never see it.")
    tool_calls: list[ToolCall] = Field(default_factory=list, max_length=8)

    def message(self) -> Message:
        """The reply as a turn."""
        said: Message = {"role": "assistant", "content": self.text}
        return {**said, "tool_calls": self.tool_calls} if self.tool_calls else said


CARRIED: Final = ("conversation", "user", "character", "origin", "time", "retain_until", "consent")
"""What an item takes over from its row, and hands on to the rows that are made of it: whose it is, and until when."""


class Item(Record):
    """Something to be judged. `replies` stand in the order in which annotators see them."""

    item: Id
    kind: Kind
    conversation: Id
    user: Id
    character: str | None = Field(None, max_length=256)
    origin: Origin
    time: Time = None
    retain_until: AwareDatetime | None = Field(None, description="Gone after this time.")
    consent: Consent | None = None
    prompt: list[Message] = Field(min_length=1)
    replies: list[Reply]

    @model_validator(mode="after")
    def _replies_of_its_kind(self) -> Self:
        fewest, most = REPLIES[self.kind]
        if not fewest <= len(self.replies) <= most:
            wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
            raise ValueError(f"replies: an item of kind {self.kind.value} has {wanted}, this one {len(self.replies)}")
        if self.kind is Kind.TOOL_CALL and (self.replies[0].tool_calls or not self.replies[1].tool_calls):
            raise ValueError("replies: of a ToolCall the first is without the call and the second with it")
        return self


class Review(Record):
    """What one reviewer said. The two questions that are always asked have an answer for each reply."""

    reviewer: Id
    false_refusal: list[bool] = Field(max_length=MAX_REPLIES)
    templated: list[bool] = Field(max_length=MAX_REPLIES)
    rewrite: Text | None = None
    ranks: list[int] | None = Field(None, max_length=MAX_REPLIES, description="1 is best; equal ranks are a tie.")
    breaks: list[bool] | None = Field(
        None, max_length=MAX_REPLIES, description="Whether each reply breaks the character's description or rules."
    )
    call: Literal["Explicit", "Implicit", "None"] | None = Field(
        None, description="Explicit: the user asks for the call. Implicit: the turn is better for it. None: no call."
    )
    call_is_good: bool | None = Field(None, description="Whether what is called, and with what, fits.")


NEEDED: Final[dict[Kind, tuple[str, ...]]] = {
    Kind.RANKING: ("ranks",),
    Kind.REWRITE: (),
    Kind.STEERABILITY: ("breaks",),
    Kind.TOOL_CALL: ("call", "call_is_good"),
    Kind.SIDE_BY_SIDE: ("ranks",),
}
"""The answers that a review of each kind must have, beside those that are always asked."""


class Label(Item):
    """An item and what one or several reviewers said of it."""

    reviews: list[Review] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _reviews_fit(self) -> Self:
        for number, review in enumerate(self.reviews):
            place = f"reviews[{number}]"
            for field in NEEDED[self.kind]:
                if getattr(review, field) is None:
                    raise ValueError(f"{place}: a review of kind {self.kind.value} has {_camel(field)}; add it")
            for field in ("false_refusal", "templated", "ranks", "breaks"):
                answers = getattr(review, field)
                if answers is not None and len(answers) != len(self.replies):
                    raise ValueError(
                        f"{place}: {_camel(field)} has {len(answers)} answers for {len(self.replies)} replies; "
                        "give one for each"
                    )
        if len({review.reviewer for review in self.reviews}) < len(self.reviews):
            raise ValueError("reviews: one reviewer stands there twice; keep the last review")
        return self


RowT = TypeVar("RowT", bound=Record)


def read(path: Path, row: type[RowT], what: str) -> list[RowT]:
    """Rows of one strict model from a JSON Lines file.

    Raises:
        DataError: it is missing or empty, or a line is wrong; names file, line and fix.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file: name the JSON Lines file with the {what}")
    adapter = TypeAdapter(row)
    rows = []
    try:
        # Not splitlines: U+2028 and its like may stand in a text.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8; save the file as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(adapter.validate_json(line))
        except ValidationError as error:
            raise DataError(
                f"{path}, line {number}: {explained(error)}; docs/annotation.md describes the row"
            ) from error
    if not rows:
        raise DataError(f"{path} holds no {what}: write at least one row into it")
    return rows


def dumped(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """The rows as JSON objects."""
    return [json.loads(json.dumps(row.to_json())) for row in rows]


def _camel(field: str) -> str:
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)
