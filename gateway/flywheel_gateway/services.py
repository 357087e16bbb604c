"""What the handlers share: everything that lives as long as the process."""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from flywheel_contract.gateway_config import CharacterPrompt, GatewayConfig
from flywheel_gateway.capture import Recorder
from flywheel_gateway.errors import ConfigError
from flywheel_gateway.identity import Identifier
from flywheel_gateway.keys import Keys
from flywheel_gateway.limits import RateLimiter
from flywheel_gateway.log_writer import LogWriter
from flywheel_gateway.metrics import Metrics
from flywheel_gateway.moderation import Moderator
from flywheel_gateway.upstream import Upstream
from flywheel_safety.choice import chosen
from flywheel_safety.classifier import Classifier, RefusedError

_log = logging.getLogger(__name__)

BACKGROUND_MAX: Final = 256
"""Replies that wait for a detector; with more, the newest are counted as not seen."""


@dataclass(slots=True)
class Services:
    """The parts, put together."""

    config: GatewayConfig
    keys: Keys
    identifier: Identifier
    limiter: RateLimiter
    upstream: Upstream
    moderator: Moderator
    recorder: Recorder
    metrics: Metrics
    writer: LogWriter
    characters: dict[str, CharacterPrompt]
    """By name."""
    in_flight: int = 0
    draining: bool = False
    _background: set[asyncio.Task[None]] = field(default_factory=set)
    _ready: tuple[float, bool] = (0.0, False)

    def refusal(self, character: str | None) -> str:
        """What `character` says in place of what is unsafe, or could not be checked."""
        known = self.characters.get(character or "")
        return (known.refusal if known is not None else None) or self.config.moderation.safe_reply

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` beside the requests; too many at a time are not run, and counted."""
        if len(self._background) >= BACKGROUND_MAX:
            work.close()
            self.metrics.undetected.inc()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def settle(self) -> None:
        """Waits for what runs beside the requests."""
        while self._background:
            await asyncio.wait(self._background)

    async def is_ready(self) -> bool:
        """Whether a request can be served; the model server is asked once a second at most."""
        if self.draining or not self.writer.alive:
            return False
        asked, answer = self._ready
        if time.monotonic() - asked >= 1:
            answer = await self.upstream.is_ready()
            self._ready = (time.monotonic(), answer)
        return answer


def assemble(
    config: GatewayConfig,
    keys: Keys,
    router_token: bytes | None,
    writer: LogWriter,
    classifier: Classifier | None = None,
) -> Services:
    """Builds the services; needs a running event loop. `classifier` stands for the configured one.

    Raises:
        ConfigError: the configured classifier cannot be set up.
    """
    metrics = Metrics(config.generation)
    try:
        classifier = chosen(config.moderation, os.environ) if classifier is None else classifier
    except RefusedError as error:
        raise ConfigError(f"moderation.{error}") from error
    moderator = Moderator(config.moderation.threshold, classifier)
    metrics.watch_log(writer)
    metrics.watch_moderation(moderator)
    return Services(
        config=config,
        keys=keys,
        identifier=Identifier(
            keys,
            router_token,
            plain_ids=config.id_hash == "None",
            proxies=config.trusted_proxies,
            user_header=config.user_header,
            cookie_secure=config.cookie_secure,
        ),
        limiter=RateLimiter(config.limits.requests_per_second, config.limits.burst),
        upstream=Upstream(config.upstream, config.limits),
        moderator=moderator,
        recorder=Recorder(config, writer, metrics),
        metrics=metrics,
        writer=writer,
        characters={character.name: character for character in config.characters},
    )


def new_id() -> str:
    """A random id for sessions, turns and conversations."""
    return uuid.uuid4().hex
