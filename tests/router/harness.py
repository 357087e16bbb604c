"""Real nginx on loopback, started by the image's entrypoint, with upstreams and clients to test it."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flywheel_operator.manifests.router_config import RouterConfig
from flywheel_operator.manifests.router_nginx import render

ENTRYPOINT = Path(__file__).resolve().parents[2] / "router" / "entrypoint.sh"
TOKEN = "0123456789abcdef0123456789abcdef"
PROXY = "127.0.0.2"
"""The address that stands for the configured proxy."""
USER_ID = 65532
NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx)")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Waits until `condition` holds.

    Raises:
        TimeoutError: it did not.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@dataclass
class Request:
    """What an upstream got."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of a header."""
        return [value for key, value in self.headers if key == name.lower()]

    def one(self, name: str) -> str | None:
        """The value of a header that comes at most once."""
        values = self.all(name)
        assert len(values) < 2, f"{name} came twice: {values}"
        return values[0] if values else None


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


async def read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    """The first line and the headers of a message."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in head[1:] if line]
    return head[0], [(name.strip().lower(), value.strip(" \t")) for name, _, value in pairs]


def reply(status: int, body: bytes, *headers: str) -> bytes:
    """A whole reply."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def say(text: str, status: int = 200, *headers: str) -> Answer:
    """Answers always the same."""

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(status, text.encode(), *headers))

    return answer


@dataclass
class Served:
    """An upstream that stands for a gateway."""

    answer: Answer
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def start(self) -> None:
        """Listens."""
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Listens no more; connections go on."""
        if self._server is not None:
            self._server.close()

    async def close(self) -> None:
        """Ends, with its connections."""
        self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                first, headers = await read_head(reader)
                method, target, _ = first.split(" ", 2)
                length = int(dict(headers).get("content-length", 0))
                request = Request(method, target, headers, await reader.readexactly(length))
                self.requests.append(request)
                await self.answer(request, writer)
                await writer.drain()
                if writer.is_closing():
                    break


@contextlib.asynccontextmanager
async def served(answer: Answer) -> AsyncIterator[Served]:
    """An upstream, for as long as the context."""
    upstream = Served(answer)
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.close()


@dataclass
class Router:
    """A running router."""

    config: RouterConfig
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log_text(self) -> str:
        """All of the access log."""
        return (self.folder / "stdout").read_text()

    @property
    def errors(self) -> str:
        """What it wrote on stderr."""
        return (self.folder / "stderr").read_text()

    async def lines(self, count: int) -> list[dict[str, Any]]:
        """The access log, once it has so many lines (nginx writes it every second)."""
        await until(lambda: self.log_text.count("\n") >= count)
        return [json.loads(line) for line in self.log_text.splitlines()]

    def drain(self, seconds: int = 60) -> subprocess.Popen[bytes]:
        """Starts what the pod's preStop hook runs."""
        command = [str(ENTRYPOINT), "drain", str(seconds), str(self.config.health_port)]
        return subprocess.Popen(command, env=environment(self.folder))

    def quit(self) -> None:
        """The image's stop signal."""
        self.process.send_signal(signal.SIGQUIT)

    def kill(self) -> None:
        """SIGKILL to nginx's master and its workers at once, as when the pod's node is gone."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def environment(folder: Path) -> dict[str, str]:
    """The entrypoint's settings."""
    return {
        "PATH": f"{folder}/bin:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
        "ROUTER_CONFIG": str(folder / "source.conf"),
        "ROUTER_TOKEN_FILE": str(folder / "token"),
        "ROUTER_FOLDER": str(folder / "nginx"),
        "ROUTER_LOOK_SECONDS": "0.2",
        "ROUTER_SETTLE_SECONDS": "0.2",
        "ROUTER_START_TRIES": "1",
    }


@contextlib.contextmanager
def prepared(config: RouterConfig) -> Iterator[Path]:
    """A folder with what a pod has mounted; not pytest's, for other users cannot look into that."""
    folder = Path(tempfile.mkdtemp(prefix="router-"))
    try:
        (folder / "source.conf").write_text(render(config))
        (folder / "token").write_text(TOKEN + "\n")
        if os.geteuid() == 0:
            for place in (folder, *folder.iterdir()):
                os.chown(place, USER_ID, USER_ID)
        yield folder
    finally:
        shutil.rmtree(folder)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The entrypoint as the image runs it: as nobody in particular, in a group of its own."""
    owner: dict[str, Any] = {"user": USER_ID, "group": USER_ID, "extra_groups": []} if os.geteuid() == 0 else {}
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        for file in (folder / "stdout", folder / "stderr"):
            file.chmod(0o666)
        return subprocess.Popen(
            [str(ENTRYPOINT), "serve"],
            env=environment(folder), cwd="/", stdout=out, stderr=err, start_new_session=True, **owner,
        )  # fmt: skip


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.asynccontextmanager
async def routing(config: RouterConfig, folder: Path | None = None) -> AsyncIterator[Router]:
    """A router, for as long as the context; `folder` where it was prepared already."""
    with contextlib.nullcontext(folder) if folder else prepared(config) as place:
        router = Router(config, place, start(place))
        try:
            await until(lambda: answers(config.health_port) or router.process.poll() is not None)
            assert router.process.poll() is None, router.errors
            yield router
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(router.process.pid, signal.SIGKILL)
            router.process.wait()


@dataclass
class Reply:
    """What a client got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next((value for key, value in self.headers if key == name.lower()), None)


async def ask(
    port: int, method: str = "POST", target: str = "/v1/chat/completions", *headers: str, body: bytes = b"{}",
    source: str = "127.0.0.1",
) -> Reply:  # fmt: skip
    """One request on a connection of its own, its bytes sent as they are (latin-1), from the address `source`."""
    lines = [f"{method} {target} HTTP/1.1", "Host: luna", "Connection: close", *headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
    try:
        async with asyncio.timeout(30):
            first, got = await read_head(reader)
            rest = await reader.read()
    finally:
        writer.close()
    if dict(got).get("transfer-encoding") == "chunked":
        rest = _joined(rest)
    return Reply(int(first.split(" ")[1]), got, rest)


def _joined(chunked: bytes) -> bytes:
    out = b""
    while chunked:
        size, _, chunked = chunked.partition(b"\r\n")
        if not (length := int(size, 16)):
            return out
        out, chunked = out + chunked[:length], chunked[length + 2 :]
    raise AssertionError("the reply was cut off")
