"""Rows about tool calls: only those on which reviewers agree are trained on."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from flywheel_contract.characters import Character
from flywheel_contract.pairs import AgreementParams
from flywheel_trainer.annotation.agreement import agreed
from flywheel_trainer.data.rows import Conversation, Message, Preference
from flywheel_trainer.errors import DataError

RowT = TypeVar("RowT", Conversation, Preference)


def trainable(
    rows: Sequence[RowT], params: AgreementParams, characters: Sequence[Character], *, last_only: bool = False
) -> tuple[list[RowT], dict[str, int]]:
    """The rows without those about tool calls whose reviewers do not agree, and counts of both, by kind of call.

    What counts are calls that would be learned: in a pair's replies, and in a conversation's (`last_only`: its last).

    Raises:
        DataError: a row calls what its character has no tool for.
    """
    counts: Counter[str] = Counter()
    kept = []
    for row in rows:
        called = _called(row, last_only=last_only)
        if not called and row.tool_call is None:
            kept.append(row)
            continue
        if agreed(row.choices, params) == "Chosen":
            _check(row, called, characters)
            kept.append(row)
            counts[f"tool-calls-{row.tool_call or 'unlabelled'}"] += 1
        else:
            counts["dropped-no-agreement"] += 1
    return kept, dict(counts)


def _called(row: Conversation | Preference, *, last_only: bool) -> set[str]:
    return {call["function"]["name"] for m in _learned(row, last_only=last_only) for call in m.get("tool_calls", [])}


def _learned(row: Conversation | Preference, *, last_only: bool) -> list[Message]:
    if isinstance(row, Preference):
        return [*row.chosen, *row.rejected]
    return row.messages[-1:] if last_only else row.messages


def _check(row: Conversation | Preference, called: set[str], characters: Sequence[Character]) -> None:
    has = {tool.name for c in characters if c.name == row.character for tool in c.tools}
    missing = ", ".join(sorted(called - has))
    if missing:
        raise DataError(
            f"conversation {row.conversation} calls {missing}, which the character {row.character or '(none)'} has no "
            "tool for: add it to spec.characters[].tools, or take the row out"
        )
