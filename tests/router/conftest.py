"""A router with three upstreams, ready in every test that asks for it."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from flywheel_operator.manifests.router_config import RouterConfig, Timeouts, Upstream
from tests.router.harness import PROXY, Router, Served, free_port, routing, say, served

ARMS = ("production", "control", "treatment")


@dataclass
class World:
    """Three upstreams, which answer with their names, and the configuration that leads to them."""

    production: Served
    control: Served
    treatment: Served

    def config(self, **changes: Any) -> RouterConfig:  # noqa: ANN401 -- any field
        """Half of the users in each arm, unless changed."""
        given: dict[str, Any] = {
            "lineage": "luna",
            "test": "luna-2",
            "salt": "uid-1",
            "production": Upstream((f"127.0.0.1:{self.production.port}",)),
            "control": Upstream((f"127.0.0.1:{self.control.port}",)),
            "treatment": Upstream((f"127.0.0.1:{self.treatment.port}",)),
            "control_percent": 50,
            "treatment_percent": 50,
            "trusted_proxies": (f"{PROXY}/32",),
            "timeouts": Timeouts(connect=0.5, read=10),
            "port": free_port(),
            "health_port": free_port(),
        }
        return RouterConfig(**given | changes)

    def got(self, arm: str) -> Served:
        """The upstream of that name."""
        found: Served = getattr(self, arm)
        return found


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """The upstreams."""
    async with contextlib.AsyncExitStack() as stack:
        yield World(*[await stack.enter_async_context(served(say(arm))) for arm in ARMS])


@pytest.fixture
async def router(world: World) -> AsyncIterator[Router]:
    """A router to them."""
    async with routing(world.config()) as running:
        yield running
