"""Calls of tools in what is said: read, gathered from a stream, as texts to check, and as the log has them.

OpenAI's protocol writes a call's arguments as JSON text, the data format (docs/data.md) as an object.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from flywheel_gateway.web import MAX_DEPTH, depth


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool."""

    name: str
    arguments: dict[str, Any] | None
    """None where they are no JSON object, or one that is nested too deep."""
    raw: str
    """The arguments as they were written."""
    id: str = ""

    def to_protocol(self) -> dict[str, Any]:
        """The call as OpenAI's protocol has it, its arguments written anew: just what was read of them goes on."""
        text = self.raw if self.arguments is None else orjson.dumps(self.arguments).decode()
        function = {"name": self.name, "arguments": text}
        return {"id": self.id or f"call-{uuid.uuid4().hex}", "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Said:
    """What a reply, or a part of one, says and calls."""

    text: str = ""
    calls: Sequence[Call] = ()

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.text or self.calls)

    @property
    def readable(self) -> bool:
        """Whether all of it can be checked, and be logged."""
        return all(call.arguments is not None for call in self.calls)

    def texts(self) -> Iterator[str]:
        """All that has to be checked: the text, the calls' names and ids, and all that their arguments say."""
        yield self.text
        for call in self.calls:
            yield from (call.name, call.id)
            yield from (call.raw,) if call.arguments is None else _texts_in(call.arguments)


class Gathering:
    """The calls of a stream, which come in pieces."""

    def __init__(self) -> None:
        self._by_index: dict[int, dict[str, str]] = {}

    def add(self, pieces: Iterable[Any]) -> None:
        """Takes in the `tool_calls` of a part. A piece that is none is left out."""
        for piece in pieces:
            if not isinstance(piece, Mapping) or type(piece.get("index")) is not int:
                continue
            call = self._by_index.setdefault(piece["index"], {"name": "", "arguments": "", "id": ""})
            if isinstance(piece.get("id"), str):
                call["id"] = piece["id"]
            function = piece.get("function")
            for key in ("name", "arguments"):
                if isinstance(function, Mapping) and isinstance(function.get(key), str):
                    call[key] += function[key]

    @property
    def calls(self) -> list[Call]:
        """The calls so far, in their order; one without a name is none."""
        ordered = (call for _, call in sorted(self._by_index.items()))
        return [_call(c["name"], c["arguments"], c["id"]) for c in ordered if c["name"]]


def calls_in(value: object) -> list[Call]:
    """The calls in a message's `tool_calls`, and nothing beside them; what is no call is left out."""
    calls = []
    for each in value if isinstance(value, list) else ():
        function = each.get("function") if isinstance(each, Mapping) else None
        if not isinstance(function, Mapping):
            continue
        name, arguments, own = function.get("name"), function.get("arguments"), each.get("id")
        if isinstance(name, str) and name and isinstance(arguments, str):
            calls.append(_call(name, arguments, own if isinstance(own, str) else ""))
    return calls


def logged(calls: Iterable[Call]) -> dict[str, list[dict[str, Any]]]:
    """The `tool_calls` of a message in the log; nothing where there are none."""
    found = [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in calls]
    return {"tool_calls": found} if found else {}


def _call(name: str, raw: str, own: str) -> Call:
    """The arguments are read as strictly as a request's body is."""
    try:
        arguments = orjson.loads(raw) if depth(raw.encode()) <= MAX_DEPTH else None
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        arguments = None
    return Call(name, arguments if isinstance(arguments, dict) else None, raw, own)


def _texts_in(value: Any) -> Iterator[str]:  # noqa: ANN401 -- any JSON value
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_in(inner)
