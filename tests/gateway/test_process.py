"""The real process: killed under load, ended while it streams, and the commands beside `serve`."""

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.online import HEADER_CONVERSATION
from flywheel_gateway.__main__ import main, read_config
from flywheel_gateway.errors import ConfigError
from flywheel_gateway.segments import is_open, segment_files
from tests.gateway.lab import CHAT, KEY, KEYS, ROUTER_TOKEN, Model, asking, configuration, part, routed, stream_of


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """`main` sets up the process's log, which is the tests' own here."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def settle(folder: Path, upstream: str, **changes: Any) -> Path:  # noqa: ANN401 -- fields of the configuration
    """Writes configuration and keys as the operator mounts them; answers the configuration's file."""
    keys = folder / "keys"
    keys.mkdir(exist_ok=True)
    (keys / "key").write_bytes(KEY + b"\n")
    (keys / "router-token").write_bytes(ROUTER_TOKEN)
    config = configuration(folder / "traffic", upstream, keyDirectory=str(keys), **changes)
    file = folder / "gateway.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return file


@dataclass
class Gateway:
    """A process, where it listens, and what it said."""

    process: asyncio.subprocess.Process
    url: str
    metrics_url: str = ""
    said: bytes = b""

    async def ended(self) -> int:
        """Its exit code."""
        assert self.process.stderr is not None
        self.said = await self.process.stderr.read()
        return await self.process.wait()


@contextlib.asynccontextmanager
async def started(config: Path) -> AsyncIterator[Gateway]:
    """A gateway that is ready."""
    port, metrics = free_port(), free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flywheel_gateway", "serve", "--config", str(config), "--host", "127.0.0.1",
        "--port", str(port), "--metrics-port", str(metrics), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    gateway = Gateway(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}")
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as client:
            while process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with client.get(gateway.url + "/health") as response:
                        if response.status == 200:
                            break
                await asyncio.sleep(0.05)
        yield gateway
    finally:
        if process.returncode is None:
            process.kill()
            await gateway.ended()


def logged(store: Path, table: str) -> list[dict[str, Any]]:
    """Whole rows, in open segments too: a reader would wait for their adoption."""
    files = [path.read_bytes() for path in segment_files(store) if path.parts[-3] == table]
    return [json.loads(line) for content in files for line in content.splitlines(keepends=True) if line[-1:] == b"\n"]


async def test_a_killed_gateway_loses_the_unflushed_second_at_most(
    model: Model, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    config = settle(tmp_path, model.url, log={"flushSeconds": 1, "rotateSeconds": 1})
    answered: dict[str, float] = {}
    enough = asyncio.Event()

    async def talk(client: aiohttp.ClientSession, worker: int) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            for number in range(100_000):
                name = f"c-{worker}-{number}"
                headers = {**routed(f"u-{worker}"), HEADER_CONVERSATION: name}
                async with client.post(CHAT, json=asking(), headers=headers) as response:
                    if response.status == 200:
                        await response.read()
                        answered[name] = time.monotonic()
                if len(answered) >= 1500:
                    enough.set()

    async with started(config) as gateway:
        async with aiohttp.ClientSession(gateway.url) as client:
            talking = [asyncio.create_task(talk(client, worker)) for worker in range(8)]
            await enough.wait()
            gateway.process.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            await asyncio.gather(*talking)
        await gateway.ended()

    store = tmp_path / "traffic"
    there = {row["conversation"].split("-", 1)[1] for row in logged(store, "events")}
    lost = [name for name in answered if name not in there]
    oldest = max((killed - answered[name] for name in lost), default=0.0)
    record_property("lostRows", len(lost))
    record_property("lostSeconds", round(oldest, 3))
    rate = len(answered) / (killed - min(answered.values()))
    print(f"killed after {len(answered)} replies at {rate:.0f}/s: {len(lost)} lost, the oldest after {oldest:.3f} s")
    assert oldest <= 1
    assert any(is_open(path) for path in segment_files(store))

    # The next gateway takes over what was left, cut to whole lines.
    for path in segment_files(store):
        if is_open(path):
            with path.open("ab") as file:
                file.write(b'{"half')
            os.utime(path, (1000, 1000))
    async with started(config) as gateway:
        async with asyncio.timeout(20):
            while any(is_open(path) for path in segment_files(store)):
                await asyncio.sleep(0.05)
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0
    assert {row["conversation"].split("-", 1)[1] for row in logged(store, "events")} == there
    assert all(path.read_bytes().endswith(b"\n") for path in segment_files(store))


async def test_sigterm_while_it_streams(model: Model, tmp_path: Path) -> None:
    go = asyncio.Event()

    async def behaviour(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        async def wait(number: int) -> None:
            if number == 1:
                await go.wait()

        return await Model.streamed(request, stream_of("First ", "second."), wait)

    model.behaviour = behaviour
    async with started(settle(tmp_path, model.url)) as gateway, aiohttp.ClientSession(gateway.url) as client:
        async with client.post(CHAT, json=asking(stream=True), headers=routed()) as response:
            await response.content.readuntil(b"\n\n")
            gateway.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10), aiohttp.ClientSession() as another:
                refused = False
                while not refused:
                    try:
                        async with another.get(gateway.url + "/health") as health:
                            assert health.status in (200, 503)
                    except aiohttp.ClientConnectorError:
                        refused = True
                    await asyncio.sleep(0.02)
                # The model server's preStop waits for this port: it stands until the last reply has gone.
                async with another.get(gateway.metrics_url + "/live") as live:
                    assert live.status == 200
            go.set()
            rest = await response.content.read()
        assert b"second." in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await gateway.ended() == 0
    said = [json.loads(line) for line in gateway.said.splitlines()]
    assert [line["message"] for line in said][-2:] == ["draining", "the log is written; rows lost: 0"]
    store = tmp_path / "traffic"
    assert not any(is_open(path) for path in segment_files(store))
    assert [row["type"] for row in logged(store, "events")] == ["message"]
    (turn,) = logged(store, "turns")
    assert turn["messages"][-1]["content"] == "First second."


async def test_what_takes_longer_than_the_drain_is_cut_and_is_an_error(model: Model, tmp_path: Path) -> None:
    async def behaviour(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        async def wait(number: int) -> None:
            if number == 1:
                await asyncio.Event().wait()

        return await Model.streamed(request, [part("First "), part("x")], wait)

    model.behaviour = behaviour
    config = settle(tmp_path, model.url, limits={"drainSeconds": 0})
    async with started(config) as gateway, aiohttp.ClientSession(gateway.url) as client:
        async with client.post(CHAT, json=asking(stream=True)) as response:
            await response.content.readuntil(b"\n\n")
            gateway.process.send_signal(signal.SIGTERM)
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        assert await gateway.ended() == 0
    assert [row["type"] for row in logged(tmp_path / "traffic", "events")] == ["error"]


async def test_the_processs_own_log_names_nobody(model: Model, tmp_path: Path) -> None:
    config = settle(tmp_path, "http://127.0.0.1:9")
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flywheel_gateway", "serve", "--config", str(config), "--host", "127.0.0.1",
        "--port", str(port), "--metrics-port", str(free_port()), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    gateway = Gateway(process, f"http://127.0.0.1:{port}")
    async with aiohttp.ClientSession() as client, asyncio.timeout(60):
        for _ in range(1000):
            with contextlib.suppress(aiohttp.ClientConnectorError):
                async with client.post(
                    gateway.url + CHAT, json=asking("my secret"), headers=routed("anna")
                ) as response:
                    assert response.status == 502
                    break
            await asyncio.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert await gateway.ended() == 0
    for word in (b"anna", b"my secret", KEY, ROUTER_TOKEN):
        assert word not in gateway.said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"upstream": "https://x/y"}, "upstream"),
        ({"defaultCharacter": "nobody"}, "there is no character"),
        ({"log": {"store": "pvc://away/luna"}}, "is not mounted"),
        ({"log": {"store": "hf://a/b"}}, "read only"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_a_configuration_that_cannot_work(
    tmp_path: Path, change: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settle(tmp_path, change.pop("upstream", "http://127.0.0.1:1"), **change)
    assert main(["serve", "--config", str(file), "--port", "0"]) == ExitCode.CONFIG
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("key", "words"), [(b"", "is empty"), (b"short", "16 or more"), (None, "cannot be read")])
def test_a_key_that_cannot_work(
    tmp_path: Path, key: bytes | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settle(tmp_path, "http://127.0.0.1:1")
    (tmp_path / "keys/key").unlink()
    if key is not None:
        (tmp_path / "keys/key").write_bytes(key)
    assert main(["serve", "--config", str(file)]) == ExitCode.CONFIG
    assert words in capsys.readouterr().err


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settle(tmp_path, "http://127.0.0.1:1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = main(["serve", "--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--metrics-port", "0"])
    assert code == ExitCode.CONFIG
    assert "cannot listen" in capsys.readouterr().err


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.json")


def test_ids_are_hashed_as_the_gateway_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_bytes(KEY + b"\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO('anna\n"ben, junior"\n'))
    assert main(["hash-ids", "--key-file", str(key)]) == 0
    assert capsys.readouterr().out.split() == [KEYS.hash_user("anna"), KEYS.hash_user("ben, junior")]

    monkeypatch.setattr(sys, "stdin", io.StringIO("country,id\nfr,anna\n"))
    assert main(["hash-ids", "--key-file", str(key), "--column", "id"]) == 0
    assert capsys.readouterr().out == f"country,id\nfr,{KEYS.hash_user('anna')}\n"

    for text, column in [("a\n", "id"), ("id\n\n", "id")]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert main(["hash-ids", "--key-file", str(key), "--column", column]) == ExitCode.CONFIG


def test_ids_in_json_lines_are_hashed_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_bytes(KEY)
    command = ["hash-ids", "--key-file", str(key), "--json-lines"]
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"user":"anna","origin":"User","n":[1]}\n\n{"user":"ben"}\n'))
    assert main(command) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [{"user": KEYS.hash_user("anna"), "origin": "User", "n": [1]}, {"user": KEYS.hash_user("ben")}]

    monkeypatch.setattr(sys, "stdin", io.StringIO('{"who":"anna"}\n'))
    assert main([*command, "--column", "who"]) == 0
    assert json.loads(capsys.readouterr().out) == {"who": KEYS.hash_user("anna")}

    for text in (
        "{\n",
        "null\n",
        '{"user":null}\n',
        '{"user":7}\n',
        '{"user":""}\n',
        json.dumps({"user": "x" * 999}) + "\n",
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert main(command) == ExitCode.CONFIG
        assert "anna" not in capsys.readouterr().out


def test_erase_and_expire_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "events" / "date=2026-03-02"
    folder.mkdir(parents=True)
    user = KEYS.hash_user("anna")
    row = json.dumps({"user_id": user}) + "\n"
    (folder / "w-0.jsonl").write_text(row)
    (folder / "_w-1.jsonl").write_text(row)
    key = tmp_path / "key"
    key.write_bytes(KEY)
    store = ["--store", f"file://{tmp_path}"]
    erase = ["erase", "--user", "anna", *store, "--wait", "0"]
    assert main([*erase, "--key-file", str(key)]) == ExitCode.FAULT  # one is open
    assert "still open" in capsys.readouterr().out
    (folder / "_w-1.jsonl").rename(folder / "w-1.jsonl")
    assert main(["erase", "--user", user, "--hashed", *store]) == 0
    assert not list(folder.iterdir())
    assert len(list((tmp_path / "erasures").iterdir())) == 2
    assert main(erase) == ExitCode.CONFIG  # no key
    assert main(["erase", "--user", "a\nb", *store]) == ExitCode.CONFIG
    assert main(["expire", *store]) == 0
    assert "0 turns removed" in capsys.readouterr().out
