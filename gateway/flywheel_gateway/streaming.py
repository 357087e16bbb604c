"""Streamed replies: passed on part by part, or held back by one sentence until it was found safe."""

import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import orjson
from prometheus_client import Histogram

from flywheel_gateway.calls import Gathering, Said
from flywheel_gateway.dialects import Dialect, finish_reason
from flywheel_gateway.errors import ApiError, UnsafeTextError, UpstreamError
from flywheel_gateway.services import Services
from flywheel_gateway.sse import DONE, event, raw_event
from flywheel_gateway.web import Headers, Send
from flywheel_safety.sentences import split_complete


class Delivery:
    """A stream on its way to the client, and what became of it."""

    def __init__(
        self,
        send: Send,
        headers: Headers,
        refusal: str,
        first_part: Histogram | None = None,
        began: float | None = None,
    ) -> None:
        """`refusal` is what the character says in place of what cannot be shown."""
        self._send, self._headers, self._first_part, self._began = send, headers, first_part, began
        self.refusal = refusal
        self.started = False
        self.text = ""
        """What the model wrote, as far as it reached the client."""
        self.gathering = Gathering()
        """What it called, likewise."""
        self.outcome: Literal["whole", "unsafe", "failed"] = "whole"

    @property
    def said(self) -> Said:
        """Text and calls together."""
        return Said(self.text, self.gathering.calls)

    async def data(self, data: bytes) -> None:
        """Sends an event's data as it came."""
        await self._write(raw_event(data))

    async def part(self, value: dict[str, Any]) -> None:
        """Sends a JSON value as an event."""
        await self._write(event(value))

    async def end(self) -> None:
        """Ends the stream as OpenAI's clients expect it."""
        await self._write(DONE, more=False)

    async def fail(self, error: ApiError) -> None:
        """Ends the stream with an error: without [DONE], so that nobody takes it for whole."""
        await self._write(event(error.body()), more=False)

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        if not self.started:
            self.started = True
            kind = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            # nginx passes each part on at once.
            headers = [*kind, (b"x-accel-buffering", b"no"), *self._headers]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            if self._first_part is not None and self._began is not None:
                self._first_part.observe(time.monotonic() - self._began)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


async def plain_parts(services: Services, dialect: Dialect, body: dict[str, Any], delivery: Delivery) -> None:
    """Passes the parts on as they come.

    Raises:
        UpstreamError: the reply did not come to its end.
        ApiError: the model server refuses the request.
    """
    async with services.upstream.stream(dialect.upstream_path, body) as events:
        async for data, part in _parts(events):
            delivery.text += dialect.part_text(part)
            delivery.gathering.add(dialect.part_calls(part))
            await delivery.data(data)


async def moderated_parts(services: Services, dialect: Dialect, body: dict[str, Any], delivery: Delivery) -> None:
    """Passes on text that was found safe, sentence by sentence, then the calls of tools, and nothing beside them. Ends
    with the refusal at the first sentence or call that is unsafe, or that could not be checked.

    Raises:
        UpstreamError, ApiError: as `plain_parts`. What was held back is not shown.
    """
    held, finish = "", "stop"
    gathering = Gathering()
    about: dict[str, Any] = {}
    usage: dict[str, Any] | None = None
    async with services.upstream.stream(dialect.upstream_path, body) as events:
        async for _, part in _parts(events):
            about = about or {key: part.get(key) for key in ("id", "created", "model")}
            finish = finish_reason(part) or finish
            usage = part if isinstance(part.get("usage"), dict) else usage
            gathering.add(dialect.part_calls(part))
            complete, held = split_complete(held + dialect.part_text(part))
            if complete and not await _deliver(services, dialect, about, Said(complete), delivery):
                return
    for said in (Said(held), Said(calls=gathering.calls)):
        if said and not await _deliver(services, dialect, about, said, delivery):
            return
    await delivery.part(dialect.part(about, None, finish))
    if usage is not None:
        await delivery.part({**dialect.part(about, None, None), "choices": [], "usage": usage["usage"]})


async def _deliver(services: Services, dialect: Dialect, about: dict[str, Any], said: Said, delivery: Delivery) -> bool:
    """Sends `said` if it is safe; else the refusal in its place, and False: there is no more."""
    try:
        unsafe = await services.moderator.unsafe_in(said)
    except UnsafeTextError:
        delivery.outcome = "failed"
        services.metrics.cannot_say("reply")
    else:
        services.metrics.said("reply", unsafe)
        if unsafe is None:
            delivery.text += said.text
            value = dialect.part(about, said, None)
            delivery.gathering.add(dialect.part_calls(value))
            await delivery.part(value)
            return True
        delivery.outcome = "unsafe"
    await delivery.part(dialect.part(about, Said(delivery.refusal), None))
    await delivery.part(dialect.part(about, None, "content_filter"))
    return False


async def _parts(events: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, dict[str, Any]]]:
    """The parts of a reply, as bytes and parsed, up to its end.

    Raises:
        UpstreamError: it stopped without an end, or holds an error or something that is no part.
    """
    finished = False
    async for data in events:
        if data.strip() == b"[DONE]":
            if finished:
                return
            raise UpstreamError("broken")
        try:
            part = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise UpstreamError("broken") from error
        if not isinstance(part, dict) or part.get("error") is not None:
            raise UpstreamError("status")
        finished = finished or finish_reason(part) is not None
        yield data, part
    if not finished:
        raise UpstreamError("broken")
