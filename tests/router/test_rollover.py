"""A change of configuration under load, and a router that is killed: what clients see who talk all the while.

`Switch` stands for the Service: it hands each new connection to a router that is an endpoint at that moment, and leaves
those that are there alone.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from flywheel_contract.online import HEADER_TEST
from flywheel_operator.manifests.router_config import RouterConfig, Timeouts
from tests.router.conftest import World
from tests.router.harness import Request, answers, needs_nginx, read_head, reply, routing, until

pytestmark = needs_nginx
STREAM = "/stream"
LONG_STREAM = "/long"
TOKENS = 40
END = b"data: [DONE]\n\n"
BROKEN = (ConnectionError, asyncio.IncompleteReadError)


@dataclass
class Switch:
    """A Service on loopback."""

    endpoints: list[int]
    port: int = 0
    _turn: "itertools.count[int]" = field(default_factory=itertools.count)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for as long as both ends want it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        port = self.endpoints[next(self._turn) % len(self.endpoints)]
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)
            both = asyncio.gather(_pump(reader, back_writer), _pump(back_reader, writer))
            try:
                await both
            finally:
                back_writer.close()
        except ConnectionError:
            pass  # refused: the client sees a closed connection
        finally:
            writer.close()
            self._tasks.discard(task)

    async def close(self) -> None:
        """Ends all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        with contextlib.suppress(OSError):
            writer.write_eof() if data == b"" else writer.close()


@contextlib.asynccontextmanager
async def switching(*endpoints: int) -> AsyncIterator[Switch]:
    """A Service, for as long as the context."""
    switch = Switch(list(endpoints))
    server = await asyncio.start_server(switch.take, "127.0.0.1", 0)
    switch.port = server.sockets[0].getsockname()[1]
    try:
        yield switch
    finally:
        server.close()
        await switch.close()


@dataclass
class Client:
    """Asks again and again on one connection for as long as that is kept, and never a second time for the same."""

    port: int
    pause: float
    """Seconds between two requests, at most."""
    seen: list[tuple[float, str]] = field(default_factory=list)
    """When it had an answer, and of which test."""
    failures: list[str] = field(default_factory=list)
    streams: int = 0
    connections: int = 0
    closing: bool = False

    async def run(self, paths: list[str], draw: random.Random) -> None:
        """Until `closing`."""
        while not self.closing:
            self.connections += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                while not self.closing and await self._ask(reader, writer, draw.choice(paths)):
                    await asyncio.sleep(draw.uniform(0, self.pause))
            except BROKEN as error:
                self.failures.append(f"{type(error).__name__} {error}")
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bool:
        """One request; says whether the connection is kept."""
        writer.write(f"POST {path} HTTP/1.1\r\nHost: luna\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        first, headers = await read_head(reader)
        known = dict(headers)
        if known.get("transfer-encoding") == "chunked":
            body = b""
            while piece := await _chunk(reader):
                body += piece
            if body.count(b"data:") != TOKENS + 1 or not body.endswith(END):
                self.failures.append(f"a stream ended after {body.count(b'data:')} tokens")
            self.streams += 1
        else:
            body = await reader.readexactly(int(known["content-length"]))
            self.seen.append((time.monotonic(), body.decode()))
        if " 200 " not in first:
            self.failures.append(first)
        return known.get("connection") != "close"


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    size = int((await reader.readuntil(b"\r\n")).strip(), 16)
    return (await reader.readexactly(size + 2))[:-2]


@dataclass
class Model:
    """An upstream that answers with the test's name, and streams."""

    finish: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """Answers."""
        if request.target not in (STREAM, LONG_STREAM):
            writer.write(reply(200, (request.one(HEADER_TEST) or "").encode()))
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(TOKENS):
            token = f"data: {number}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(token), token))
            await writer.drain()
            if request.target == LONG_STREAM and number == TOKENS // 2:
                await self.finish.wait()
            await asyncio.sleep(0.01)
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(END), END))


def all_in_control(world: World, test: str) -> RouterConfig:
    times = Timeouts(turnover=1, idle=3, connect=0.5, read=30)
    return world.config(test=test, control_percent=100, treatment_percent=0, treatment=None, timeouts=times)


async def test_a_new_configuration_drops_nothing(world: World) -> None:
    model = Model()
    world.control.answer = model
    async with contextlib.AsyncExitStack() as stack:
        old = await stack.enter_async_context(routing(all_in_control(world, "old")))
        switch = await stack.enter_async_context(switching(old.config.port))
        busy = [Client(switch.port, 0.01) for _ in range(4)]
        slow = [Client(switch.port, 1.0) for _ in range(20)]  # mostly idle: these would run into closed connections
        talkers = [Client(switch.port, 0.1) for _ in range(6)]
        lasting = Client(switch.port, 0)
        clients = [*busy, *slow, *talkers]
        draw = random.Random(1)
        tasks = [asyncio.create_task(c.run(["/v1/models"], random.Random(draw.random()))) for c in (*busy, *slow)]
        tasks += [asyncio.create_task(c.run([STREAM, "/v1/models"], random.Random(draw.random()))) for c in talkers]
        tasks.append(asyncio.create_task(lasting.run([LONG_STREAM], draw)))
        await until(lambda: all(len(client.seen) >= 2 for client in clients))
        assert {test for client in clients for _, test in client.seen} == {"old"}

        # As the Deployment does: a new pod is ready; the old one leaves the endpoints, drains, and is told to end.
        began = time.monotonic()
        new = await stack.enter_async_context(routing(all_in_control(world, "new")))
        switch.endpoints = [new.config.port]
        drain = old.drain()
        await until(lambda: drain.poll() is not None)
        assert drain.returncode == 0
        old.quit()
        await until(lambda: not answers(old.config.port))
        lasting.closing = True
        seen = [len(client.seen) for client in clients]
        await until(lambda: all(len(c.seen) >= before + 2 for c, before in zip(clients, seen, strict=True)))

        # The old one goes on for its last stream, and ends with it.
        assert old.process.poll() is None
        assert not lasting.streams
        model.finish.set()
        await until(lambda: old.process.poll() is not None)
        assert old.process.returncode == 0
        for client in clients:
            client.closing = True
        await asyncio.gather(*tasks)

    assert [failure for client in (*clients, lasting) for failure in client.failures] == []
    assert lasting.streams == 1
    assert sum(client.streams for client in talkers) > 20
    last_of_old = max(when for client in clients for when, test in client.seen if test == "old")
    assert last_of_old - began < 30
    for client in clients:
        tests = [test for _, test in client.seen]
        assert tests == sorted(tests, reverse=True)  # nobody went back


async def test_a_router_that_is_killed(world: World) -> None:
    """Its connections break, and nothing else: who asks again on a new connection is served by the other one."""
    world.production.answer = Model()
    plain = {"test": "", "control": None, "treatment": None, "control_percent": 0, "treatment_percent": 0}
    async with contextlib.AsyncExitStack() as stack:
        killed = await stack.enter_async_context(routing(world.config(**plain)))
        other = await stack.enter_async_context(routing(world.config(**plain)))
        switch = await stack.enter_async_context(switching(killed.config.port, other.config.port))
        clients = [Client(switch.port, 0.02) for _ in range(10)]
        tasks = [asyncio.create_task(c.run(["/v1/models", STREAM], random.Random(n))) for n, c in enumerate(clients)]
        await until(lambda: all(len(client.seen) >= 3 for client in clients))
        assert not any(client.failures for client in clients)
        killed.kill()
        # Until the pod is found not ready, half of the new connections are refused.
        await until(lambda: sum(len(client.failures) for client in clients) >= 3)
        switch.endpoints = [other.config.port]
        await asyncio.sleep(0)
        broken = [len(client.failures) for client in clients]
        seen = [len(client.seen) for client in clients]
        await until(lambda: all(len(c.seen) >= before + 5 for c, before in zip(clients, seen, strict=True)))
        # At most the one that was in flight when the endpoints changed.
        assert all(len(c.failures) <= before + 1 for c, before in zip(clients, broken, strict=True))
        for client in clients:
            client.closing = True
        await asyncio.gather(*tasks)
        assert sum(1 for client in clients if client.failures) < len(clients)  # the other's clients noticed nothing
