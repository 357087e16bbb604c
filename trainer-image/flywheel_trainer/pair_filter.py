"""The pair filter: drops pairs whose replies look too different, so that nobody learns length instead of quality."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from flywheel_contract.pairs import PairFilterParams
from flywheel_trainer.data.rows import Message, Preference

_EMOJI: Final = re.compile(
    "[\U0001f300-\U0001faff\U0001f1e6-\U0001f1ff\u2600-\u27bf\u2b50\u2b55\u231a\u231b\u23e9-\u23fa\u203c\u2049]"
)
_LIST_ITEM: Final = re.compile(r"^\s*(?:[-*+•‣]|\d{1,3}[.)])\s+\S", re.MULTILINE)

RowT = TypeVar("RowT", bound=Preference)


def kept(rows: Sequence[RowT], params: PairFilterParams) -> tuple[list[RowT], dict[str, int]]:
    """The pairs within the limits, and how many were dropped under each reason that has a limit."""
    dropped = Counter({f"dropped-{reason}": 0 for reason, limit, _ in _limits(params) if limit is not None})
    left = []
    for row in rows:
        reason = beyond(row, params)
        if reason is None:
            left.append(row)
        else:
            dropped[f"dropped-{reason}"] += 1
    return left, dict(dropped)


def beyond(row: Preference, params: PairFilterParams) -> str | None:
    """The first limit that the pair breaks, or None."""
    chosen, rejected = _text(row.chosen), _text(row.rejected)
    for reason, limit, distance in _limits(params):
        if limit is not None and distance(chosen, rejected) > limit:
            return reason
    return None


def _limits(params: PairFilterParams) -> Iterator[tuple[str, float | None, Callable[[str, str], float]]]:
    """Each reason, its limit, and the distance that is limited."""
    yield "length-ratio", params.max_length_ratio, _length_ratio
    yield "emoji", params.max_emoji_difference, lambda a, b: abs(_count(_EMOJI, a) - _count(_EMOJI, b))
    yield "list-items", params.max_list_item_difference, lambda a, b: abs(_count(_LIST_ITEM, a) - _count(_LIST_ITEM, b))
    yield "lines", params.max_line_difference, lambda a, b: abs(a.count("\n") - b.count("\n"))
    yield "questions", params.max_question_difference, lambda a, b: abs(a.count("?") - b.count("?"))


def _text(reply: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in reply)


def _length_ratio(first: str, second: str) -> float:
    short, long = sorted((len(first), len(second)))
    return long / max(short, 1)


def _count(pattern: re.Pattern[str], text: str) -> int:
    return len(pattern.findall(text))
