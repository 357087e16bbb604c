"""A product for the population to talk to, as the gateway answers, in one process and with arms of its own."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer

from e2e.population.browser import COOKIE, HEADER_SESSION, HEADER_TURN

VOICES = {"control": "It is fine today, dear friend.", "treatment": "And what do you think?"}


@dataclass
class Product:
    """What it was asked, and how it behaves."""

    voices: dict[str, str] = field(
        default_factory=lambda: {"control": "It is fine today, dear friend.", "treatment": "And what do you think?"}
    )
    test: str | None = "t"
    fickle: bool = False
    """Tells somebody another arm each time."""
    status: int = 200
    cut: int = 0
    """So many connections are closed without an answer."""
    broken: bool = False
    """Streams have no end, replies no choices."""
    hold: asyncio.Event | None = None
    users: dict[str, str] = field(default_factory=dict)
    sessions: int = 0
    feedback: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)
    strangers: int = 0
    """Chats without the cookie that was given, or without the token."""

    def app(self) -> web.Application:
        """The application."""
        app = web.Application()
        app.router.add_post("/v1/sessions", self._session)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/events", self._events)
        return app

    async def _session(self, request: web.Request) -> web.StreamResponse:
        self.sessions += 1
        user = request.cookies.get(COOKIE) or f"u{len(self.users)}"
        arms = sorted(self.voices)
        known = self.users.setdefault(user, arms[len(self.users) % len(arms)])
        arm = arms[self.sessions % len(arms)] if self.fickle else known
        body = {"session": "s", "token": f"token-{user}", "test": self.test, "arm": arm if self.test else None}
        answer = web.json_response(body, status=201)
        if COOKIE not in request.cookies:
            answer.set_cookie(COOKIE, user, httponly=True)
        return answer

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if self.hold is not None:
            await self.hold.wait()
        if self.cut > 0:
            self.cut -= 1
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        user = request.cookies.get(COOKIE, "")
        self.strangers += user not in self.users or request.headers.get(HEADER_SESSION) != f"token-{user}"
        body = await request.json()
        self.bodies.append(body)
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        text = self.voices[self.users[user]]
        return await self._stream(request, text) if body["stream"] else self._whole(text)

    def _whole(self, text: str) -> web.Response:
        choices = [{"message": {"content": text}, "finish_reason": "stop"}]
        return web.json_response({"choices": [] if self.broken else choices}, headers={HEADER_TURN: "turn-1"})

    async def _stream(self, request: web.Request, text: str) -> web.StreamResponse:
        answer = web.StreamResponse(headers={HEADER_TURN: "turn-1", "content-type": "text/event-stream"})
        await answer.prepare(request)
        for part in text.partition(" "):
            await _send(answer, {"choices": [{"delta": {"content": part}, "finish_reason": None}]})
        if not self.broken:
            await _send(answer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        await _send(answer, {"choices": [], "usage": {}})
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.feedback.append(await request.json())
        return web.json_response({"accepted": 1}, status=202)


async def _send(answer: web.StreamResponse, part: dict[str, object]) -> None:
    await answer.write(f"data: {json.dumps(part)}\n\n".encode())


@asynccontextmanager
async def serving(product: Product) -> AsyncIterator[str]:
    """The product on loopback; answers its URL."""
    server = TestServer(product.app())
    await server.start_server()
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        await server.close()
