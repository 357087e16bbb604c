"""The model server beside us: requests go on to it, and what goes wrong has one of a few names.

Names of failures: `refused` (nobody listens), `timeout`, `status` (it answered with an error of its own), `broken` (the
reply ended early or is no reply).
"""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import aiohttp
import orjson

from flywheel_contract.gateway_config import Limits
from flywheel_gateway.errors import ApiError, UpstreamError
from flywheel_gateway.sse import EventReader

PASSED_ON: Final = frozenset({400, 404, 413, 422})
"""What the model server says of the request itself, e.g. that it is too long: no error of the model's."""
_HEADERS: Final = {"content-type": "application/json", "accept-encoding": "identity"}
_PROBE_SECONDS: Final = 2
_LONG_BODY: Final = 1 << 19


class Upstream:
    """A pool of connections to the model server."""

    def __init__(self, url: str, limits: Limits) -> None:
        self._url, self._limits = url, limits
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(
                total=limits.total_seconds, sock_connect=limits.connect_seconds, connect=limits.connect_seconds
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=2**16,
        )

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        """The answer to a request that is not streamed.

        Raises:
            UpstreamError: there is none.
            ApiError: the model server refuses the request.
        """
        with _named():
            async with self._session.post(
                self._url + path, data=_encoded(body), headers=_HEADERS, allow_redirects=False
            ) as response:
                if response.status in PASSED_ON:
                    raise refusal(response.status)
                if response.status != 200:
                    raise UpstreamError("status")
                return await self._read(response)

    async def get(self, path: str) -> bytes:
        """The answer to a GET.

        Raises:
            UpstreamError: there is none.
        """
        with _named():
            async with self._session.get(self._url + path, headers=_HEADERS, allow_redirects=False) as response:
                if response.status != 200:
                    raise UpstreamError("status")
                return await self._read(response)

    @contextlib.asynccontextmanager
    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The data of the events of a streamed answer, as they come.

        Raises:
            UpstreamError: there is none; from the iterator too, when it breaks off.
            ApiError: the model server refuses the request.
        """
        with _named():
            async with asyncio.timeout(self._limits.first_byte_seconds):
                response = await self._session.post(
                    self._url + path, data=_encoded(body), headers=_HEADERS, allow_redirects=False
                )
        try:
            if response.status in PASSED_ON:
                raise refusal(response.status)
            if response.status != 200 or not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise UpstreamError("status" if response.status != 200 else "broken")
            yield self._events(response)
        finally:
            # Not read to its end: the connection is closed, and the model server stops.
            response.close()

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        reader = EventReader(self._limits.reply_bytes)
        patience = self._limits.first_byte_seconds
        size = 0
        while True:
            with _named():
                async with asyncio.timeout(patience):
                    chunk = await response.content.readany()
            patience = self._limits.idle_seconds
            if not chunk:
                return
            size += len(chunk)
            if size > self._limits.reply_bytes * 16:
                raise UpstreamError("broken")
            try:
                events = reader.feed(chunk)
            except ValueError as error:
                raise UpstreamError("broken") from error
            for data in events:
                yield data

    async def is_ready(self) -> bool:
        """Whether the model server says that it is well."""
        try:
            async with self._session.get(
                self._url + "/health", timeout=aiohttp.ClientTimeout(total=_PROBE_SECONDS)
            ) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def close(self) -> None:
        """Closes all connections."""
        await self._session.close()

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._limits.reply_bytes
        if response.content_length is not None and response.content_length <= limit:
            return await response.read()
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > limit:
                raise UpstreamError("broken")
        return bytes(body)


def refusal(status: int) -> ApiError:
    """The model server's judgement of a request, in our words: its own may quote the character's prompt."""
    return ApiError(status, "refused_by_model", "the model server refuses the request: too long, or an option unknown")


def _encoded(body: dict[str, Any]) -> bytes | io.BytesIO:
    """The client library writes long bodies piece by piece only from a file."""
    encoded = orjson.dumps(body)
    return encoded if len(encoded) < _LONG_BODY else io.BytesIO(encoded)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Turns what the client library raises into `UpstreamError`."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise UpstreamError("refused") from error
    except TimeoutError as error:
        raise UpstreamError("timeout") from error
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamError("broken") from error
