"""Sessions and events: who may write what for whom."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from flywheel_contract.online import COOKIE_USER, FEEDBACK_MAX, HEADER_SESSION
from flywheel_gateway.keys import Keys, SessionClaims
from tests.gateway.lab import KEYS, Lab, Model, routed, running

EVENTS = "/v1/events"


async def session_of(lab: Lab, headers: dict[str, str], **body: Any) -> dict[str, str]:  # noqa: ANN401 -- JSON
    """Opens a session; its headers."""
    status, session, _ = await lab.chat(body, headers=headers, path="/v1/sessions")
    assert status == 201
    return {**headers, HEADER_SESSION: session["token"]}


async def test_feedback_of_a_session(lab: Lab) -> None:
    headers = await session_of(lab, routed(), character="sol", conversation="talk")
    body = [{"type": "thumbs_up", "turn": "t-1"}, {"type": "share", "value": 2.5, "conversation": "other"}]
    status, answer, _ = await lab.chat(body, headers=headers, path=EVENTS)
    assert (status, answer) == (202, {"accepted": 2})
    up, share = await lab.rows("events")
    user = KEYS.hash_user("u-1")
    assert (up["type"], up["turn"], up["arm"]) == ("thumbs_up", "t-1", "treatment")
    assert up["conversation"] == f"{user[:16]}-talk"
    assert (share["value"], share["conversation"], share["character"]) == (2.5, f"{user[:16]}-other", "sol")
    assert up["event_id"] != share["event_id"]


async def test_the_same_event_twice_is_one_event_and_only_for_its_user(lab: Lab) -> None:
    for user in ("u-1", "u-1", "u-2"):
        headers = await session_of(lab, routed(user))
        await lab.chat({"type": "thumbs_up", "id": "e-1"}, headers=headers, path=EVENTS)
    first, again, other = [row["event_id"] for row in await lab.rows("events")]
    assert first == again != other


async def test_nobody_writes_for_another(lab: Lab) -> None:
    stolen = (await session_of(lab, routed("victim")))[HEADER_SESSION]
    event = {"type": "thumbs_down"}
    for headers, status in [
        ({}, 401),
        ({HEADER_SESSION: "nonsense"}, 401),
        ({HEADER_SESSION: stolen[:-2] + "xx"}, 401),
        ({**routed("thief"), HEADER_SESSION: stolen}, 403),
        ({"cookie": f"{COOKIE_USER}={KEYS.cookie('thief')}", HEADER_SESSION: stolen}, 403),
        ({"cookie": f"{COOKIE_USER}=victim.forged", HEADER_SESSION: stolen}, 403),
    ]:
        assert (await lab.chat(event, headers=headers, path=EVENTS))[0] == status
    assert (await lab.chat(headers={**routed("thief"), HEADER_SESSION: stolen}))[0] == 403
    assert await lab.rows("events") == []


async def test_a_client_without_cookies_writes_by_its_token_alone(lab: Lab) -> None:
    token = (await session_of(lab, routed("u-1", arm="control")))[HEADER_SESSION]
    status, _, _ = await lab.chat({"type": "share"}, headers={**routed(None), HEADER_SESSION: token}, path=EVENTS)
    assert status == 202
    (event,) = await lab.rows("events")
    assert (event["user_id"], event["arm"]) == (KEYS.hash_user("u-1"), "control")
    # A chat needs the user: the router cannot know the arm from a token.
    lab.client.cookie_jar.clear()
    status, error, _ = await lab.chat(headers={**routed(None), HEADER_SESSION: token})
    assert (status, error["error"]["code"]) == (401, "no_user")


async def test_a_session_ends(lab: Lab) -> None:
    claims = SessionClaims(session="s", user=KEYS.hash_user("u-1"), expires=int(time.time()) - 1)
    headers = {**routed("u-1"), HEADER_SESSION: KEYS.token(claims)}
    status, error, _ = await lab.chat({"type": "share"}, headers=headers, path=EVENTS)
    assert (status, error["error"]["code"]) == (401, "invalid_session")
    foreign = Keys(b"another lineage's key").token(claims)
    assert (await lab.chat({"type": "share"}, headers={**headers, HEADER_SESSION: foreign}, path=EVENTS))[0] == 401


@pytest.mark.parametrize(
    "body",
    [
        {"type": "message", "value": 1},
        {"type": "safety_violation"},
        {"type": "nonsense"},
        {},
        [],
        [{"type": "share"}] * (FEEDBACK_MAX + 1),
        [{"type": "share"}, {"type": "error"}],
        {"type": "share", "user_id": "victim"},
        {"type": "share", "value": "1"},
        {"type": "share", "value": True},
        {"type": "share", "value": 1e300},
        {"type": "share", "id": "a\nb"},
        {"type": "share", "id": "a" * 129},
        {"type": "share", "conversation": "../x"},
        {"type": "share", "turn": 3},
        "share",
        None,
        b'{"type": "share", "value": NaN}',
        b'{"type": "share"',
        b"",
        b"\xff\xfe",
    ],
)
async def test_what_is_no_feedback_is_refused_whole(lab: Lab, body: Any) -> None:  # noqa: ANN401 -- JSON
    headers = await session_of(lab, routed())
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, error, _ = await lab.chat(data, headers=headers, path=EVENTS)
    assert status == 400
    assert error["error"]["type"] == "invalid_request_error"
    assert await lab.rows("events") == []


async def test_an_operator_may_take_fewer_types(model: Model, tmp_path: Path) -> None:
    async with running(tmp_path / "t", model, feedback=["thumbs_up"]) as lab:
        headers = await session_of(lab, routed())
        assert (await lab.chat({"type": "thumbs_up"}, headers=headers, path=EVENTS))[0] == 202
        assert (await lab.chat({"type": "share"}, headers=headers, path=EVENTS))[0] == 400


async def test_feedback_that_is_too_long(lab: Lab) -> None:
    headers = await session_of(lab, routed())
    assert (await lab.chat(b"[" + b" " * 70_000 + b"]", headers=headers, path=EVENTS))[0] == 413


@pytest.mark.parametrize(
    "body",
    [
        {"character": "nobody"},
        {"character": 3},
        {"consent": {"training": "yes"}},
        {"consent": {"marketing": True}},
        {"conversation": "a b"},
        {"arm": "control"},
        [],
    ],
)
async def test_what_is_no_session_is_refused(lab: Lab, body: Any) -> None:  # noqa: ANN401 -- JSON
    status, _, _ = await lab.chat(body, headers=routed(), path="/v1/sessions")
    assert status == 400
    assert await lab.rows("exposures") == []


async def test_a_session_without_a_body_is_one_with_the_defaults(model: Model, tmp_path: Path) -> None:
    async with running(tmp_path / "t", model, consent={"default": True}) as lab:
        status, session, _ = await lab.chat(b"", headers=routed(arm="none"), path="/v1/sessions")
        assert (status, session["character"], session["arm"], session["test"]) == (201, "luna", None, None)
        assert KEYS.claims(session["token"], time.time()).consent is True
