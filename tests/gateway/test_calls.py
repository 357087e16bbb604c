"""Tools: the character's own reach the model, calls are checked before they reach the user, and stand in the log."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from e2e import tiny_data
from flywheel_contract.online import HEADER_CHARACTER
from flywheel_gateway.calls import Gathering, Said, calls_in, logged
from flywheel_trainer.data.rows import Conversation, read_traffic
from tests.gateway.lab import CHAT, Lab, Model, asking, read_events, routed, running

PICTURE = {
    "name": "generate_image",
    "description": "Sends a picture.",
    "parameters": [{"name": "prompt", "description": "What is on it."}],
}
MODERATED = {"prompt": True, "reply": True}


def characters() -> list[dict[str, Any]]:
    return [{"name": "luna", "systemPrompt": "You are Luna.", "tools": [PICTURE]}, {"name": "sol", "systemPrompt": "x"}]


def call(arguments: object = None, name: str = "generate_image", number: int = 0) -> dict[str, Any]:
    """A call as the protocol writes it; `arguments` other than text are written as JSON."""
    given = {"prompt": "a star"} if arguments is None else arguments
    text = given if isinstance(given, str) else json.dumps(given)
    return {"id": f"call-{number}", "type": "function", "function": {"name": name, "arguments": text}}


def calling(*calls: Any, content: str | None = None) -> Any:  # noqa: ANN401 -- JSON, a behaviour
    """A model that answers with these calls, whole or streamed in pieces."""

    async def behaviour(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        message = {"role": "assistant", "content": content, "tool_calls": list(calls)}
        head = {"id": "c-1", "created": 1, "model": "luna"}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
            return web.json_response({**head, "object": "chat.completion", "choices": [choice]})
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": content}]
        for index, each in enumerate(calls):
            name, text = each["function"]["name"], each["function"]["arguments"]
            begun = {"index": index, "id": each["id"], "type": "function", "function": {"name": name, "arguments": ""}}
            deltas += [{"tool_calls": [begun]}]
            deltas += [{"tool_calls": [{"index": index, "function": {"arguments": c}}]} for c in text]
        parts = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        parts.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
        lines = [f"data: {json.dumps(part)}\n\n".encode() for part in parts]
        return await Model.streamed(request, [*lines, b"data: [DONE]\n\n"])

    return behaviour


@pytest.fixture(params=[False, True], ids=["plain", "moderated"])
async def lab(request: pytest.FixtureRequest, model: Model, tmp_path: Path) -> AsyncIterator[Lab]:
    moderation = MODERATED if request.param else {}
    async with running(tmp_path / "t", model, characters=characters(), moderation=moderation) as opened:
        yield opened


@pytest.fixture
async def moderated(model: Model, tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(tmp_path / "t", model, characters=characters(), moderation=MODERATED) as opened:
        yield opened


async def streamed(lab: Lab) -> tuple[str, list[dict[str, Any]], list[str | None]]:
    """Text, calls put together, and finish reasons of a streamed answer."""
    async with lab.client.post(CHAT, json=asking(stream=True), headers=routed()) as response:
        events = await read_events(response)
    gathering, text, reasons = Gathering(), "", []
    for choice in (event["choices"][0] for event in events[:-1] if event["choices"]):
        text += choice["delta"].get("content") or ""
        gathering.add(choice["delta"].get("tool_calls") or [])
        reasons.append(choice["finish_reason"])
    return text, gathering.calls, reasons


async def test_a_characters_tools_go_to_the_model_in_place_of_the_clients(lab: Lab) -> None:
    own = {"type": "function", "function": {"name": "launch", "parameters": {}}}
    await lab.chat(asking(tools=[own]))
    await lab.chat(asking(tools=[own]), headers={HEADER_CHARACTER: "sol"})
    with_tools, without = lab.model.seen
    (tool,) = with_tools["tools"]
    assert tool["function"]["name"] == "generate_image"
    assert tool["function"]["parameters"]["required"] == ["prompt"]
    assert without["tools"] == [own], "a character without tools leaves the application's"


def curation_reads(tmp_path: Path, turn: dict[str, Any]) -> Conversation:
    """The row as the stages read it."""
    (row,) = read_traffic(tiny_data.write(tmp_path / "turns.jsonl", [turn]))
    return row


async def test_a_call_reaches_the_client_and_the_log(lab: Lab, tmp_path: Path) -> None:
    lab.model.behaviour = calling(call(), content=None)
    status, reply, _ = await lab.chat(headers=routed())
    assert status == 200
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [call()]
    (turn,) = await lab.rows("turns")
    function = {"name": "generate_image", "arguments": {"prompt": "a star"}}
    assert turn["messages"][-1]["tool_calls"] == [{"type": "function", "function": function}]
    row = curation_reads(tmp_path, turn)
    assert row.messages[-1]["tool_calls"][0]["function"] == function


async def test_a_streamed_call_reaches_the_client_and_the_log(lab: Lab) -> None:
    calls = [call(), call({"prompt": "Zoë \u661f"}, number=1)]
    lab.model.behaviour = calling(*calls, content="Look: ")
    text, got, reasons = await streamed(lab)
    assert (text, got, reasons[-1]) == ("Look: ", calls, "tool_calls")
    (turn,) = await lab.rows("turns")
    assert [c["function"]["arguments"] for c in turn["messages"][-1]["tool_calls"]] == [
        {"prompt": "a star"},
        {"prompt": "Zoë \u661f"},
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": "a badword"},
        {"a": [{"b": ["badword"]}]},
        {"badword": 1},
        '{"prompt": "a \\u0062adword"}',
        "badword {",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_unsafe_call_is_cut_wherever_it_says_it(moderated: Lab, arguments: object, stream: bool) -> None:
    moderated.model.behaviour = calling(call(arguments))
    if stream:
        text, calls, reasons = await streamed(moderated)
        assert (text, calls, reasons[-1]) == ("Let's talk about something else.", [], "content_filter")
    else:
        _, reply, _ = await moderated.chat(headers=routed())
        assert reply["choices"][0]["message"] == {"role": "assistant", "content": "Let's talk about something else."}
        assert reply["choices"][0]["finish_reason"] == "content_filter"
    assert await moderated.kinds() == ["safety_violation", "message"]
    assert await moderated.rows("turns") == []


async def test_a_call_that_cannot_be_checked_is_not_shown(moderated: Lab) -> None:
    moderated.model.behaviour = calling(call({"prompt": "explode"}))
    _, reply, _ = await moderated.chat(headers=routed())
    assert "tool_calls" not in reply["choices"][0]["message"]
    assert await moderated.kinds() == ["error"]


async def test_of_what_a_client_says_was_called_only_the_characters_tools_are_logged(lab: Lab, tmp_path: Path) -> None:
    before = [
        {"role": "user", "content": "Show me."},
        {"role": "assistant", "content": None, "tool_calls": [call(), call(name="launch"), call("no json"), 3]},
        {"role": "tool", "tool_call_id": "call-0", "content": "done"},
        {"role": "user", "content": "And now?"},
    ]
    await lab.chat({"model": "luna", "messages": before}, headers=routed())
    (turn,) = await lab.rows("turns")
    assert [m["role"] for m in turn["messages"]] == ["user", "assistant", "tool", "user", "assistant"]
    (kept,) = turn["messages"][1]["tool_calls"]
    assert kept["function"] == {"name": "generate_image", "arguments": {"prompt": "a star"}}
    curation_reads(tmp_path, turn)


def test_what_is_no_call_is_left_out() -> None:
    functions: list[Any] = [3, {"name": "", "arguments": "{}"}, {"name": "x"}, {"name": "x", "arguments": {}}]
    nonsense = [None, 3, {}, *({"function": function} for function in functions)]
    assert calls_in(nonsense) == calls_in(None) == calls_in({}) == []
    (named,) = calls_in([{"function": {"name": "x", "arguments": "{}"}, "more": 1}])
    assert named["id"].startswith("call-")
    gathering = Gathering()
    gathering.add([None, {"index": True}, {"index": "0"}, {"index": 0}, {"index": 1, "function": {"arguments": "{}"}}])
    assert gathering.calls == []
    assert logged([call([1]), call("{")], {"generate_image"}) == {}


def test_however_deep_the_arguments_go() -> None:
    deep = "[" * 500 + '"badword"' + "]" * 500
    assert "badword" in set(Said("", [call(deep)]).texts())
