"""Fixtures: a model server, and a gateway before it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.gateway.lab import Lab, Model, model_server, running


@pytest_asyncio.fixture
async def model() -> AsyncIterator[Model]:
    """A model server on loopback."""
    async with model_server() as found:
        yield found


@pytest_asyncio.fixture
async def lab(model: Model, tmp_path: Path) -> AsyncIterator[Lab]:
    """A gateway without moderation."""
    async with running(tmp_path / "traffic", model) as found:
        yield found


@pytest_asyncio.fixture
async def guarded(model: Model, tmp_path: Path) -> AsyncIterator[Lab]:
    """A gateway that moderates prompt and reply."""
    async with running(tmp_path / "traffic", model, moderation={"prompt": True, "reply": True}) as found:
        yield found
