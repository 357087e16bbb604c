"""Who serves where an arm does not, and what is never done twice."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from flywheel_contract.online import HEADER_ARM, HEADER_FALLBACK, HEADER_TEST, HEADER_USER
from flywheel_operator.manifests.router_config import Timeouts, Upstream
from tests.router.conftest import World
from tests.router.harness import PROXY, Answer, Reply, Request, Router, Served, ask, needs_nginx, routing, say

pytestmark = needs_nginx
CHAT = ("POST", "/v1/chat/completions")


async def hang_up(_: Request, writer: asyncio.StreamWriter) -> None:
    """A server that dies over a request."""
    writer.close()


async def say_nothing(_: Request, __: asyncio.StreamWriter) -> None:
    """A server that hangs."""
    await asyncio.Event().wait()


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port where connections are neither taken nor refused: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def ask_as(router: Router, user: str = "ada", method: str = "POST") -> Reply:
    """A request of a user that the proxy vouches for."""
    return await ask(router.config.port, method, CHAT[1], f"X-User-Id: {user}", body=b'{"n":1}', source=PROXY)


def everybody_treated(**changes: object) -> dict[str, object]:
    return {"control_percent": 0, "control": None, "treatment_percent": 100} | changes


def served_in_place(world: World) -> None:
    """Production got the whole request, marked."""
    (request,) = world.production.requests
    assert request.one(HEADER_ARM) == "treatment"
    assert request.one(HEADER_TEST) == "luna-2"
    assert request.one(HEADER_FALLBACK) == "1"
    assert request.one(HEADER_USER) == "ada"
    assert request.body == b'{"n":1}'
    assert request.target == CHAT[1]


async def test_an_arm_that_refuses_connections(world: World) -> None:
    world.treatment.stop()
    async with routing(world.config(**everybody_treated())) as router:
        assert (await ask_as(router)).text == "production"
        served_in_place(world)
        (line,) = await router.lines(1)
        assert (line["arm"], line["fallback"], line["status"]) == ("treatment", "1", 200)
        assert line["upstreamStatus"] == "502 : 200"


async def test_an_arm_that_takes_no_connection_costs_the_connect_timeout(world: World) -> None:
    with black_hole() as port:
        config = world.config(**everybody_treated(treatment=Upstream((f"127.0.0.1:{port}",))))
        async with routing(config) as router:
            began = time.monotonic()
            assert (await ask_as(router)).text == "production"
            assert config.timeouts.connect <= time.monotonic() - began < config.timeouts.connect + 3
            served_in_place(world)


async def test_an_arm_whose_name_does_not_resolve(world: World) -> None:
    gone = Upstream(("treatment.luna.invalid:8001",))
    async with routing(world.config(**everybody_treated(treatment=gone))) as router:
        assert (await ask_as(router)).text == "production"
        served_in_place(world)


async def test_an_arm_that_says_it_is_not_ready(world: World) -> None:
    world.treatment.answer = say("not yet", 503)
    async with routing(world.config(**everybody_treated())) as router:
        assert (await ask_as(router)).text == "production"
        served_in_place(world)
        assert len(world.treatment.requests) == 1


async def test_one_server_of_an_arm_is_gone(world: World) -> None:
    world.control.stop()
    two = Upstream((f"127.0.0.1:{world.control.port}", f"127.0.0.1:{world.treatment.port}"))
    async with routing(world.config(**everybody_treated(treatment=two))) as router:
        assert {(await ask_as(router)).text for _ in range(6)} == {"treatment"}
        assert not world.production.requests
        assert {request.one(HEADER_FALLBACK) for request in world.treatment.requests} == {None}


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (hang_up, 502, "failed"),
        (say_nothing, 504, "timeout"),
        (say("mine", 502), 502, "failed"),
        (say("mine", 504), 504, "timeout"),
    ],
    ids=["hung up", "no reply", "says 502", "says 504"],
)
async def test_what_may_have_been_executed_is_not_executed_twice(
    world: World, answer: Answer, status: int, code: str
) -> None:
    world.treatment.answer = answer
    config = world.config(**everybody_treated(timeouts=Timeouts(connect=0.5, read=0.3)))
    async with routing(config) as router:
        got = await ask_as(router)
        assert got.status == status
        assert json.loads(got.text)["error"]["code"] == code
        assert not world.production.requests
        assert len(world.treatment.requests) == 1
        # What changes nothing may be asked again.
        assert (await ask_as(router, method="GET")).text == "production"


@pytest.mark.parametrize("status", [200, 400, 401, 404, 422, 429, 500])
async def test_every_other_answer_is_passed_on_as_it_is(world: World, status: int) -> None:
    world.treatment.answer = say("mine", status, "X-Thing: a", "Set-Cookie: b=c", "Retry-After: 7")
    async with routing(world.config(**everybody_treated())) as router:
        got = await ask_as(router)
        assert (got.status, got.text) == (status, "mine")
        assert (got.header("x-thing"), got.header("set-cookie"), got.header("retry-after")) == ("a", "b=c", "7")


async def test_a_reply_that_broke_off_is_not_begun_anew(world: World) -> None:
    async def break_off(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\npart")
        await writer.drain()
        writer.close()

    world.treatment.answer = break_off
    async with routing(world.config(**everybody_treated())) as router:
        got = await ask_as(router)
        assert (got.status, got.body) == (200, b"part")
        assert not world.production.requests


def unavailable(got: Reply) -> bool:
    """A clean answer that says: nothing was executed, ask again."""
    code, kind = json.loads(got.text)["error"]["code"], got.header("content-type")
    return (got.status, code, got.header("retry-after"), kind) == (503, "unavailable", "1", "application/json")


async def test_nobody_serves(world: World) -> None:
    for upstream in (world.production, world.control, world.treatment):
        upstream.stop()
    async with routing(world.config(control_percent=30, treatment_percent=30)) as router:
        for user in range(20):  # enrolled and not
            assert unavailable(await ask_as(router, f"u{user}"))


async def test_production_comes_back_at_once(world: World) -> None:
    world.treatment.stop()
    world.production.stop()
    async with routing(world.config(**everybody_treated())) as router:
        for _ in range(20):  # nothing that failed is remembered
            assert unavailable(await ask_as(router))
        production = Served(say("back"), world.production.port)
        await production.start()
        assert (await ask_as(router)).text == "back"
        treatment = Served(say("treated"), world.treatment.port)
        await treatment.start()
        assert (await ask_as(router)).text == "treated"
        await production.close()
        await treatment.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_production_fails_over_a_request(world: World, method: str) -> None:
    world.production.answer = hang_up
    config = world.config(test="", control=None, treatment=None, control_percent=0, treatment_percent=0)
    async with routing(config) as router:
        got = await ask_as(router, method=method)
        assert (got.status, json.loads(got.text)["error"]["code"]) == (502, "failed")
        world.production.answer = say("later", 503)
        assert unavailable(await ask_as(router, method=method))


async def test_production_fails_in_place_of_an_arm(world: World) -> None:
    world.treatment.stop()
    world.production.answer = hang_up
    async with routing(world.config(**everybody_treated())) as router:
        got = await ask_as(router)
        assert (got.status, json.loads(got.text)["error"]["code"]) == (502, "failed")
        world.production.answer = say("later", 503)
        assert unavailable(await ask_as(router))
        assert len(world.production.requests) == 2


async def test_a_paused_treatment_keeps_its_users(world: World) -> None:
    async with routing(world.config(treatment_paused=True, treatment=None)) as router:
        arms = {user: (await ask_as(router, user)).text for user in map(str, range(40))}
    assert set(arms.values()) == {"control", "production"}
    assert not world.treatment.requests
    for request in world.production.requests:
        assert (request.one(HEADER_ARM), request.one(HEADER_FALLBACK)) == ("treatment", "1")
    for request in world.control.requests:
        assert (request.one(HEADER_ARM), request.one(HEADER_FALLBACK)) == ("control", None)
    async with routing(world.config()) as router:
        again = {user: (await ask_as(router, user)).text for user in arms}
    in_control = [{user for user, arm in seen.items() if arm == "control"} for seen in (arms, again)]
    assert in_control[0] == in_control[1]
