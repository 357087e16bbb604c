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


def call(arguments: object = None, name: str = "generate_image", number: object = 0) -> dict[str, Any]:
    """A call as the protocol writes it; `arguments` other than text are written as JSON."""
    given = {"prompt": "a star"} if arguments is None else arguments
    text = given if isinstance(given, str) else json.dumps(given)
    return {"id": f"call-{number}", "type": "function", "function": {"name": name, "arguments": text}}


def as_read(sent: dict[str, Any]) -> tuple[str, str, Any]:
    """A call as a client reads it, however its JSON is written."""
    return sent["id"], sent["function"]["name"], json.loads(sent["function"]["arguments"])


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
    return text, [as_read(c.to_protocol()) for c in gathering.calls], reasons


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
    assert [as_read(c) for c in choice["message"]["tool_calls"]] == [as_read(call())]
    (turn,) = await lab.rows("turns")
    function = {"name": "generate_image", "arguments": {"prompt": "a star"}}
    assert turn["messages"][-1]["tool_calls"] == [{"type": "function", "function": function}]
    row = curation_reads(tmp_path, turn)
    assert row.messages[-1]["tool_calls"][0]["function"] == function


async def test_a_streamed_call_reaches_the_client_and_the_log(lab: Lab) -> None:
    calls = [call(), call({"prompt": "Zoë \u661f"}, number=1)]
    lab.model.behaviour = calling(*calls, content="Look: ")
    text, got, reasons = await streamed(lab)
    assert (text, got, reasons[-1]) == ("Look: ", [as_read(c) for c in calls], "tool_calls")
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


async def test_what_a_client_says_was_called_is_logged_for_curation_to_judge(lab: Lab, tmp_path: Path) -> None:
    before = [
        {"role": "user", "content": "Show me."},
        {"role": "assistant", "content": None, "tool_calls": [call(), call(name="launch"), 3]},
        {"role": "tool", "tool_call_id": "call-0", "content": "done"},
        {"role": "user", "content": "And now?"},
    ]
    await lab.chat({"model": "luna", "messages": before}, headers=routed())
    (turn,) = await lab.rows("turns")
    assert [m["role"] for m in turn["messages"]] == ["user", "assistant", "tool", "user", "assistant"]
    assert [c["function"]["name"] for c in turn["messages"][1]["tool_calls"]] == ["generate_image", "launch"]
    curation_reads(tmp_path, turn)


UNREADABLE = ["no json", "[1]", '{"a": NaN}', '{"a": "\\ud800"}', '{"a": ' * 300 + "1" + "}" * 300, "[" * 2000]


@pytest.mark.parametrize("arguments", UNREADABLE)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_cannot_be_read_is_not_shown_where_replies_are_checked(
    moderated: Lab, arguments: str, stream: bool
) -> None:
    moderated.model.behaviour = calling(call(arguments))
    if stream:
        text, calls, _ = await streamed(moderated)
        assert (text, calls) == ("Let's talk about something else.", [])
    else:
        _, reply, _ = await moderated.chat(headers=routed())
        assert reply["choices"][0]["message"] == {"role": "assistant", "content": "Let's talk about something else."}
    assert await moderated.kinds() == ["error"]
    assert await moderated.rows("turns") == []


@pytest.mark.parametrize("arguments", UNREADABLE)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_with_such_a_call_is_answered_and_not_logged(
    lab: Lab, arguments: str, stream: bool
) -> None:
    before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call(arguments)]}]
    asked = {"model": "luna", "messages": [*before, {"role": "user", "content": "And?"}], "stream": stream}
    async with lab.client.post(CHAT, json=asked, headers=routed()) as response:
        assert response.status == 200
        if stream:
            assert (await read_events(response))[-1] == "[DONE]"
    assert await lab.kinds() == ["message"]
    assert await lab.rows("turns") == []


async def test_what_was_checked_is_what_goes_out(moderated: Lab) -> None:
    """Of a key that comes twice the first one is not seen, so it must not be sent either."""
    moderated.model.behaviour = calling(call('{"prompt": "badword", "prompt": "a star"}'))
    _, reply, _ = await moderated.chat(headers=routed())
    (sent,) = reply["choices"][0]["message"]["tool_calls"]
    assert sent["function"]["arguments"] == '{"prompt":"a star"}'


@pytest.mark.parametrize("change", [{"name": "badword"}, {"number": "badword"}])
async def test_names_and_ids_are_checked_too(moderated: Lab, change: dict[str, Any]) -> None:
    moderated.model.behaviour = calling(call(**change))
    _, reply, _ = await moderated.chat(headers=routed())
    assert "tool_calls" not in reply["choices"][0]["message"]


async def test_what_a_client_puts_into_calls_is_checked_and_counts(moderated: Lab) -> None:
    for arguments, status, event in (({"a": "badword"}, 200, "blocked_prompt"), ({"a": "x" * 200_000}, 413, None)):
        called = {"role": "assistant", "tool_calls": [call(arguments)]}
        asked = [{"role": "user", "content": "Hi"}, called, {"role": "tool", "content": "done"}]
        got, _, _ = await moderated.chat({"model": "luna", "messages": asked}, headers=routed())
        assert got == status
        if event is not None:
            assert await moderated.kinds() == [event]


async def test_nothing_of_the_clients_tools_is_left_beside_the_characters(lab: Lab) -> None:
    own = {"tool_choice": {"type": "function", "function": {"name": "launch"}}, "functions": [{"name": "launch"}]}
    await lab.chat(asking(**own, function_call="auto", parallel_tool_calls=False))
    assert set(lab.model.seen[0]) == {"model", "messages", "tools"}


def test_what_is_no_call_is_left_out() -> None:
    functions: list[Any] = [3, {"name": "", "arguments": "{}"}, {"name": "x"}, {"name": "x", "arguments": {}}]
    nonsense = [None, 3, {}, *({"function": function} for function in functions)]
    assert calls_in(nonsense) == calls_in(None) == calls_in({}) == []
    (named,) = calls_in([{"id": 3, "function": {"name": "x", "arguments": "{}"}, "more": 1}])
    assert named.to_protocol()["id"].startswith("call-")
    gathering = Gathering()
    gathering.add([None, {"index": True}, {"index": "0"}, {"index": 0}, {"index": 1, "function": {"arguments": "{}"}}])
    gathering.add([{"index": 2, "id": 7, "function": 3}])
    assert gathering.calls == []
    assert logged([]) == {}


def test_every_text_in_the_arguments_is_looked_at() -> None:
    said = Said("a", calls_in([call({"b": ["c", {"d": 1, "e": None}], "f": True}, name="g", number=0)]))
    assert set(said.texts()) == {"a", "g", "call-0", "b", "c", "d", "e", "f"}
    assert said.readable
    assert not Said("", calls_in([call("{")])).readable
