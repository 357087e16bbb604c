"""What reaches the upstream, whoever asks and whatever they send; what the log says of it."""

import json

import pytest

from flywheel_contract.online import (
    COOKIE_USER,
    HEADER_ARM,
    HEADER_FALLBACK,
    HEADER_NEW_USER,
    HEADER_ROUTER_TOKEN,
    HEADER_SESSION,
    HEADER_TEST,
    HEADER_USER,
)
from tests.router.conftest import ARMS, World
from tests.router.harness import PROXY, TOKEN, Request, Router, ask, needs_nginx, routing

pytestmark = needs_nginx
SIGNATURE = "A" * 43
CHAT = ("POST", "/v1/chat/completions")


def last(world: World) -> Request:
    """The only request that any upstream got."""
    requests = [request for arm in ARMS for request in world.got(arm).requests]
    assert len(requests) == 1
    return requests[0]


async def test_a_configured_proxy_vouches_for_the_user(world: World, router: Router) -> None:
    got = await ask(router.config.port, *CHAT, "X-User-Id: ada@example.org", source=PROXY)
    request = last(world)
    assert request.one(HEADER_USER) == "ada@example.org"
    assert request.one(HEADER_NEW_USER) is None
    assert request.one(HEADER_ARM) == got.text
    assert request.one(HEADER_TEST) == "luna-2"
    assert request.one(HEADER_FALLBACK) is None
    assert request.one(HEADER_ROUTER_TOKEN) == TOKEN
    assert request.one("X-User-Id") is None
    assert (request.method, request.target, request.body) == ("POST", "/v1/chat/completions", b"{}")


async def test_nobody_else_vouches_for_anybody(world: World, router: Router) -> None:
    await ask(router.config.port, *CHAT, "X-User-Id: ada@example.org")
    request = last(world)
    assert request.one(HEADER_USER) is None
    assert request.one("X-User-Id") is None
    assert len(str(request.one(HEADER_NEW_USER))) == 32


async def test_the_routers_own_headers_never_come_from_a_client(world: World, router: Router) -> None:
    forged = [
        f"{name}: forged"
        for ours in (HEADER_USER, HEADER_NEW_USER, HEADER_TEST, HEADER_ARM, HEADER_FALLBACK, HEADER_ROUTER_TOKEN)
        for name in (ours, ours.upper(), ours.replace("-", "_"))
    ]
    await ask(router.config.port, *CHAT, *forged, *forged, f"{HEADER_SESSION}: mine", "Authorization: Bearer key")
    request = last(world)
    assert "forged" not in {value for _, value in request.headers}
    assert request.one(HEADER_ROUTER_TOKEN) == TOKEN
    assert request.one(HEADER_SESSION) == "mine"
    assert request.one("Authorization") == "Bearer key"


async def test_a_cookie_chooses_the_arm_and_reaches_the_gateway_whole(world: World, router: Router) -> None:
    cookie = f"{COOKIE_USER}=user_1.{SIGNATURE}"
    arms = {(await ask(router.config.port, *CHAT, f"Cookie: a=b; {cookie}; c=d")).text for _ in range(5)}
    assert len(arms) == 1
    for request in world.got(arms.pop()).requests:
        assert request.one("cookie") == f"a=b; {cookie}; c=d"
        assert request.one(HEADER_USER) is None
        assert request.one(HEADER_NEW_USER) is None


@pytest.mark.parametrize("value", ["x", "x.y", f".{SIGNATURE}", f'a"b.{SIGNATURE}', f"{'a' * 65}.{SIGNATURE}"])
async def test_what_cannot_be_our_cookie_is_somebody_new(world: World, router: Router, value: str) -> None:
    await ask(router.config.port, *CHAT, f"Cookie: {COOKIE_USER}={value}")
    assert len(str(last(world).one(HEADER_NEW_USER))) == 32


async def test_the_same_id_has_the_same_arm_by_header_and_by_cookie(world: World, router: Router) -> None:
    for number in range(20):
        by_header = await ask(router.config.port, *CHAT, f"X-User-Id: u{number}", source=PROXY)
        by_cookie = await ask(router.config.port, *CHAT, f"Cookie: {COOKIE_USER}=u{number}.{SIGNATURE}")
        assert by_header.text == by_cookie.text


async def test_a_new_user_stays_where_the_drawn_id_leads(world: World, router: Router) -> None:
    for _ in range(20):
        first = await ask(router.config.port, *CHAT)
        drawn = world.got(first.text).requests[-1].one(HEADER_NEW_USER)
        again = await ask(router.config.port, *CHAT, f"Cookie: {COOKIE_USER}={drawn}.{SIGNATURE}")
        assert again.text == first.text


HOSTILE = [
    "quotes\"and'more",
    "back\\slash",
    "../../etc/passwd",
    "$http_cookie ${request_id}",
    "semi; colon { } # comment",
    "\xe9\xff latin",
    "%0d%0aX-Injected: 1",
    "a" * 256,
]


@pytest.mark.parametrize("user", HOSTILE)
async def test_a_hostile_id_is_only_an_id(world: World, router: Router, user: str) -> None:
    got = await ask(router.config.port, *CHAT, f"X-User-Id: {user}", source=PROXY)
    assert got.status == 200
    assert last(world).one(HEADER_USER) == user
    assert last(world).one("X-Injected") is None
    line = (await router.lines(1))[0]
    assert user not in json.dumps(line, ensure_ascii=False)


@pytest.mark.parametrize("user", ["a" * 257, "a" * 10_000, "tab\tin it", "bell\x07", "del\x7f"])
async def test_an_impossible_id_is_refused(world: World, router: Router, user: str) -> None:
    got = await ask(router.config.port, *CHAT, f"X-User-Id: {user}", source=PROXY)
    assert got.status == 400
    assert not any(world.got(arm).requests for arm in ARMS)
    # The same from somebody whose word does not count: passed by, unless it is too long for any header.
    assert (await ask(router.config.port, *CHAT, f"X-User-Id: {user}")).status == (200 if len(user) < 8000 else 400)


async def test_an_empty_id_is_none(world: World, router: Router) -> None:
    assert (await ask(router.config.port, *CHAT, "X-User-Id:", source=PROXY)).status == 200
    assert last(world).one(HEADER_NEW_USER)


async def test_the_log_names_the_arm_and_nobody(world: World, router: Router) -> None:
    port = router.config.port
    got = await ask(port, *CHAT, "X-User-Id: ada-secret", "Cookie: flywheel_user=ada-secret.x", source=PROXY)
    await ask(port, "GET", "/users/ada-secret?user=ada-secret", "Referer: ada-secret", "User-Agent: ada-secret")
    await ask(port, "ADA-SECRET", "/v1/models", body=b"")
    lines = await router.lines(3)
    drawn = [r.one(HEADER_NEW_USER) for arm in ARMS for r in world.got(arm).requests if r.one(HEADER_NEW_USER)]
    assert len(drawn) == 2
    for secret in ["ada-secret", "ADA-SECRET", *map(str, drawn)]:
        assert secret not in router.log_text
        assert secret not in router.errors
    first = next(line for line in lines if line["route"] == "/v1/chat/completions")
    assert first["arm"] == got.text
    assert (first["lineage"], first["test"], first["fallback"]) == ("luna", "luna-2", "")
    assert (first["status"], first["upstreamStatus"]) == (200, "200")
    assert float(first["upstreamSeconds"]) >= 0
    assert {line["route"] for line in lines} == {"/v1/chat/completions", "/v1/models", "other"}


async def test_health_has_a_port_of_its_own(world: World, router: Router) -> None:
    health, users = router.config.health_port, router.config.port
    assert (await ask(health, "GET", "/healthz", body=b"")).status == 200
    assert "Active connections" in (await ask(health, "GET", "/stub_status", body=b"")).text
    assert (await ask(health, "GET", "/v1/models", body=b"")).status == 404
    # On the users' port there is nothing but the upstreams.
    assert (await ask(users, "GET", "/stub_status", body=b"")).text in ARMS
    assert (await ask(users, "GET", "/healthz", body=b"")).text in ARMS


async def test_the_target_is_passed_on_as_it_came(world: World, router: Router) -> None:
    target = "/v1/a%2Fb//c/../d?x=%20&y=$z"
    await ask(router.config.port, "GET", target, body=b"")
    assert last(world).target == target


async def test_a_body_may_be_so_large_and_no_larger(world: World) -> None:
    async with routing(world.config(max_body_bytes=300_000)) as router:
        whole = bytes(300_000)
        await ask(router.config.port, *CHAT, body=whole)
        assert last(world).body == whole
        too_large = await ask(router.config.port, *CHAT, body=whole + b"x")
        assert too_large.status == 413
        assert json.loads(too_large.text)["error"]["code"] == "too_large"
        assert too_large.header("content-type") == "application/json"


async def test_without_a_test_everybody_gets_production(world: World) -> None:
    plain = world.config(test="", control=None, treatment=None, control_percent=0, treatment_percent=0)
    async with routing(plain) as router:
        assert {(await ask(router.config.port)).text for _ in range(20)} == {"production"}
    for request in world.production.requests:
        assert request.one(HEADER_ARM) == "none"
        assert request.one(HEADER_TEST) is None
