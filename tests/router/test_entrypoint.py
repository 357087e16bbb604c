"""The container: what it starts with, what it does not start with, and what it follows."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel_contract.online import HEADER_FALLBACK, HEADER_ROUTER_TOKEN
from flywheel_operator.manifests.router_config import RouterConfig, Upstream
from tests.router.conftest import World
from tests.router.harness import (
    ENTRYPOINT,
    TOKEN,
    Router,
    ask,
    environment,
    needs_nginx,
    prepared,
    read_head,
    routing,
    until,
)

pytestmark = needs_nginx


@pytest.mark.parametrize("token", ["", "short", "a" * 20 + '";', "a" * 20 + "\n" + "b" * 20], ids=repr)
def test_it_does_not_start_without_a_token(world: World, token: str) -> None:
    with prepared(world.config()) as folder:
        (folder / "token").write_text(token)
        done = subprocess.run(
            [str(ENTRYPOINT), "serve"], env=environment(folder), capture_output=True, text=True, check=False, timeout=30
        )
    assert done.returncode == 1
    assert "token" in done.stderr
    assert token.strip() == "" or token not in done.stderr


def test_it_does_not_start_where_production_has_no_address(world: World) -> None:
    with prepared(world.config(production=Upstream(("luna.invalid:80",)))) as folder:
        done = subprocess.run(
            [str(ENTRYPOINT), "serve"], env=environment(folder), capture_output=True, text=True, check=False, timeout=30
        )
    assert done.returncode == 1
    assert "production's name does not resolve" in done.stderr


def test_an_unknown_command_is_the_users_mistake() -> None:
    assert subprocess.run([str(ENTRYPOINT), "fly"], capture_output=True, check=False, timeout=30).returncode == 64


async def test_a_name_is_resolved(world: World) -> None:
    named = Upstream((f"localhost:{world.production.port}",))
    plain = world.config(
        test="", control=None, treatment=None, control_percent=0, treatment_percent=0, production=named
    )
    async with routing(plain) as router:
        assert (await ask(router.config.port)).text == "production"


async def test_a_new_token_is_taken_up(world: World) -> None:
    async with routing(world.config()) as router:
        arm = (await ask(router.config.port)).text
        assert world.got(arm).requests[-1].one(HEADER_ROUTER_TOKEN) == TOKEN
        (router.folder / "token").write_text("another-token-0123456789")
        await until(lambda: "reads its configuration anew" in router.errors)
        async with asyncio.timeout(20):
            while world.got(arm).requests[-1].one(HEADER_ROUTER_TOKEN) != "another-token-0123456789":
                arm = (await ask(router.config.port)).text


async def test_a_token_that_is_gone_changes_nothing(world: World) -> None:
    async with routing(world.config()) as router:
        os.rename(router.folder / "token", router.folder / "hidden")
        await until(lambda: "No such file" in router.errors)
        assert (await ask(router.config.port)).status == 200
        os.rename(router.folder / "hidden", router.folder / "token")


async def test_the_drain_ends_when_nobody_is_idle_any_more(world: World) -> None:
    async with routing(world.config()) as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.config.port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: luna\r\n\r\n")
        _, headers = await read_head(reader)
        await reader.readexactly(int(dict(headers)["content-length"]))
        drain = router.drain()
        with pytest.raises(subprocess.TimeoutExpired):
            await asyncio.to_thread(drain.wait, 1.5)
        writer.close()
        await until(lambda: drain.poll() is not None)
        assert drain.returncode == 0
        # And after its time in any case.
        reader, writer = await asyncio.open_connection("127.0.0.1", router.config.port)
        limited = router.drain(1)
        await until(lambda: limited.poll() is not None)
        assert limited.returncode == 0
        writer.close()


async def test_addresses_are_followed_and_never_forgotten(world: World) -> None:
    """A Service that is made anew has another address; a name server that is away takes none away."""
    with world_with_names(world) as (config, names):
        async with routing(config, names.parent) as router:
            assert (await ask(router.config.port)).text == "production"  # the treatment's Service is not there yet
            assert world.production.requests[-1].one(HEADER_FALLBACK) == "1"
            names.write_text("127.0.0.1 production\n127.0.0.1 treatment\n")
            await until(lambda: "reads its configuration anew" in router.errors)
            await eventually(router, "treatment")
            names.write_text("")
            before = (names.parent / "asked").stat().st_size
            await until(lambda: (names.parent / "asked").stat().st_size > before + 4)
            assert (await ask(router.config.port)).text == "treatment"
            assert router.errors.count("reads its configuration anew") == 1


@contextlib.contextmanager
def world_with_names(world: World) -> Iterator[tuple[RouterConfig, Path]]:
    """A configuration with names for servers, and the file that a stand-in for `getent` finds them in."""
    config = world.config(
        production=Upstream((f"production:{world.production.port}",)),
        treatment=Upstream((f"treatment:{world.treatment.port}",)),
        treatment_percent=100, control_percent=0, control=None,
    )  # fmt: skip
    with prepared(config) as folder:
        (folder / "bin").mkdir()
        (folder / "names").write_text("127.0.0.1 production\n")
        (folder / "asked").write_text("")
        (folder / "asked").chmod(0o666)
        getent = folder / "bin" / "getent"
        getent.write_text(f'#!/bin/sh\nprintf x >>{folder}/asked\ngrep " $2\\$" {folder}/names\n')
        getent.chmod(0o755)
        yield config, folder / "names"


async def eventually(router: Router, text: str) -> None:
    """Asks until the answer is that one: a worker that is told to end may take one more request."""
    async with asyncio.timeout(20):
        while (await ask(router.config.port)).text != text:
            pass
