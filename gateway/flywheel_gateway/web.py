"""The thin layer between ASGI and the handlers: a request with its headers, bodies within bounds, JSON answers."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final, TypeVar

import orjson

from flywheel_gateway.errors import ApiError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MAX_DEPTH: Final = 32
"""Nesting of a request's JSON; what the API takes is 4 deep, tool schemas a little more."""
HEADER_BYTES: Final = 32_768
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NO_BRACKETS: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))
_T = TypeVar("_T")


class DisconnectedError(Exception):
    """The client went away; nobody is there to be answered."""


class Request:
    """One request. Header names are lower case; of a header that comes several times, the values are kept in order."""

    def __init__(self, scope: Message, receive: Receive) -> None:
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        client = scope.get("client")
        self.peer: str | None = client[0] if client else None
        self._receive = receive
        self._headers: dict[bytes, bytes | list[bytes]] = {}
        size = 0
        for name, value in scope["headers"]:
            size += len(name) + len(value)
            known = self._headers.get(name)
            if known is None:
                self._headers[name] = value
            elif isinstance(known, list):
                known.append(value)
            else:
                self._headers[name] = [known, value]
        self.too_large_headers = size > HEADER_BYTES

    def header(self, name: str) -> str | None:
        """A header's text, or None.

        Raises:
            ApiError: it comes twice or is no UTF-8, so that two readers could read two things.
        """
        value = self._headers.get(name.encode())
        if value is None:
            return None
        try:
            if isinstance(value, list):
                raise ApiError(400, "invalid_header", f"the header {name} may come once")
            return value.decode()
        except UnicodeDecodeError as error:
            raise ApiError(400, "invalid_header", f"the header {name} is not UTF-8") from error

    def raw_header(self, name: str) -> list[bytes]:
        """All values of a header."""
        value = self._headers.get(name.encode(), [])
        return value if isinstance(value, list) else [value]

    async def body(self, limit: int, seconds: float) -> bytes:
        """The whole body.

        Raises:
            ApiError: it is longer than `limit` bytes, or does not come within `seconds`.
            DisconnectedError: the client went away before its end.
        """
        told = self.raw_header("content-length")
        if told and told[0].isdigit() and int(told[0][:20]) > limit:
            raise ApiError(413, "too_large", f"the body may have {limit} bytes")
        try:
            async with asyncio.timeout(seconds):
                return await self._whole(limit)
        except TimeoutError as error:
            raise ApiError(408, "timeout", "the body did not come in time") from error

    async def _whole(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise ApiError(413, "too_large", f"the body may have {limit} bytes")
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def unless_gone(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs `work`, after the body was read, and cancels it when the client goes away.

        Raises:
            DisconnectedError: the client went away first.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait((task,))
            raise DisconnectedError
        finally:
            task.cancel()
            gone.cancel()

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def parse_json(body: bytes) -> Any:  # noqa: ANN401 -- any JSON value
    """The JSON value in `body`. Of a key that comes twice the last one counts, here and for the model, because
    what is sent on is written anew.

    Raises:
        ApiError: it is no JSON, or nested deeper than anything sensible.
    """
    if depth(body) > MAX_DEPTH:
        raise ApiError(400, "invalid_json", f"the body is nested deeper than {MAX_DEPTH}")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", "the body is no JSON in UTF-8") from error


def depth(body: bytes) -> int:
    """The deepest nesting, as far as MAX_DEPTH and one; 0 where it cannot be too deep. Brackets in strings do not
    count."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return 0
    brackets = _STRING.sub(b"", body).translate(None, _NO_BRACKETS)
    deepest = depth = 0
    for bracket in brackets:
        if bracket in b"[{":
            depth += 1
            if depth > deepest:
                deepest = depth
                if deepest > MAX_DEPTH:
                    break
        else:
            depth -= 1
    return deepest


async def send_json(send: Send, status: int, value: object, headers: Headers) -> None:
    """Answers with a JSON value."""
    await send_bytes(send, status, orjson.dumps(value), b"application/json", headers)


async def send_bytes(send: Send, status: int, body: bytes, kind: bytes, headers: Headers) -> None:
    """Answers with a body of the given content type."""
    start = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
