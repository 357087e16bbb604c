"""One person's HTTP: keeps the cookie, opens sessions, chats, and tries again on a new connection where one broke."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

HEADER_SESSION: Final = "x-flywheel-session"
HEADER_TURN: Final = "x-flywheel-turn"
COOKIE: Final = "flywheel_user"
ATTEMPTS: Final = 6
FIRST_WAIT_SECONDS: Final = 0.1
Retried = Callable[[str], None]
Messages = list[dict[str, str]]


class RequestError(Exception):
    """A request got no answer for good; `kind` is the HTTP status or the error's name."""

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(said)
        self.kind = kind


@dataclass(frozen=True)
class Reply:
    """What a chat came back with."""

    text: str
    turn: str
    filtered: bool
    milliseconds: float


@dataclass(frozen=True)
class Opened:
    """What a session said."""

    test: str | None
    arm: str | None
    token: str


@dataclass
class Browser:
    """A person's cookie and how to reach the product. Only a broken connection is tried again: an answer is one."""

    url: str
    timeout_seconds: float
    retried: Retried
    cookie: str | None = None

    def visit(self) -> "Visit":
        """A visit, with connections of its own: an async context manager."""
        return Visit(self)


class Visit:
    """Requests between coming and leaving."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._token: str | None = None
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Visit":
        self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def session(self, *, training: bool) -> Opened:
        """Opens a session.

        Raises:
            RequestError: there is none to be had.
        """
        body = {"consent": {"training": training}}
        _, _, raw = await self._post("/v1/sessions", body, 201)
        answer = json.loads(raw)
        self._token = answer["token"]
        return Opened(answer.get("test"), answer.get("arm"), answer["token"])

    async def chat(self, messages: Messages, *, max_tokens: int, stream: bool) -> Reply:
        """A reply to a conversation.

        Raises:
            RequestError: there is none to be had.
        """
        body = {"model": "any", "max_tokens": max_tokens, "messages": messages, "stream": stream}
        milliseconds, headers, raw = await self._post("/v1/chat/completions", body, 200)
        try:
            text, finish = _streamed(raw) if stream else _whole(raw)
        except (ValueError, LookupError, TypeError) as error:
            raise RequestError("broken", f"no reply in {raw[:100]!r}") from error
        return Reply(text, headers.get(HEADER_TURN, ""), finish == "content_filter", milliseconds)

    async def feedback(self, kind: str, turn: str) -> None:
        """Says what one thinks of a reply.

        Raises:
            RequestError: it was not taken.
        """
        await self._post("/v1/events", {"type": kind, "turn": turn}, 202)

    async def _post(self, path: str, body: dict[str, Any], wanted: int) -> tuple[float, "dict[str, str]", bytes]:
        wait = FIRST_WAIT_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._once(path, body, wanted)
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                kind = type(error).__name__
                if attempt == ATTEMPTS:
                    raise RequestError(kind, f"POST {path}: {error}, {ATTEMPTS} times") from error
                self._browser.retried(kind)
            await self._close()
            await asyncio.sleep(wait)
            wait *= 2
            self._open()
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, path: str, body: dict[str, Any], wanted: int) -> tuple[float, "dict[str, str]", bytes]:
        assert self._http is not None, "use the visit as a context manager"
        headers = {} if self._token is None else {HEADER_SESSION: self._token}
        if self._browser.cookie is not None:
            headers["cookie"] = f"{COOKIE}={self._browser.cookie}"
        began = time.monotonic()
        try:
            async with self._http.post(self._browser.url + path, json=body, headers=headers) as answer:
                raw = await answer.read()
        except TimeoutError as error:
            raise RequestError("timeout", f"POST {path}: no answer in {self._browser.timeout_seconds:g} s") from error
        set_cookie = answer.cookies.get(COOKIE)
        if set_cookie is not None:
            self._browser.cookie = set_cookie.value
        if answer.status != wanted:
            raise RequestError(str(answer.status), f"POST {path}: {raw[:120].decode(errors='replace')}")
        lower = {key.lower(): value for key, value in answer.headers.items()}
        return 1000 * (time.monotonic() - began), lower, raw

    def _open(self) -> None:
        self._http = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._browser.timeout_seconds),
        )

    async def _close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None


def _whole(raw: bytes) -> tuple[str, str]:
    choice = json.loads(raw)["choices"][0]
    return str(choice["message"]["content"]), str(choice.get("finish_reason"))


def _streamed(raw: bytes) -> tuple[str, str]:
    """Text and end of a stream of server-sent events.

    Raises:
        ValueError: it holds an error, or has no end.
    """
    parts, finish = [], ""
    for line in raw.decode().splitlines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        choices = json.loads(data)["choices"]
        if choices:
            parts.append(choices[0]["delta"].get("content") or "")
            finish = choices[0].get("finish_reason") or finish
    if not finish:
        raise ValueError("the stream has no end")
    return "".join(parts), finish
