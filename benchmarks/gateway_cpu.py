"""CPU time of the gateway per request that is not streamed, without moderation, beside the same load sent directly.

Three processes: a tiny model server that answers at once, the gateway as it is started in a pod (a character, its log
on disk and synced every second), and the clients here. Load goes in turn through the gateway and directly. CPU
seconds of the processes are the kernel's own count, so that what else the machine does hardly matters; latencies
mean something on a machine that does nothing else. Prints one line of JSON; all times in milliseconds.
`gatewayCpu` is what is claimed: at most 3. Run it: python -m benchmarks.gateway_cpu
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp

TICKS: Final = os.sysconf("SC_CLK_TCK")
USERS: Final = 200
REPLY: Final = "The moon is out, and the tea is still warm. Tell me what you saw on your walk tonight. " * 3
PROMPT: Final = "I walked along the river and saw two herons and a very small dog. " * 2
MODEL: Final = """
import asyncio, json, sys
reply = json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0,
    "message": {"role": "assistant", "content": sys.argv[2]}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}}).encode()
answer = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(reply) + reply
async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\\r\\n\\r\\n")).lower()
            if b"content-length:" in head:
                await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\\r\\n")[0]))
            writer.write(answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
"""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [found.getsockname()[1] for found in sockets]


def body(number: int) -> bytes:
    """A chat of five messages."""
    talk = [("user", PROMPT), ("assistant", REPLY)] * 2 + [("user", f"{PROMPT} {number}")]
    return json.dumps({"model": "m", "messages": [{"role": role, "content": text} for role, text in talk]}).encode()


async def load(url: str, requests: int, clients: int, token: str) -> list[float]:
    """The latencies in seconds of so many requests by so many clients at a time."""
    latencies: list[float] = []
    left = iter(range(requests))

    async def client(session: aiohttp.ClientSession) -> None:
        for number in left:
            headers = {
                "content-type": "application/json", "x-flywheel-router-token": token, "x-flywheel-test": "luna-2",
                "x-flywheel-user": f"u-{number % USERS}", "x-flywheel-arm": ("control", "treatment")[number % 2],
            }  # fmt: skip
            began = time.perf_counter()
            async with session.post(url + "/v1/chat/completions", data=body(number), headers=headers) as response:
                await response.read()
                if response.status != 200:
                    raise SystemExit(f"{url} answered {response.status}")
            latencies.append(time.perf_counter() - began)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return latencies


@contextlib.asynccontextmanager
async def process(*command: str) -> AsyncIterator[int]:
    """A process while it is needed."""
    found = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield found.pid
    finally:
        found.terminate()
        await found.wait()


async def ready(url: str) -> None:
    """Waits for an answer."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url + "/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)


async def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything and answers the figures."""
    model_port, port, metrics_port = free_ports(3)
    (folder / "keys").mkdir()
    (folder / "keys" / "key").write_text("a key of the lineage for benchmarks", encoding="ascii")
    (folder / "keys" / "router-token").write_text("token", encoding="ascii")
    config = {
        "generation": "g", "lineage": "luna", "upstream": f"http://127.0.0.1:{model_port}", "defaultCharacter": "luna",
        "characters": [{"name": "luna", "systemPrompt": "You are Luna, a calm astronomer. " * 10}],
        "log": {"store": f"file://{folder}/traffic"}, "keyDirectory": f"{folder}/keys", "retentionDays": 90,
        "moderation": {
            "prompt": options.moderation == "on", "reply": options.moderation == "on", "threshold": 1.0,
            "detect": options.moderation != "off",
        },
        "limits": {"requestsPerSecond": 10000, "burst": 10000, "drainDelaySeconds": 0},
    }  # fmt: skip
    file = folder / "gateway.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    direct, through = f"http://127.0.0.1:{model_port}", f"http://127.0.0.1:{port}"
    serve = ("-m", "flywheel_gateway", "serve", "--config", str(file), "--host", "127.0.0.1")
    async with (
        process("-c", MODEL, str(model_port), REPLY) as model,
        process(*serve, "--port", str(port), "--metrics-port", str(metrics_port)) as gateway,
    ):
        await ready(through)
        await load(through, options.requests // 4, options.clients, "token")
        cpu: dict[str, list[float]] = {"gateway": [], "modelThrough": [], "modelDirect": []}
        latency: dict[str, list[float]] = {"through": [], "direct": []}
        for _ in range(options.rounds):
            before, model_before = cpu_seconds(gateway), cpu_seconds(model)
            latency["through"] += await load(through, options.requests, options.clients, "token")
            cpu["gateway"].append(cpu_seconds(gateway) - before)
            cpu["modelThrough"].append(cpu_seconds(model) - model_before)
            model_before = cpu_seconds(model)
            latency["direct"] += await load(direct, options.requests, options.clients, "token")
            cpu["modelDirect"].append(cpu_seconds(model) - model_before)
    rows = sum(path.read_bytes().count(b"\n") for path in (folder / "traffic").glob("turns/*/*.jsonl"))
    sent = options.requests * options.rounds + options.requests // 4
    if rows != sent:
        raise SystemExit(f"the log holds {rows} turns of {sent}")
    each = {name: [1000 * seconds / options.requests for seconds in found] for name, found in cpu.items()}
    return {
        "gatewayCpu": round(statistics.median(each["gateway"]), 3),
        "gatewayCpuWorstRound": round(max(each["gateway"]), 3),
        "modelCpuThrough": round(statistics.median(each["modelThrough"]), 3),
        "modelCpuDirect": round(statistics.median(each["modelDirect"]), 3),
        "medianLatencyThrough": round(1000 * statistics.median(latency["through"]), 3),
        "medianLatencyDirect": round(1000 * statistics.median(latency["direct"]), 3),
        "requests": options.requests * options.rounds,
        "clients": options.clients,
        "moderation": options.moderation,
        "turnsLogged": rows,
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="a round")
    parser.add_argument(
        "--moderation",
        choices=("off", "detect", "on"),
        default="off",
        help="detect: scores replies once they were sent",
    )
    parser.add_argument("--clients", type=int, default=8, help="at a time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), options))))


if __name__ == "__main__":
    main()
