"""Tokens reach the client one by one."""

import asyncio

import pytest

from tests.router.conftest import World
from tests.router.harness import Request, ask, needs_nginx, read_head, routing

pytestmark = needs_nginx
TOKENS = [f"data: {number}\n\n".encode() for number in range(20)]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("fallback", [False, True], ids=["arm", "fallback"])
async def test_no_token_waits_for_the_next(world: World, fallback: bool) -> None:
    """The upstream sends a token only after the client has got the one before: buffered, this would never end."""
    seen = asyncio.Semaphore(0)

    async def stream(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for token in TOKENS:
            writer.write(chunk(token))
            await seen.acquire()
        writer.write(chunk(b""))

    world.production.answer = world.control.answer = stream
    if fallback:
        world.control.stop()
    config = world.config(control_percent=100, treatment_percent=0, treatment=None)
    async with routing(config) as router, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.config.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: luna\r\nContent-Length: 2\r\n\r\n{}")
        first, headers = await read_head(reader)
        assert first == "HTTP/1.1 200 OK"
        assert dict(headers)["content-type"] == "text/event-stream"
        assert "content-encoding" not in dict(headers)
        for token in TOKENS:
            assert await reader.readexactly(len(chunk(token))) == chunk(token)
            seen.release()
        assert await reader.readexactly(5) == b"0\r\n\r\n"
        # And the connection can be used again.
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: luna\r\nContent-Length: 2\r\n\r\n{}")
        assert (await read_head(reader))[0] == "HTTP/1.1 200 OK"
        writer.close()


async def test_an_upstream_hears_that_the_client_is_gone(world: World) -> None:
    """So that no GPU goes on for nobody."""
    gone = asyncio.Event()

    async def stream(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(TOKENS[0]))
        try:
            while True:
                await writer.drain()
                await asyncio.sleep(0.01)
                writer.write(chunk(TOKENS[0]))
        except ConnectionError:
            gone.set()

    world.production.answer = stream
    plain = world.config(test="", control=None, treatment=None, control_percent=0, treatment_percent=0)
    async with routing(plain) as router, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.config.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: luna\r\nContent-Length: 2\r\n\r\n{}")
        await read_head(reader)
        writer.close()
        await gone.wait()


async def test_nothing_is_compressed(world: World) -> None:
    config = world.config(test="", control=None, treatment=None, control_percent=0, treatment_percent=0)
    async with routing(config) as router:
        got = await ask(router.config.port, "GET", "/v1/models", "Accept-Encoding: gzip", body=b"")
    assert (got.text, got.header("content-encoding")) == ("production", None)
