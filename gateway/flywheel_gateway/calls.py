"""Calls of tools in what the model says: read, gathered from a stream, as texts to check, and as the log has them.

OpenAI's protocol writes a call's arguments as JSON text, the data format (docs/data.md) as an object.
"""

import uuid
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

Call = dict[str, Any]
"""As the protocol has it: id, type, and a function with its name and its arguments."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a reply, or a part of one, says and calls."""

    text: str = ""
    calls: Sequence[Call] = ()

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.text or self.calls)

    def texts(self) -> Iterator[str]:
        """All that has to be checked before a user may see it: the text, and every text in the calls' arguments."""
        yield self.text
        for call in self.calls:
            arguments = call["function"]["arguments"]
            try:
                waiting = [orjson.loads(arguments)]
            except orjson.JSONDecodeError:
                yield arguments
                continue
            # No recursion: how deep it goes is the model's to say.
            while waiting:
                value = waiting.pop()
                if isinstance(value, str):
                    yield value
                elif isinstance(value, dict):
                    waiting += [*value.keys(), *value.values()]
                elif isinstance(value, list):
                    waiting += value


class Gathering:
    """The calls of a stream, which come in pieces."""

    def __init__(self) -> None:
        self._by_index: dict[int, Call] = {}

    def add(self, pieces: Iterable[Any]) -> None:
        """Takes in the `tool_calls` of a part. A piece that is none is left out."""
        for piece in pieces:
            index, function = _index_and_function(piece)
            if index is None:
                continue
            call = self._by_index.setdefault(index, {"function": {"name": "", "arguments": ""}})
            call["id"] = call.get("id") or piece.get("id")
            for key in ("name", "arguments"):
                if isinstance(function.get(key), str):
                    call["function"][key] += function[key]

    @property
    def calls(self) -> list[Call]:
        """The calls so far, in their order."""
        return calls_in([call for _, call in sorted(self._by_index.items())])


def calls_in(value: object) -> list[Call]:
    """The calls in a message's `tool_calls`, and nothing beside them; what is no call is left out."""
    calls = []
    for each in value if isinstance(value, list) else ():
        function = each.get("function") if isinstance(each, Mapping) else None
        if not isinstance(function, Mapping):
            continue
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(name, str) and name and isinstance(arguments, str):
            own = {"name": name, "arguments": arguments}
            calls.append({"id": str(each.get("id") or f"call-{uuid.uuid4().hex}"), "type": "function", "function": own})
    return calls


def logged(calls: Iterable[Call], tools: Container[str]) -> dict[str, list[Call]]:
    """The `tool_calls` of a message in the log; nothing where there are none.

    Only calls of the character's `tools`, with an object for arguments: clients may send anything as what was said
    before, and curation drops a conversation with a call that its character has no tool for.
    """
    found = []
    for call in calls:
        if call["function"]["name"] not in tools:
            continue
        try:
            arguments = orjson.loads(call["function"]["arguments"])
        except orjson.JSONDecodeError:
            continue
        if isinstance(arguments, dict):
            function = {"name": call["function"]["name"], "arguments": arguments}
            found.append({"type": "function", "function": function})
    return {"tool_calls": found} if found else {}


def _index_and_function(piece: object) -> tuple[int | None, Mapping[str, Any]]:
    if not isinstance(piece, Mapping) or type(piece.get("index")) is not int:
        return None, {}
    function = piece.get("function")
    return piece["index"], function if isinstance(function, Mapping) else {}
