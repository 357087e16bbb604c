"""What a conversation is, along a named dimension: the strata that constraints of curation speak of.

A value is a short text. A conversation that lacks the field has the value `none`.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from flywheel_trainer.data.rows import Conversation

NONE: Final = "none"
VALUE_CHARACTERS: Final = 128

TURNS: Final = ((1, "1"), (2, "2"), (3, "3-4"), (5, "5-8"), (9, "9+"))
"""Buckets of the number of the user's messages: lower end, name."""
LENGTH: Final = ((0, "0-20"), (21, "21-80"), (81, "81-300"), (301, "301+"))
"""Buckets of the characters in the user's last message."""
COMPUTED: Final = ("origin", "turns", "length", "month")
"""Dimensions whose values we name; those of the others are what somebody wrote."""


def labeller(name: str) -> Callable[[Conversation], str]:
    """The function from a conversation to its value along dimension `name`, which the contract has checked."""
    table, _, field = name.partition(".")
    match table:
        case "signals":
            return lambda row: _text(row.signals.get(field))
        case "metadata":
            return lambda row: _text(row.metadata.get(field))
        case "turns":
            return lambda row: _bucket(TURNS, len(_said(row)))
        case "length":
            return lambda row: _bucket(LENGTH, len(_said(row)[-1]))
        case "month":
            return lambda row: _text(row.time and row.time[:7])
        case _:
            return lambda row: _text(getattr(row, name))


def _said(row: Conversation) -> list[str]:
    """The user's messages; curation has dropped conversations without any."""
    return [m["content"] for m in row.messages if m["role"] == "user"]


def _bucket(buckets: tuple[tuple[int, str], ...], value: int) -> str:
    return buckets[bisect_right([low for low, _ in buckets], value) - 1][1]


def _text(value: object) -> str:
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    return (f"{value:g}" if isinstance(value, float) else str(value))[:VALUE_CHARACTERS]
