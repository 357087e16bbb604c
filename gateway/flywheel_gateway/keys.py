"""Everything that hangs on the lineage's key: hashed user ids, signed cookies, session tokens.

A user's hash is the plain HMAC of the id, so that `hash-ids` and other programs can make the same. Cookies and tokens
are signed with keys of their own, derived by a label that begins with NUL, which no user id holds.
"""

import base64
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from flywheel_contract.experiment import Arm
from flywheel_contract.gateway_config import KEY_FILE, KEY_MIN_BYTES, ROUTER_TOKEN_FILE
from flywheel_contract.online import USER_ID_MAX_LENGTH
from flywheel_gateway.errors import ConfigError

_DRAWN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_TOKEN_MAX: Final = 4096


class InvalidTokenError(ValueError):
    """A session token is not ours, or is over. The text says which and nothing else."""


@dataclass(frozen=True, slots=True)
class SessionClaims:
    """What a session token says. `user` is the HMAC of the id, whatever the log writes."""

    session: str
    user: str
    expires: int
    arm: Arm | None = None
    test: str | None = None
    character: str | None = None
    consent: bool | None = None
    conversation: str | None = None


class Keys:
    """The keys that are derived from the lineage's."""

    def __init__(self, key: bytes) -> None:
        if len(key) < KEY_MIN_BYTES:
            raise ConfigError(f"the lineage's key has {len(key)} bytes: it needs {KEY_MIN_BYTES} or more")
        self._users = hmac.new(key, digestmod="sha256")
        self._cookies = hmac.new(hmac.digest(key, b"\0cookie", "sha256"), digestmod="sha256")
        self._sessions = hmac.new(hmac.digest(key, b"\0session", "sha256"), digestmod="sha256")

    def hash_user(self, user: str) -> str:
        """The 64 hexadecimal digits that stand for `user` in the log."""
        return _digest(self._users, user.encode()).hex()

    def cookie(self, drawn: str) -> str:
        """The cookie's value for an id that the gateway or the router drew."""
        return f"{drawn}.{_text(_digest(self._cookies, drawn.encode()))}"

    def user_of_cookie(self, value: str) -> str | None:
        """The id in a cookie, or None where nobody with the key signed it."""
        drawn, dot, signature = value.partition(".")
        if not dot or not is_drawn(drawn):
            return None
        right = _text(_digest(self._cookies, drawn.encode()))
        return drawn if hmac.compare_digest(right.encode(), signature.encode()) else None

    def token(self, claims: SessionClaims) -> str:
        """A token that any gateway of the lineage believes until it is over."""
        payload = _text(
            orjson.dumps(
                [
                    claims.session, claims.user, claims.expires, claims.arm, claims.test, claims.character,
                    claims.consent, claims.conversation,
                ]
            )
        )  # fmt: skip
        return f"{payload}.{_text(_digest(self._sessions, payload.encode()))}"

    def claims(self, token: str, now: float) -> SessionClaims:
        """What a token says.

        Raises:
            InvalidTokenError: nobody with the key signed it, or it is over.
        """
        payload, _, signature = token[:_TOKEN_MAX].partition(".")
        right = _text(_digest(self._sessions, payload.encode()))
        if not hmac.compare_digest(right.encode(), signature.encode()):
            raise InvalidTokenError("the session's token is not ours")
        session, user, expires, arm, *rest = orjson.loads(_bytes(payload))
        if expires <= now:
            raise InvalidTokenError("the session is over")
        return SessionClaims(session, user, expires, Arm(arm) if arm else None, *rest)


def draw_id() -> str:
    """A new random id, as cookies hold it."""
    return secrets.token_urlsafe(16)


def is_drawn(user: str) -> bool:
    """Whether `user` may stand in a cookie."""
    return _DRAWN.fullmatch(user) is not None


def is_user_id(user: str) -> bool:
    """Whether `user` may be an id: 1 to 256 characters without control characters. What else it holds is harmless."""
    return 0 < len(user) <= USER_ID_MAX_LENGTH and _CONTROL.search(user) is None


def read_key(file: Path) -> bytes:
    """The content of a key file without the newline at its end.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    try:
        key = file.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"the key file {file} cannot be read ({error.strerror}): mount the Secret") from error
    if not key:
        raise ConfigError(f"the key file {file} is empty")
    return key


def read_keys(folder: Path) -> tuple[Keys, bytes | None]:
    """The lineage's keys and the router's token; without a token nobody is believed to be the router.

    Raises:
        ConfigError: there is no key, or it is too short.
    """
    token = folder / ROUTER_TOKEN_FILE
    return Keys(read_key(folder / KEY_FILE)), read_key(token) if token.exists() else None


def _digest(keyed: hmac.HMAC, message: bytes) -> bytes:
    """Copying a keyed state is quicker than keying anew."""
    state = keyed.copy()
    state.update(message)
    return state.digest()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
