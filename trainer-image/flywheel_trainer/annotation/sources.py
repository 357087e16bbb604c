"""Items out of what the stages leave: pairs, conversations, proposed calls, replies of two models side by side."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from flywheel_contract.stages import Origin
from flywheel_trainer.annotation import identifiers
from flywheel_trainer.annotation.formats import CARRIED, Id, Item, Kind, Reply
from flywheel_trainer.annotation.hashing import Blinding
from flywheel_trainer.data.files import raw_rows
from flywheel_trainer.data.retention import is_over
from flywheel_trainer.data.rows import FunctionCall, Message, Row, explained
from flywheel_trainer.errors import DataError

_BLINDED: Final = (Kind.RANKING, Kind.STEERABILITY, Kind.SIDE_BY_SIDE)


class _Source(Row):
    """What every source row has. Fields that we do not know are left alone: the stages write more than is needed."""

    conversation: Id
    user: Id


class _Prompted(_Source):
    prompt: list[Message] = Field(min_length=1)


class _Alternatives(_Prompted):
    replies: list[Reply]


class _Pair(_Prompted):
    chosen: list[Message] = Field(min_length=1, max_length=1)
    rejected: list[Message] = Field(min_length=1, max_length=1)


class _Conversation(_Source):
    messages: list[Message] = Field(min_length=2)


class _ProposedCall(_Prompted):
    reply: str
    text: str = ""
    call: FunctionCall


class _SideBySide(_Prompted):
    candidate: str
    baseline: str


def items(
    path: Path, kind: Kind, origin: Origin | None, blinding: Blinding, private: identifiers.Finder, now: datetime
) -> tuple[list[Item], dict[str, int]]:
    """The items of a file or folder, and how many rows were left out why.

    Nothing with an identifier gets through, nothing past its mark, and nothing that must not be trained on.

    Raises:
        DataError: a row is wrong, or nothing is left; names file and line.
    """
    found: list[Item] = []
    counts: Counter[str] = Counter(rows=0, duplicates=0)
    seen: set[str] = set()
    for raw in raw_rows(path):
        counts["rows"] += 1
        source, item = _item(raw.place, raw.value, kind, origin, blinding)
        if is_over(source, now, None):
            counts["droppedRetention"] += 1
        elif source.consent.training is False:
            counts["droppedConsent"] += 1
        elif (entity := private(item.character or "") or identifiers.found_in(item, private)) is not None:
            counts[f"droppedPrivacy.{entity}"] += 1
        elif item.item in seen:
            counts["duplicates"] += 1
        else:
            seen.add(item.item)
            found.append(item)
    if not found:
        reasons = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
        raise DataError(f"{path}: no item is left to annotate ({reasons}); give other rows")
    return found, dict(counts)


def _item(place: str, value: object, kind: Kind, origin: Origin | None, blinding: Blinding) -> tuple[_Source, Item]:
    if not isinstance(value, Mapping):
        raise DataError(f"{place}: a row is a JSON object; write one object per line")
    row: dict[str, Any] = {key: v for key, v in value.items() if v is not None}
    if origin is not None and row.setdefault("origin", origin.value) != origin.value:
        raise DataError(f"{place}: the row says origin {row['origin']}, the source {origin.value}; correct one of them")
    try:
        source, prompt, replies = _READERS[kind](row)
        key = json.dumps([prompt, [reply.to_json() for reply in replies]], sort_keys=True)
        name = blinding.id("item", kind.value, source.conversation, source.user, key)
        if kind in _BLINDED:
            replies = [replies[index] for index in blinding.order(name, len(replies))]
        carried = source.model_dump(include=set(CARRIED), exclude_unset=True)
        return source, Item(item=name, kind=kind, prompt=prompt, replies=replies, **carried)
    except ValidationError as error:
        raise DataError(
            f"{place}: {explained(error)}; docs/annotation.md says what {kind.value} is made from"
        ) from error


_Read = tuple[_Source, list[Message], list[Reply]]


def _alternatives(row: Mapping[str, Any]) -> _Read:
    if "replies" in row:
        several = _Alternatives.model_validate(row)
        return several, several.prompt, several.replies
    pair = _Pair.model_validate(row)
    sides = (("chosen", pair.chosen[0]), ("rejected", pair.rejected[0]))
    return pair, pair.prompt, [Reply(text=m["content"], source=name) for name, m in sides]


def _last_reply(row: Mapping[str, Any]) -> _Read:
    said = _Conversation.model_validate(row)
    return said, said.messages[:-1], [Reply(text=said.messages[-1]["content"], source="original")]


def _call(row: Mapping[str, Any]) -> _Read:
    proposed = _ProposedCall.model_validate(row)
    calls: list[Any] = [{"type": "function", "function": proposed.call}]
    return proposed, proposed.prompt, [Reply(text=proposed.reply), Reply(text=proposed.text, tool_calls=calls)]


def _side_by_side(row: Mapping[str, Any]) -> _Read:
    both = _SideBySide.model_validate(row)
    sides = (("candidate", both.candidate), ("baseline", both.baseline))
    return both, both.prompt, [Reply(text=text, source=name) for name, text in sides]


_READERS: Final[dict[Kind, Callable[[Mapping[str, Any]], _Read]]] = {
    Kind.RANKING: _alternatives,
    Kind.REWRITE: _last_reply,
    Kind.STEERABILITY: _alternatives,
    Kind.TOOL_CALL: _call,
    Kind.SIDE_BY_SIDE: _side_by_side,
}


def draw(found: Sequence[Item], count: int | None) -> list[Item]:
    """At most `count` items. Their hashed ids are as good as random, and the same key draws the same ones."""
    return sorted(found, key=lambda item: item.item)[:count]
