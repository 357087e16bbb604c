"""POST /v1/chat/completions and /v1/completions: from the request to the reply and its rows in the log.

What is logged of a request that was allowed: an exposure (the first time), then exactly one of `message`, `error`,
`blocked_prompt`, or nothing where the client left before a word reached it.
"""

import asyncio
import re
import time
from typing import Any, Final

import orjson

from flywheel_contract.online import CLIENT_ID_PATTERN, HEADER_CHARACTER, HEADER_CONVERSATION, HEADER_TURN, EventType
from flywheel_gateway.calls import Said
from flywheel_gateway.capture import Exchange
from flywheel_gateway.detectors import REFUSAL_DETECTOR, is_refusal
from flywheel_gateway.dialects import Asked, Chat, Completions, Dialect, finish_reason
from flywheel_gateway.errors import ApiError, UnsafeTextError, UpstreamError
from flywheel_gateway.identity import Identity
from flywheel_gateway.services import Services, new_id
from flywheel_gateway.sessions import known_character, session_of
from flywheel_gateway.streaming import Delivery, moderated_parts, plain_parts
from flywheel_gateway.web import DisconnectedError, Headers, Request, Send, parse_json, send_bytes, send_json

CHAT: Final = Chat()
COMPLETIONS: Final = Completions()
_CLIENT_ID: Final = re.compile(CLIENT_ID_PATTERN)
_OVERLOADED: Final = "more requests than can be answered: try again soon"
_NO_REPLY: Final = "the model server gave no reply: try again"


class Conversation:
    """One request for a reply, from its arrival to its rows."""

    def __init__(self, services: Services, request: Request, send: Send, identity: Identity, headers: Headers) -> None:
        """`headers` go with every answer."""
        self._services, self._request, self._send, self._headers = services, request, send, headers
        self._exchange = Exchange(identity=identity, began=time.monotonic())

    async def answer(self, dialect: Dialect) -> int:
        """Answers the request and says with which status.

        Raises:
            ApiError: there is no reply; the answer is yet to be sent.
            DisconnectedError: the client is gone.
        """
        services = self._services
        if services.in_flight >= services.config.limits.concurrent_requests:
            self._log(EventType.ERROR)
            raise ApiError(503, "overloaded", _OVERLOADED, retry_after=1)
        services.in_flight += 1
        try:
            asked, body = await self._understand(dialect)
            if await self._is_blocked(asked):
                return await self._refuse_prompt(dialect, asked)
            if asked.stream:
                return await self._stream(dialect, asked, body)
            return await self._reply(dialect, asked, body)
        finally:
            services.in_flight -= 1

    async def _understand(self, dialect: Dialect) -> tuple[Asked, dict[str, Any]]:
        """Reads and checks the request; logs the exposure. Answers it with the body for the model server."""
        services, request, identity = self._services, self._request, self._exchange.identity
        config = services.config
        claims = session_of(services, request, identity, bearer=False)
        raw = await request.body(config.limits.body_bytes, config.limits.body_seconds)
        asked = dialect.check(parse_json(raw), config.limits)
        metadata = asked.metadata or {}
        conversation = _client_id(request.header(HEADER_CONVERSATION) or metadata.get("conversation"), "conversation")
        if claims is None:
            name = request.header(HEADER_CHARACTER) or metadata.get("character")
            if name is not None and not isinstance(name, str):
                raise ApiError(400, "unknown_character", "there is no such character")
            character, consent = known_character(services, name), config.consent.default
        else:
            # Another generation may have dropped the character of a token that still holds.
            character = claims.character if claims.character in services.characters else config.default_character
            consent, conversation = claims.consent, conversation or claims.conversation or claims.session
        self._exchange = Exchange(
            identity=identity,
            began=self._exchange.began,
            character=character,
            conversation=conversation or new_id(),
            turn=new_id(),
            consent=consent,
            session=claims.session if claims else None,
        )
        self._headers.append((HEADER_CONVERSATION.encode(), self._exchange.conversation.encode()))
        self._headers.append((HEADER_TURN.encode(), self._exchange.turn.encode()))
        services.recorder.exposure(
            self._exchange, "FirstRequest", known=(claims.test, claims.arm) if claims is not None else None
        )
        body = dialect.for_model(asked, None if character is None else services.characters[character])
        return asked, {**body, "model": config.model} if config.model is not None else body

    async def _is_blocked(self, asked: Asked) -> bool:
        """Whether the prompt is unsafe, or could not be checked: the model must not see it."""
        services = self._services
        if not services.config.moderation.prompt:
            return False
        try:
            unsafe = await services.moderator.unsafe(asked.prompt)
        except UnsafeTextError:
            services.metrics.cannot_say("prompt")
            self._log(EventType.ERROR)
            return True
        services.metrics.said("prompt", unsafe)
        if unsafe is not None:
            self._log(EventType.BLOCKED_PROMPT, detector=services.moderator.detector, blocked=True)
        return unsafe is not None

    async def _refuse_prompt(self, dialect: Dialect, asked: Asked) -> int:
        """The character's refusal in place of the model's reply; the model never saw the prompt."""
        safe = Said(self._refusal)
        about = {"model": asked.body.get("model") if isinstance(asked.body.get("model"), str) else ""}
        if asked.stream:
            delivery = Delivery(self._send, self._headers, safe.text)
            await delivery.part(dialect.part(about, safe, None))
            await delivery.part(dialect.part(about, None, "content_filter"))
            await delivery.end()
        else:
            await send_json(self._send, 200, dialect.reply(about, safe, "content_filter"), self._headers)
        return 200

    async def _reply(self, dialect: Dialect, asked: Asked, body: dict[str, Any]) -> int:
        services = self._services
        try:
            raw = await self._request.unless_gone(services.upstream.post(dialect.upstream_path, body))
            reply, said = _reply_in(dialect, raw)
        except UpstreamError as error:
            raise self._failed(error) from error
        except asyncio.CancelledError:
            self._log(EventType.ERROR)  # we are shutting down, and the client gets no reply
            raise
        if services.config.moderation.reply:
            raw = orjson.dumps(await self._checked(dialect, asked, reply, said))
        else:
            self._given(asked, said, capture=True)
        await send_bytes(self._send, 200, raw, b"application/json", self._headers)
        return 200

    async def _checked(self, dialect: Dialect, asked: Asked, reply: dict[str, Any], said: Said) -> dict[str, Any]:
        """The reply, or the character's refusal where it is unsafe or could not be checked."""
        services = self._services
        try:
            unsafe = await services.moderator.unsafe_in(said)
        except UnsafeTextError:
            services.metrics.cannot_say("reply")
            self._log(EventType.ERROR)
            return dialect.reply(reply, Said(self._refusal), "content_filter")
        services.metrics.said("reply", unsafe)
        if unsafe is not None:
            self._log(EventType.SAFETY_VIOLATION, detector=services.moderator.detector, blocked=True)
            self._given(asked, Said(self._refusal), capture=False)
            return dialect.reply(reply, Said(self._refusal), "content_filter")
        self._given(asked, said, capture=True)
        # Only what was checked goes out: no reasoning, no tokens beside the text.
        return dialect.reply(reply, said, finish_reason(reply) or "stop")

    async def _stream(self, dialect: Dialect, asked: Asked, body: dict[str, Any]) -> int:
        delivery = Delivery(
            self._send, self._headers, self._refusal, self._services.metrics.first_part, self._exchange.began
        )
        parts = moderated_parts if self._services.config.moderation.reply else plain_parts
        try:
            await self._request.unless_gone(parts(self._services, dialect, body, delivery))
        except UpstreamError as error:
            failure = self._failed(error)
            if not delivery.started:
                raise failure from error
            await delivery.fail(failure)
            return 200
        except DisconnectedError:
            # The words that arrived were a reply, and the user left it: it counts, but it is nobody's to train on.
            if delivery.said:
                self._log(EventType.MESSAGE, value=self._milliseconds())
            raise
        except asyncio.CancelledError:
            self._log(EventType.ERROR)  # we are shutting down, and the client gets no end
            raise
        if delivery.outcome == "failed":
            self._log(EventType.ERROR)
        else:
            if delivery.outcome == "unsafe":
                self._log(EventType.SAFETY_VIOLATION, detector=self._services.moderator.detector, blocked=True)
            self._given(asked, delivery.said, capture=delivery.outcome == "whole")
        await delivery.end()
        return 200

    def _given(self, asked: Asked, said: Said, *, capture: bool) -> None:
        """A reply was given: the message, the turn (not of what we cut), and what the detectors see."""
        services, latency = self._services, self._milliseconds()
        self._log(EventType.MESSAGE, value=latency)
        if not capture:
            return
        services.recorder.turn(self._exchange, asked.turns, said, latency)
        moderation = services.config.moderation
        if is_refusal(said.text):
            if moderation.prompt:
                self._log(EventType.FALSE_REFUSAL, detector=REFUSAL_DETECTOR)
            else:
                services.later(self._detect(asked.prompt, EventType.FALSE_REFUSAL))
        if moderation.detect and not moderation.reply:
            services.later(self._detect(tuple(said.texts()), EventType.SAFETY_VIOLATION))

    async def _detect(self, texts: tuple[str, ...], kind: EventType) -> None:
        """After the reply: a refusal is false where the prompt (`texts`) is safe, a reply violates where it is not."""
        try:
            unsafe = await self._services.moderator.unsafe(texts)
        except UnsafeTextError:
            self._services.metrics.undetected.inc()
            return
        if kind is EventType.FALSE_REFUSAL and unsafe is None:
            self._log(kind, detector=REFUSAL_DETECTOR)
        if kind is EventType.SAFETY_VIOLATION and unsafe is not None:
            self._log(kind, detector=self._services.moderator.detector, blocked=False)

    def _failed(self, error: UpstreamError) -> ApiError:
        self._services.metrics.upstream_errors.labels(error.kind).inc()
        self._log(EventType.ERROR)
        return ApiError(504 if error.kind == "timeout" else 502, f"upstream_{error.kind}", _NO_REPLY)

    def _log(self, kind: EventType, **about: Any) -> None:  # noqa: ANN401 -- the recorder's own keywords
        self._services.recorder.event(self._exchange, kind, **about)

    @property
    def _refusal(self) -> str:
        return self._services.refusal(self._exchange.character)

    def _milliseconds(self) -> float:
        return round(1000 * (time.monotonic() - self._exchange.began), 3)


def _reply_in(dialect: Dialect, raw: bytes) -> tuple[dict[str, Any], Said]:
    try:
        reply = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise UpstreamError("broken") from error
    said = dialect.reply_said(reply) if isinstance(reply, dict) else None
    if said is None:
        raise UpstreamError("broken")
    return reply, said


def _client_id(value: object, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or _CLIENT_ID.match(value) is None:
        raise ApiError(400, "invalid_request", f"{name}: 1 to 128 of letters, digits, _ . : -")
    return value
