"""The process of `flywheel-gateway serve`: two servers in one event loop, the log's threads, and an end in order.

On SIGTERM readiness goes first, then (after `drainDelaySeconds`) the door closes, what has begun is finished within
`drainSeconds`, the log is written out, and the metrics go last.
"""

import asyncio
import contextlib
import logging
import re
import signal
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from flywheel_contract.gateway_config import GatewayConfig
from flywheel_gateway.app import App, metrics_app, user_app
from flywheel_gateway.errors import ConfigError
from flywheel_gateway.keys import read_keys
from flywheel_gateway.log_writer import LogWriter
from flywheel_gateway.services import Services, assemble
from flywheel_gateway.shipping import Shipper
from flywheel_gateway.stores import BucketStore, open_store

_log = logging.getLogger(__name__)


class GatewayServer(uvicorn.Server):
    """Leaves the signals to us: there are two of its kind."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Process:
    """Everything that `serve` starts."""

    def __init__(self, config: GatewayConfig) -> None:
        """Raises ConfigError where key or store cannot be used."""
        self._config = config
        self._keys, self._router_token = read_keys(Path(config.key_directory))
        store = open_store(config.log.store)
        self._shipper: Shipper | None = None
        if isinstance(store, BucketStore):
            root = Path(config.log.spool)
            self._shipper = Shipper(root, store)
        else:
            root = store.root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{root} cannot be made ({error.strerror}): is the claim writable?") from error
        self.writer = LogWriter(
            root,
            config.log,
            writer_name(),
            alone=self._shipper is not None,
            finished=self._shipper.wake if self._shipper is not None else lambda: None,
        )

    async def run(self, host: str, port: int, metrics_port: int) -> None:
        """Serves until SIGTERM or SIGINT. Raises ConfigError where it cannot listen."""
        config = self._config
        sockets = [listen(host, port), listen(host, metrics_port)]
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        services = assemble(config, self._keys, self._router_token, self.writer)
        self.writer.start()
        if self._shipper is not None:
            services.metrics.watch_shipping(self._shipper)
            self._shipper.start()
        moderation = config.moderation
        if moderation.prompt or moderation.reply or moderation.detect:
            await services.moderator.warm_up()
        users = GatewayServer(server_settings(user_app(services), host, port, config.limits.drain_seconds))
        metrics = GatewayServer(server_settings(metrics_app(services), host, metrics_port, 1))
        serving = [
            asyncio.create_task(server.serve([listener]))
            for server, listener in zip((users, metrics), sockets, strict=True)
        ]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopping, *serving], return_when=asyncio.FIRST_COMPLETED)
            _log.info("draining")
            services.draining = True
            await asyncio.sleep(config.limits.drain_delay_seconds)
            users.should_exit = True
            await serving[0]
        finally:
            await self._close(services)
            metrics.should_exit = users.should_exit = True
            stopping.cancel()
            await asyncio.gather(*serving, stopping, return_exceptions=True)

    async def _close(self, services: Services) -> None:
        await services.settle()
        await services.upstream.close()
        services.moderator.close()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.writer.close)
        if self._shipper is not None:
            await loop.run_in_executor(None, self._shipper.close)
        _log.info("the log is written; rows lost: %d", sum(self.writer.lost.values()))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError where the port is taken or the address not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=family == socket.AF_INET6)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def writer_name() -> str:
    """The pod's name and something drawn: a container that starts anew in its pod is another writer."""
    host = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().lower())[:63].strip("-") or "gateway"
    return f"{host}-{uuid.uuid4().hex[:8]}"


def server_settings(app: App, host: str, port: int, drain_seconds: int) -> uvicorn.Config:
    """How uvicorn serves an app of ours; port 0 takes a free one."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        # Addresses that a client names itself must not pass for its own.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=drain_seconds,
    )
