"""POST /v1/sessions, POST /v1/events, and how a session's token is believed."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from flywheel_contract.online import FEEDBACK_MAX, HEADER_SESSION, Feedback, Session, SessionRequest
from flywheel_gateway.capture import Exchange
from flywheel_gateway.errors import ApiError
from flywheel_gateway.identity import Identity
from flywheel_gateway.keys import InvalidTokenError, SessionClaims
from flywheel_gateway.services import Services, new_id
from flywheel_gateway.web import Request, parse_json

SESSION_BYTES: Final = 8192
EVENTS_BYTES: Final = 65_536
_T = TypeVar("_T")
_ONE_OR_MANY: Final[TypeAdapter[Feedback | list[Feedback]]] = TypeAdapter(Feedback | list[Feedback])
_SESSION: Final = TypeAdapter(SessionRequest)


async def open_session(services: Services, request: Request, identity: Identity) -> dict[str, Any]:
    """Opens a session and logs the exposure; answers a `Session`.

    Raises:
        ApiError: the body is no session request, or there is no such character.
    """
    config = services.config
    body = await request.body(SESSION_BYTES, config.limits.body_seconds)
    asked = _parsed(_SESSION, body if body.strip() else b"{}")
    character = known_character(services, asked.character)
    consent = config.consent.default if asked.consent.training is None else asked.consent.training
    session, expires = new_id(), int(time.time()) + config.session_seconds
    claims = SessionClaims(
        session=session,
        user=identity.hashed,
        expires=expires,
        arm=identity.arm,
        test=identity.test,
        character=character,
        consent=consent,
        conversation=asked.conversation,
    )
    exchange = Exchange(identity=identity, began=time.monotonic(), character=character, session=session)
    services.recorder.exposure(exchange, "Session")
    answer = Session(
        session=session,
        token=services.keys.token(claims),
        arm=identity.arm,
        test=identity.test,
        character=character,
        expires=datetime.fromtimestamp(expires, UTC),
    )
    return answer.model_dump(mode="json", by_alias=True)


async def take_events(services: Services, request: Request, identity: Identity) -> dict[str, Any]:
    """Logs one feedback event or several, all or none; answers how many.

    The token alone is enough, for clients that keep no cookie; a cookie or header of another user refutes it.

    Raises:
        ApiError: no token or another one's, no feedback events, too many.
    """
    claims = session_of(services, request, identity, bearer=True)
    if claims is None:
        raise ApiError(401, "no_session", f"open a session first, and send its token in {HEADER_SESSION}")
    body = await request.body(EVENTS_BYTES, services.config.limits.body_seconds)
    parsed = _parsed(_ONE_OR_MANY, body)
    events = parsed if isinstance(parsed, list) else [parsed]
    if not 0 < len(events) <= FEEDBACK_MAX:
        raise ApiError(400, "too_many_events", f"send 1 to {FEEDBACK_MAX} events at a time")
    for event in events:
        if event.type not in services.config.feedback:
            raise ApiError(400, "not_feedback", "type: one of " + ", ".join(services.config.feedback))
    if identity.hashed != claims.user:
        # Only the token says who it is; the arm of this request is that of an id that the router drew.
        logged = claims.user if services.config.id_hash == "HMAC" else None
        if logged is None:
            raise ApiError(401, "no_user", "send the cookie that came with the session")
        identity = replace(
            identity, hashed=claims.user, logged=logged, arm=claims.arm, test=claims.test, fallback=False
        )
    for event in events:
        exchange = Exchange(
            identity=identity,
            began=time.monotonic(),
            character=claims.character,
            conversation=event.conversation or claims.conversation or claims.session,
        )
        services.recorder.event(exchange, event.type, value=event.value, turn=event.turn, client_id=event.id)
    return {"accepted": len(events)}


def session_of(services: Services, request: Request, identity: Identity, *, bearer: bool) -> SessionClaims | None:
    """What the session's token says, or None without one. `bearer`: somebody without an identity may be its user.

    Raises:
        ApiError: it is not ours, over, or another user's.
    """
    token = request.header(HEADER_SESSION)
    if token is None:
        return None
    try:
        claims = services.keys.claims(token, time.time())
    except InvalidTokenError as error:
        raise ApiError(401, "invalid_session", f"{error}: open a new one") from error
    if claims.user != identity.hashed:
        if identity.source == "New" and not identity.forged:
            if bearer:
                return claims
            raise ApiError(401, "no_user", "send the cookie that came with the session")
        raise ApiError(403, "foreign_session", "the session belongs to another user")
    return claims


def known_character(services: Services, name: str | None) -> str | None:
    """The character of that name, or the default one.

    Raises:
        ApiError: there is none of that name.
    """
    if name is None:
        return services.config.default_character
    if name not in services.characters:
        raise ApiError(400, "unknown_character", "there is no such character")
    return name


def _parsed(adapter: TypeAdapter[_T], body: bytes) -> _T:
    parse_json(body)  # refuses what is nested too deep
    try:
        return adapter.validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"][-2:]) or "body"
        raise ApiError(400, "invalid_request", f"{where}: {first['msg'][:200]}") from error
