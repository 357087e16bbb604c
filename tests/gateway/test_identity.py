"""Who a request is from: cookies, proxies, the router, and those who pretend."""

import asyncio
import re
from pathlib import Path

import aiohttp
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
from tests.gateway.lab import KEYS, ROUTER_TOKEN, Lab, Model, routed, running


def cookie_of(headers: aiohttp.typedefs.LooseHeaders) -> str:
    """The value of the cookie that an answer sets."""
    match = re.match(rf"{COOKIE_USER}=([^;]+);", headers["set-cookie"])  # type: ignore[index,call-overload]
    assert match is not None
    return match[1]


async def users(lab: Lab) -> list[str]:
    """Who was logged, in order."""
    return [row["user_id"] for row in await lab.rows("events")]


async def test_somebody_new_gets_a_cookie_and_stays_the_same(lab: Lab) -> None:
    _, _, headers = await lab.chat()
    cookie = cookie_of(headers)
    for word in ("HttpOnly", "SameSite=Lax", "Path=/"):
        assert word in headers["set-cookie"]
    assert "Secure" not in headers["set-cookie"]
    assert KEYS.user_of_cookie(cookie) is not None

    _, _, headers = await lab.chat()
    assert "set-cookie" not in headers
    first, second = await users(lab)
    assert first == second == KEYS.hash_user(cookie.split(".")[0])


async def test_a_secure_cookie(model: Model, tmp_path: Path) -> None:
    async with running(tmp_path / "t", model, cookieSecure=True) as lab:
        _, _, headers = await lab.chat()
        assert headers["set-cookie"].endswith("; Secure")


@pytest.mark.parametrize(
    "forged",
    ["admin.AAAA", "admin", "admin.", ".", "", "../x.y", 'a".b', KEYS.cookie("a").replace("a.", "b.", 1), "a" * 5000],
)
async def test_a_forged_cookie_is_nobodys(lab: Lab, forged: str) -> None:
    """The router split by the forged id, so the arm is not the new user's either."""
    headers = {**routed(None), "cookie": f"{COOKIE_USER}={forged}"}
    status, _, answer = await lab.chat(headers=headers)
    assert status == 200
    drawn = KEYS.user_of_cookie(cookie_of(answer))
    assert drawn is not None
    (event,) = await lab.rows("events")
    assert event["user_id"] == KEYS.hash_user(drawn)
    assert (event["enrolled"], event.get("arm"), event.get("test")) == (False, None, None)
    assert "flywheel_gateway_forged_cookies_total 1.0" in await lab.metrics()


async def test_the_router_vouches_draws_and_names_the_arm(lab: Lab) -> None:
    await lab.chat(headers={**routed("u-1", arm="control"), HEADER_FALLBACK: "1"})
    _, _, answer = await lab.chat(headers={**routed(None), HEADER_NEW_USER: "drawn-1"})
    assert cookie_of(answer) == KEYS.cookie("drawn-1")
    lab.client.cookie_jar.clear()
    await lab.chat(headers={**routed(None), "cookie": f"x=1; {COOKIE_USER}={KEYS.cookie('known')}"})
    await lab.chat(headers=routed("u-2", arm="none"))
    assert await users(lab) == [KEYS.hash_user(u) for u in ("u-1", "drawn-1", "known", "u-2")]
    arms = [(r.get("arm"), r["enrolled"], r["fallback"]) for r in await lab.rows("events")]
    assert arms == [
        ("control", True, True),
        ("treatment", True, False),
        ("treatment", True, False),
        (None, False, False),
    ]


async def test_an_id_that_the_router_drew_and_that_cannot_be_one_is_drawn_anew(lab: Lab) -> None:
    _, _, answer = await lab.chat(headers={**routed(None), HEADER_NEW_USER: "a b"})
    assert not cookie_of(answer).startswith("a b")


@pytest.mark.parametrize("token", ["", "wrong", ROUTER_TOKEN.decode() + "x", ROUTER_TOKEN.decode()[:-1]])
async def test_without_the_routers_token_its_headers_are_air(lab: Lab, token: str) -> None:
    headers = {**routed("victim"), HEADER_ROUTER_TOKEN: token, HEADER_NEW_USER: "victim"}
    await lab.chat(headers=headers)
    (event,) = await lab.rows("events")
    assert event["user_id"] != KEYS.hash_user("victim")
    assert (event["enrolled"], event.get("arm")) == (False, None)
    assert "flywheel_gateway_untrusted_headers_total 1.0" in await lab.metrics()


async def test_where_there_is_no_router_nobody_is_believed_to_be_it(model: Model, tmp_path: Path) -> None:
    async with running(tmp_path / "t", model, router_token=None) as lab:
        await lab.chat(headers={**routed("victim"), HEADER_ROUTER_TOKEN: ""})
        assert await users(lab) != [KEYS.hash_user("victim")]


async def test_a_proxy_is_believed_only_from_its_address(model: Model, tmp_path: Path) -> None:
    for number, (network, believed) in enumerate([("127.0.0.0/8", True), ("10.0.0.0/8", False)]):
        settings = {"trustedProxies": [network], "userHeader": "x-user"}
        async with running(tmp_path / str(number), model, **settings) as lab:
            _, _, answer = await lab.chat(headers={"x-user": "u-1", "x-forwarded-for": "10.1.1.1"})
            assert (await users(lab) == [KEYS.hash_user("u-1")]) is believed
            assert ("set-cookie" in answer) is not believed


async def test_behind_the_router_the_proxys_header_is_the_routers_matter(model: Model, tmp_path: Path) -> None:
    settings = {"trustedProxies": ["127.0.0.0/8"], "userHeader": "x-user"}
    async with running(tmp_path / "t", model, **settings) as lab:
        await lab.chat(headers={**routed("u-1"), "x-user": "client-says"})
        await lab.chat(headers={**routed(None), "x-user": "client-says"})
        first, second = await users(lab)
        assert first == KEYS.hash_user("u-1")
        assert second != KEYS.hash_user("client-says")


@pytest.mark.parametrize(
    "user", ["../../etc/passwd", "a'b\"c`$(id)", "Zoë 🌙", "x" * 256, "'; DROP TABLE events; --", "\\n"]
)
async def test_an_odd_user_id_is_hashed_like_any_other(lab: Lab, user: str) -> None:
    status, _, _ = await lab.chat(headers=routed(user))
    assert status == 200
    assert await users(lab) == [KEYS.hash_user(user)]
    assert {path.name for path in lab.store.rglob("*") if path.is_dir()} <= {"events", "exposures", "turns"} | {
        path.name for path in lab.store.glob("*/date=*")
    }


@pytest.mark.parametrize("user", ["", "x" * 257, "x" * 10_000, "tab\there"])
async def test_what_cannot_be_a_user_id_is_refused(lab: Lab, user: str) -> None:
    status, error, _ = await lab.chat(headers=routed(user))
    assert (status, error["error"]["code"]) == (400, "invalid_user")
    assert await lab.rows("events") == []


async def test_bytes_that_http_does_not_allow_and_headers_that_come_twice(lab: Lab) -> None:
    url = lab.client._base_url
    assert url is not None

    async def raw(*lines: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        head = [b"POST /v1/sessions HTTP/1.1", b"host: x", b"content-length: 2", b"connection: close"]
        token = f"{HEADER_ROUTER_TOKEN}: {ROUTER_TOKEN.decode()}".encode()
        writer.write(b"\r\n".join([*head, token, *lines]) + b"\r\n\r\n{}")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer.split(b"\r\n")[0]

    name = HEADER_USER.encode()
    assert b" 400 " in await raw(name + b": a\0b")
    assert b" 400 " in await raw(name + b": a\nb: c")  # a bare newline is no end of a header
    assert b" 400 " in await raw(name + b": \xff\xfe")
    assert b" 400 " in await raw(name + b": a", name + b": b")
    assert b" 431 " in await raw(*(f"x-{i}: {'y' * 4000}".encode() for i in range(10)))
    assert b" 201 " in await raw(name + b": a")
    (exposure,) = await lab.rows("exposures")
    assert exposure["user_id"] == KEYS.hash_user("a")


async def test_plain_ids_for_those_who_join_with_their_own_tables(model: Model, tmp_path: Path) -> None:
    async with running(tmp_path / "t", model, idHash="None") as lab:
        await lab.chat(headers=routed("anna@example.org"))
        assert await users(lab) == ["anna@example.org"]
        (turn,) = await lab.rows("turns")
        assert turn["user"] == "anna@example.org"
        _, session, _ = await lab.chat({}, headers=routed("anna@example.org"), path="/v1/sessions")
        status, _, _ = await lab.chat(
            {"type": "thumbs_up"}, headers={HEADER_SESSION: session["token"]}, path="/v1/events"
        )
        assert status == 401  # the token holds only the hash


async def test_an_arm_that_we_do_not_know_enrols_nobody(lab: Lab) -> None:
    await lab.chat(headers={**routed(arm="variant-b")})
    await lab.chat(headers={k: v for k, v in routed(arm="control").items() if k != HEADER_TEST})
    await lab.chat(headers={k: v for k, v in routed().items() if k != HEADER_ARM})
    assert [(r["enrolled"], r.get("test")) for r in await lab.rows("events")] == [(False, None)] * 3
