"""What the router costs beside plain nginx: requests per CPU second of the nginx processes, in runs that take turns.

All proxy to the same upstream, in a process of its own, which answers after 20 ms; all keep their connections and do
not buffer replies. `plain` logs as nginx does unless told otherwise (`combined`, a write per request), `plainBuffered`
gathers its lines as the router does. CPU time is the kernel's own count, in nanoseconds. Prints one line of JSON:
`ratio` is the router's requests per CPU second over plain's in all runs, `ratioBuffered` over plainBuffered's; `rounds`
has the first one's round by round. Run it: python -m benchmarks.router_cpu
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from flywheel_operator.manifests.router_config import RouterConfig, Upstream
from flywheel_operator.manifests.router_nginx import TOKEN_INCLUDE, render

DELAY_SECONDS = 0.02
REPLY = json.dumps({"choices": [{"message": {"role": "assistant", "content": "hello " * 40}}]}).encode()
BODY = json.dumps({"model": "luna", "messages": [{"role": "user", "content": "hello " * 80}]}).encode()
COOKIE = b"Cookie: flywheel_user=user-%06d." + b"A" * 43 + b"\r\n"
PORTS = {"upstream": 18101, "plain": 18102, "router": 18103, "health": 18104, "plainBuffered": 18105}

PLAIN = """\
daemon off;
pid nginx.pid;
error_log stderr warn;
worker_processes 2;
events {{ worker_connections 8192; }}
http {{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    access_log access.log combined{buffer};
    upstream model {{
        server 127.0.0.1:{upstream};
        keepalive 64;
    }}
    server {{
        listen {port};
        keepalive_requests 100000;
        location / {{
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


async def upstream() -> None:
    """Answers every request after the delay."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(REPLY)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(len(BODY))
                await asyncio.sleep(DELAY_SECONDS)
                writer.write(head + REPLY)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", PORTS["upstream"], backlog=1024) as server:
        await server.serve_forever()


async def load(port: int, requests: int, connections: int) -> None:
    """Sends so many requests, one after the other on each connection; each connection is a user's."""
    left = iter(range(requests))

    async def client(number: int) -> None:
        message = b"POST /v1/chat/completions HTTP/1.1\r\nHost: luna\r\nContent-Type: application/json\r\n"
        message += COOKIE % number + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
        reader = writer = None
        for _ in left:
            if writer is None or reader is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(len(REPLY))
            if b"Connection: close" in head:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()

    await asyncio.gather(*(client(number) for number in range(connections)))


def cpu_seconds(master: int) -> float:
    """User and system time of nginx's master and workers so far."""
    workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return sum(int(Path(f"/proc/{p}/schedstat").read_text().split()[0]) for p in (str(master), *workers)) / 1e9


@contextlib.contextmanager
def nginx(folder: Path, text: str) -> Iterator[int]:
    """An nginx with that configuration; its master's pid."""
    folder.mkdir()
    (folder / "nginx.conf").write_text(text)
    (folder / TOKEN_INCLUDE).write_text(f'proxy_set_header x-flywheel-router-token "{"0" * 64}";\n')
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        sys.exit("nginx is not installed (apt-get install nginx)")
    with (folder / "stdout").open("wb") as out:
        process = subprocess.Popen(
            [program, "-e", "stderr", "-p", f"{folder}/", "-c", str(folder / "nginx.conf")], stdout=out
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


async def measure(rounds: int, requests: int, connections: int) -> dict[str, object]:
    """The runs, in turns."""
    up = Upstream((f"127.0.0.1:{PORTS['upstream']}",))
    config = RouterConfig(
        lineage="luna", test="luna-2", salt="5d0c6a52-8a6e-4c4b-9d0b-3a6a1c9f2d11", production=up, control=up,
        treatment=up, control_percent=10, treatment_percent=10, trusted_proxies=("10.0.0.0/8", "192.168.0.0/16"),
        port=PORTS["router"], health_port=PORTS["health"],
    )  # fmt: skip
    texts = {
        name: PLAIN.format(upstream=PORTS["upstream"], port=PORTS[name], buffer=buffer)
        for name, buffer in (("plain", ""), ("plainBuffered", " buffer=32k flush=1s"))
    } | {"router": render(config)}
    used: dict[str, list[float]] = {name: [] for name in texts}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        Path(scratch).chmod(0o755)
        server = subprocess.Popen([sys.executable, "-m", "benchmarks.router_cpu", "--upstream"])
        stack.callback(server.wait)
        stack.callback(server.terminate)
        masters = {n: stack.enter_context(nginx(Path(scratch) / n, text)) for n, text in texts.items()}
        for port in PORTS.values():
            await listening(port)
        for name in texts:
            await load(PORTS[name], requests // 4, connections)  # warm-up
        for number in range(rounds):
            for name in texts if number % 2 else reversed(texts):
                before = cpu_seconds(masters[name])
                await load(PORTS[name], requests, connections)
                used[name].append(cpu_seconds(masters[name]) - before)
    total = {name: sum(seconds) for name, seconds in used.items()}
    return {
        "ratio": round(total["plain"] / total["router"], 3),
        "ratioBuffered": round(total["plainBuffered"] / total["router"], 3),
        "rounds": [round(p / r, 2) for p, r in zip(used["plain"], used["router"], strict=True)],
        "requestsPerCpuSecond": {name: round(requests * rounds / seconds) for name, seconds in total.items()},
        "requestsPerRun": requests,
        "connections": connections,
    }


async def listening(port: int) -> None:
    """Waits until somebody listens there.

    Raises:
        TimeoutError: nobody does.
    """
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.upstream:
        asyncio.run(upstream())
        return
    began = time.monotonic()
    figures = asyncio.run(measure(chosen.rounds, chosen.requests, chosen.connections))
    print(json.dumps(figures | {"seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
