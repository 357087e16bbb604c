"""Streamed replies: part by part, held back by a sentence, cut short, broken off."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from flywheel_contract.online import HEADER_CHARACTER
from tests.gateway.lab import CHAT, Lab, Model, asking, part, read_events, routed, running, stream_of, text_of

SAFE = "Let's talk about something else."


async def stream(lab: Lab, text: str = "Hi", **more: Any) -> tuple[int, list[Any], Any]:  # noqa: ANN401 -- JSON
    """A whole streamed answer."""
    async with lab.client.post(CHAT, json=asking(text, stream=True, **more), headers=routed()) as response:
        return response.status, await read_events(response), response.headers


def telling(*parts: bytes, wait: Any = None) -> Any:  # noqa: ANN401 -- a behaviour
    """A model that streams these bytes."""

    async def behaviour(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        return await Model.streamed(request, parts, wait)

    return behaviour


async def test_a_stream_goes_through_and_is_logged(lab: Lab) -> None:
    status, events, headers = await stream(lab)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-accel-buffering"] == "no"
    assert text_of(events) == "Hello, stargazer. "
    assert events[-1] == "[DONE]"
    (turn,) = await lab.rows("turns")
    assert turn["messages"][-1] == {"role": "assistant", "content": "Hello, stargazer. "}
    assert await lab.kinds() == ["message"]


async def test_parts_reach_the_client_one_by_one(lab: Lab) -> None:
    """The model writes the next part only when the client has the one before."""
    steps = [asyncio.Event() for _ in range(5)]

    async def wait(number: int) -> None:
        await steps[number].wait()

    lab.model.behaviour = telling(*stream_of("One ", "two ", "three."), wait=wait)
    steps[0].set()
    async with lab.client.post(CHAT, json=asking(stream=True)) as response:
        for number, expected in enumerate([b"One ", b"two ", b"three."]):
            assert expected in await response.content.readuntil(b"\n\n")
            steps[number + 1].set()
        steps[4].set()
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("size", [1, 7, 50, 100_000])
async def test_however_the_bytes_arrive(lab: Lab, size: int) -> None:
    whole = b": a comment\r\n\r\n" + b"".join(stream_of("Zo\u00eb ", "and ", "\u661f.")).replace(b"\n", b"\r\n")
    lab.model.behaviour = telling(*(whole[i : i + size] for i in range(0, len(whole), size)))
    _, events, _ = await stream(lab)
    assert text_of(events) == "Zo\u00eb and \u661f."


@pytest.mark.parametrize(
    "broken",
    [
        [part("Hello ")],
        [part("Hello "), b"data: {no json\n\n"],
        [part("Hello "), b"data: [3]\n\n"],
        [part("Hello "), b'data: {"error": {"message": "out of memory at /secret"}}\n\n'],
        [part("Hello "), b"data: [DONE]\n\n"],
    ],
)
async def test_a_stream_that_breaks_says_so_and_is_an_error(lab: Lab, broken: list[bytes]) -> None:
    lab.model.behaviour = telling(*broken)
    status, events, _ = await stream(lab)
    assert status == 200
    assert text_of(events) == "Hello "
    assert events[-1]["error"]["type"] == "server_error"
    assert "secret" not in str(events)
    assert await lab.kinds() == ["error"]
    assert await lab.rows("turns") == []


async def test_a_model_server_that_dies_in_the_middle(lab: Lab) -> None:
    async def dies(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(part("Hello "))
        assert request.transport is not None
        request.transport.abort()
        return response

    lab.model.behaviour = dies
    _, events, _ = await stream(lab)
    assert events[-1]["error"]["code"] == "upstream_broken"
    assert await lab.kinds() == ["error"]


@pytest.mark.parametrize(("limits", "parts"), [({"firstByteSeconds": 0.1}, 0), ({"idleSeconds": 0.1}, 1)])
async def test_a_stream_that_stalls(model: Model, tmp_path: Path, limits: dict[str, float], parts: int) -> None:
    async def wait(number: int) -> None:
        if number == parts:
            await asyncio.Event().wait()

    model.behaviour = telling(part("Hello "), part("again"), wait=wait)
    async with running(tmp_path / "t", model, limits=limits) as lab:
        async with lab.client.post(CHAT, json=asking(stream=True)) as response:
            body = await response.text()
        assert "upstream_timeout" in body
        assert response.status == (504 if parts == 0 else 200)
        assert await lab.kinds() == ["error"]
        async with asyncio.timeout(5):
            await model.cancelled.wait()


@pytest.mark.parametrize(("status", "answered", "kinds"), [(500, 502, ["error"]), (400, 400, [])])
async def test_an_error_before_the_first_part_is_a_plain_error(
    lab: Lab, status: int, answered: int, kinds: list[str]
) -> None:
    async def refuses(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": "x"}, status=status)

    lab.model.behaviour = refuses
    async with lab.client.post(CHAT, json=asking(stream=True)) as response:
        assert response.status == answered
        assert "error" in await response.json()
    assert await lab.kinds() == kinds


async def test_an_answer_that_is_no_stream(lab: Lab) -> None:
    async def plain(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"choices": []})

    lab.model.behaviour = plain
    async with lab.client.post(CHAT, json=asking(stream=True)) as response:
        assert response.status == 502


@pytest.mark.parametrize(("heard", "kinds"), [(True, ["message"]), (False, [])])
async def test_a_client_that_leaves_stops_the_model(lab: Lab, heard: bool, kinds: list[str]) -> None:
    begun = asyncio.Event()

    async def wait(number: int) -> None:
        if number == (1 if heard else 0):
            begun.set()
            await asyncio.Event().wait()

    lab.model.behaviour = telling(part("Hello "), part("x"), wait=wait)
    async with aiohttp.ClientSession(lab.client._base_url) as client:

        async def listen() -> None:
            async with client.post(CHAT, json=asking(stream=True)) as response:
                await response.content.readuntil(b"\n\n")
                await response.content.read()

        listening = asyncio.create_task(listen())
        await begun.wait()
        if heard:
            while "flywheel_gateway_first_part_seconds_count 1.0" not in await lab.metrics():
                await asyncio.sleep(0.01)
        listening.cancel()
        await asyncio.wait([listening])
    async with asyncio.timeout(5):
        await lab.model.cancelled.wait()
        while "flywheel_gateway_disconnects_total 1.0" not in await lab.metrics():
            await asyncio.sleep(0.01)
    assert await lab.kinds() == kinds
    assert await lab.rows("turns") == []


async def test_a_sentence_is_shown_when_it_was_found_safe(guarded: Lab) -> None:
    """The first sentence arrives while the second is still being written; half a sentence never does."""
    go = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 4:
            await go.wait()

    guarded.model.behaviour = telling(*stream_of("One ", "two. ", "Three ", "four ", "five."), wait=wait)
    async with guarded.client.post(CHAT, json=asking(stream=True)) as response:
        first = await response.content.readuntil(b"\n\n")
        assert b"One two. " in first
        go.set()
        rest = (await response.content.read()).decode()
    assert "Three four five." in rest
    assert rest.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"stop"' in rest
    assert await guarded.kinds() == ["message"]


async def test_the_stream_ends_safely_at_the_first_unsafe_sentence(guarded: Lab) -> None:
    cut = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 4:
            await cut.wait()

    guarded.model.behaviour = telling(
        *stream_of("Nice. ", "You bad", "word you. ", "More ", "and more."), wait=wait
    )  # fmt: skip
    _, events, _ = await stream(guarded)
    cut.set()
    assert text_of(events) == "Nice. " + SAFE
    assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert events[-1] == "[DONE]"
    violation, message = await guarded.rows("events")
    assert (violation["type"], violation["blocked"], violation["detector"]) == (
        "safety_violation", True, "words/test",
    )  # fmt: skip
    assert message["type"] == "message"
    assert await guarded.rows("turns") == []


async def test_nothing_but_checked_text_leaves_the_gateway(guarded: Lab) -> None:
    sly = (
        b'data: {"id":"c","choices":[{"index":0,"delta":{"reasoning":"badword"},"logprobs":{"x":"badword"}}]}\n\n'
        b'data: {"id":"c","choices":[{"index":0,"delta":{"tool_calls":[{"function":{"arguments":"badword"}}]}}]}\n\n'
    )
    usage = b'data: {"id":"c","choices":[],"usage":{"total_tokens":3}}\n\n'
    guarded.model.behaviour = telling(sly, part("Fine."), part(None, "stop"), usage, b"data: [DONE]\n\n")
    _, events, _ = await stream(guarded)
    assert "badword" not in str(events)
    assert text_of(events) == "Fine."
    assert events[-2]["usage"] == {"total_tokens": 3}


async def test_a_broken_stream_shows_nothing_that_was_not_checked(guarded: Lab) -> None:
    guarded.model.behaviour = telling(part("Fine. "), part("You badwo"))
    _, events, _ = await stream(guarded)
    assert text_of(events) == "Fine. "
    assert "error" in events[-1]


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_classifier_that_breaks_fails_closed(guarded: Lab, streamed: bool) -> None:
    guarded.model.reply = "I explode."
    if streamed:
        _, events, _ = await stream(guarded)
        assert text_of(events) == SAFE
        assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
    else:
        status, reply, _ = await guarded.chat()
        choice = reply["choices"][0]
        assert (status, choice["message"]["content"], choice["finish_reason"]) == (200, SAFE, "content_filter")
    assert await guarded.kinds() == ["error"]
    assert await guarded.rows("turns") == []
    assert 'flywheel_gateway_moderated_total{result="failed",what="reply"} 1.0' in await guarded.metrics()


async def test_a_prompt_that_cannot_be_checked_is_not_answered(guarded: Lab) -> None:
    status, reply, _ = await guarded.chat(asking("explode"))
    assert (status, reply["choices"][0]["message"]["content"]) == (200, SAFE)
    assert guarded.model.seen == []
    assert await guarded.kinds() == ["error"]
    assert 'flywheel_gateway_moderated_total{result="failed",what="prompt"} 1.0' in await guarded.metrics()


async def test_a_character_refuses_in_its_own_words_and_the_category_is_counted(model: Model, tmp_path: Path) -> None:
    sky = "Let's look at the sky instead, shall we?"
    cast = [{"name": "luna", "systemPrompt": "You are Luna.", "refusal": sky}, {"name": "sol", "systemPrompt": "Sol."}]
    async with running(tmp_path / "t", model, characters=cast, moderation={"prompt": True, "reply": True}) as lab:
        for character, words in (("luna", sky), ("sol", SAFE)):
            _, reply, _ = await lab.chat(asking("Say a badword."), headers={HEADER_CHARACTER: character})
            assert reply["choices"][0]["message"]["content"] == words
        model.reply = "I explode."
        _, reply, _ = await lab.chat()
        assert reply["choices"][0]["message"]["content"] == sky
        metrics = await lab.metrics()
        assert 'flywheel_gateway_unsafe_total{category="rude",what="prompt"} 2.0' in metrics
        assert (await lab.events("blocked_prompt"))[0]["detector"] == "words/test"


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_unsafe_prompt_never_reaches_the_model(guarded: Lab, streamed: bool) -> None:
    if streamed:
        _, events, _ = await stream(guarded, "Say a badword.")
        assert text_of(events) == SAFE
        assert events[-1] == "[DONE]"
    else:
        status, reply, _ = await guarded.chat(asking("Say a badword."))
        choice = reply["choices"][0]
        assert (status, choice["message"]["content"], choice["finish_reason"]) == (200, SAFE, "content_filter")
    assert guarded.model.seen == []
    assert await guarded.kinds() == ["blocked_prompt"]


async def test_only_what_is_new_in_a_conversation_is_scored(guarded: Lab) -> None:
    def talk(*turns: tuple[str, str]) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    old = [("user", "badword"), ("assistant", SAFE)]
    assert (await guarded.chat(talk(*old, ("user", "Hi."))))[1]["choices"][0]["finish_reason"] == "stop"
    for tail in (
        [("user", "badword"), ("user", "Hi.")],
        [("user", "Hi."), ("assistant", "Sure: badword")],
        [("user", "Hi."), ("tool", "badword")],
    ):
        answer = await guarded.chat(talk(*old, *tail))
        assert answer[1]["choices"][0]["finish_reason"] == "content_filter"


async def test_an_unsafe_reply_is_replaced_and_counted(guarded: Lab) -> None:
    guarded.model.reply = "Fine. You badword."
    _, reply, _ = await guarded.chat()
    assert reply["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": SAFE}, "finish_reason": "content_filter"}
    ]
    assert reply["usage"]["total_tokens"] == 7
    assert await guarded.kinds() == ["safety_violation", "message"]
    assert await guarded.rows("turns") == []


async def test_a_safe_reply_goes_out_without_what_was_not_checked(guarded: Lab) -> None:
    _, reply, _ = await guarded.chat()
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "Hello, stargazer."}


async def test_detectors_see_replies_after_they_were_sent(model: Model, tmp_path: Path) -> None:
    async with running(tmp_path / "t", model, moderation={"detect": True}) as lab:
        model.reply = "You badword."
        _, reply, _ = await lab.chat()
        assert reply["choices"][0]["message"]["content"] == "You badword."
        model.reply = "I'm sorry, but I can't help with that."
        await lab.chat(asking("How do I bake bread?"))
        await lab.chat(asking("Say a badword."))
        (violation,) = await lab.events("safety_violation")
        assert violation["blocked"] is False
        (refusal,) = await lab.events("false_refusal")
        assert refusal["detector"] == "refusal-rules/1"
        model.reply = "I explode."
        await lab.chat()
        await lab.services.settle()
        assert "flywheel_gateway_undetected_total 1.0" in await lab.metrics()


async def test_a_refusal_of_a_prompt_that_was_found_safe(guarded: Lab) -> None:
    guarded.model.reply = "I'm sorry, but I can't help with that."
    await guarded.chat()
    assert sorted(await guarded.kinds()) == ["false_refusal", "message"]
    assert len(await guarded.rows("turns")) == 1


async def test_streamed_completions(model: Model, tmp_path: Path) -> None:
    async with running(tmp_path / "t", model, completions=True, moderation={"reply": True}) as lab:
        chunk = b'data: {"choices": [{"index": 0, "text": "Once. ", "finish_reason": null}]}\n\n'
        end = b'data: {"choices": [{"index": 0, "text": "badword", "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'
        model.behaviour = telling(chunk, end)
        async with lab.client.post("/v1/completions", json={"prompt": "Tell", "stream": True}) as response:
            events = await read_events(response)
        assert "".join(e["choices"][0]["text"] for e in events[:-1]) == "Once. " + SAFE
        model.reply, model.behaviour = "badword", None
        _, reply, _ = await lab.chat({"prompt": "Tell"}, path="/v1/completions")
        assert reply["choices"][0]["text"] == SAFE
