"""A model server that does what a test tells it, and a gateway before it, both on loopback in the test's own loop."""

# ruff: noqa: ANN401 -- JSON, and fields of a configuration

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from flywheel_contract.gateway_config import GatewayConfig
from flywheel_contract.online import HEADER_ARM, HEADER_ROUTER_TOKEN, HEADER_TEST, HEADER_USER
from flywheel_gateway.app import metrics_app, user_app
from flywheel_gateway.keys import Keys
from flywheel_gateway.log_writer import LogWriter
from flywheel_gateway.server import GatewayServer, server_settings
from flywheel_gateway.services import Services, assemble
from flywheel_safety.classifier import Classifier, Scores

KEY = b"a key of the lineage, for tests"
KEYS = Keys(KEY)
ROUTER_TOKEN = b"the router's own token"
LUNA = "You are Luna, a calm astronomer."
CHAT = "/v1/chat/completions"


def asking(text: str = "Hello there.", **more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": "luna", "messages": [{"role": "user", "content": text}], **more}


def routed(user: str | None = "u-1", arm: str = "treatment", test: str = "luna-3") -> dict[str, str]:
    """The headers of the router."""
    headers = {HEADER_ROUTER_TOKEN: ROUTER_TOKEN.decode(), HEADER_ARM: arm, HEADER_TEST: test}
    return headers if user is None else {**headers, HEADER_USER: user}


class Words(Classifier):
    """A classifier for tests: what holds `badword` is unsafe, `explode` breaks it."""

    name = "words/test"

    def score(self, texts: Sequence[str]) -> list[Scores]:
        if any("explode" in text for text in texts):
            raise RuntimeError("the classifier broke")
        return [{"rude": 1.0 if "badword" in text else 0.0} for text in texts]


def part(text: str | None, finish: str | None = None) -> bytes:
    """A streamed part as vLLM writes it."""
    delta = {} if text is None else {"content": text}
    value = {
        "id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "luna",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }  # fmt: skip
    return f"data: {json.dumps(value)}\n\n".encode()


def stream_of(*texts: str) -> list[bytes]:
    """A whole streamed reply."""
    return [*(part(text) for text in texts), part(None, "stop"), b"data: [DONE]\n\n"]


Behaviour = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


@dataclass
class Model:
    """The model server: answers `reply`, or does what `behaviour` says."""

    reply: str = "Hello, stargazer."
    behaviour: Behaviour | None = None
    healthy: bool = True
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.headers.append(dict(request.headers))
        if self.behaviour is not None:
            try:
                return await self.behaviour(request, body)
            except (asyncio.CancelledError, ConnectionResetError):
                self.cancelled.set()
                raise
        if body.get("stream"):
            return await self.streamed(request, stream_of(*(w + " " for w in self.reply.split(" "))))
        text: dict[str, Any] = {"message": {"role": "assistant", "content": self.reply, "reasoning_content": "hm"}}
        if "prompt" in body:
            text = {"text": self.reply}
        return web.json_response(
            {
                "id": "c-1", "object": "chat.completion", "created": 1, "model": "luna",
                "choices": [{"index": 0, **text, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
            }
        )  # fmt: skip

    @staticmethod
    async def streamed(
        request: web.Request, parts: Sequence[bytes], wait: Callable[[int], Awaitable[None]] | None = None
    ) -> web.StreamResponse:
        """Sends the parts; before part i it awaits `wait(i)`."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, data in enumerate(parts):
            if wait is not None:
                await wait(number)
            await response.write(data)
        await response.write_eof()
        return response

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "luna", "object": "model"}]})


@contextlib.asynccontextmanager
async def model_server() -> AsyncIterator[Model]:
    """A running model server."""
    model = Model()
    app = web.Application()
    app.router.add_post(CHAT, model.answer)
    app.router.add_post("/v1/completions", model.answer)
    app.router.add_get("/health", model.health)
    app.router.add_get("/v1/models", model.models)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    model.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield model
    finally:
        await runner.cleanup()


@dataclass
class Lab:
    """A running gateway, its client and its log."""

    client: aiohttp.ClientSession
    services: Services
    model: Model
    store: Path
    metrics_url: str

    async def chat(self, body: Any = None, *, headers: dict[str, str] | None = None, path: str = CHAT) -> Any:
        """Posts and answers (status, JSON, headers)."""
        data: Any = io.BytesIO(body) if isinstance(body, bytes) else json.dumps(asking() if body is None else body)
        async with self.client.post(path, data=data, headers=headers) as response:
            return response.status, await response.json(), response.headers

    async def rows(self, table: str) -> list[dict[str, Any]]:
        """What the log holds of a table, after the writer has caught up."""
        await self.services.settle()
        async with asyncio.timeout(10):
            while self.services.writer.queued_bytes:
                await asyncio.sleep(0.01)
        files = sorted((self.store / table).glob("date=*/*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]

    async def events(self, *kinds: str) -> list[dict[str, Any]]:
        """The events of some types."""
        return [row for row in await self.rows("events") if row["type"] in kinds]

    async def kinds(self) -> list[str]:
        """The types of all events, in order."""
        return [row["type"] for row in await self.rows("events")]

    async def metrics(self) -> str:
        """What Prometheus sees."""
        async with self.client.get(self.metrics_url + "/metrics") as response:
            return await response.text()


def configuration(store: Path, upstream: str, /, **changes: Any) -> dict[str, Any]:
    """A GatewayConfig as JSON; moderation is off unless a test turns it on."""
    return {
        "generation": "luna-gen-3",
        "lineage": "luna",
        "upstream": upstream,
        "characters": [
            {"name": "luna", "systemPrompt": LUNA},
            {"name": "sol", "systemPrompt": "You are Sol."},
        ],
        "defaultCharacter": "luna",
        "log": {"store": f"file://{store}", "flushSeconds": 0.1, **changes.pop("log", {})},
        "moderation": {"prompt": False, "reply": False, "detect": False, **changes.pop("moderation", {})},
        "limits": {"requestsPerSecond": 1000, "burst": 1000, "drainDelaySeconds": 0, **changes.pop("limits", {})},
        "cookieSecure": False,
        **changes,
    }


@contextlib.asynccontextmanager
async def running(
    store: Path, model: Model, /, *, router_token: bytes | None = ROUTER_TOKEN, **changes: Any
) -> AsyncIterator[Lab]:
    """A gateway before `model` that writes to `store`."""
    config = GatewayConfig.model_validate(configuration(store, changes.pop("upstream", model.url), **changes))
    writer = LogWriter(store, config.log, "writer")
    writer.start()
    services = assemble(config, KEYS, router_token, writer, Words())
    servers = [
        GatewayServer(server_settings(app, "127.0.0.1", 0, 5)) for app in (user_app(services), metrics_app(services))
    ]  # fmt: skip
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    while not all(server.started for server in servers):
        await asyncio.sleep(0.005)
    ports = [server.servers[0].sockets[0].getsockname()[1] for server in servers]
    jar = aiohttp.CookieJar(unsafe=True)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{ports[0]}", cookie_jar=jar) as client:
            yield Lab(client, services, model, store, f"http://127.0.0.1:{ports[1]}")
    finally:
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)
        await services.settle()
        await services.upstream.close()
        services.moderator.close()
        await asyncio.to_thread(writer.close)


async def read_events(response: aiohttp.ClientResponse) -> list[Any]:
    """The data of all events of a streamed answer, parsed."""
    found: list[Any] = []
    async for line in response.content:
        if line.startswith(b"data: "):
            data = line[6:].strip()
            found.append(data.decode() if data == b"[DONE]" else json.loads(data))
    return found


def text_of(events: Sequence[Any]) -> str:
    """The text of a streamed reply."""
    deltas = [e["choices"][0]["delta"] for e in events if isinstance(e, dict) and e.get("choices")]
    return "".join(delta.get("content") or "" for delta in deltas)
