"""Who a request is from, and which arm of which test it came by.

The router's headers count only with its token, the configured header only from a trusted proxy, the cookie only with a
right signature. Whoever is nobody by these rules is somebody new and gets a cookie.
"""

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from flywheel_contract.experiment import Arm
from flywheel_contract.online import (
    COOKIE_USER,
    HEADER_ARM,
    HEADER_FALLBACK,
    HEADER_NEW_USER,
    HEADER_ROUTER_TOKEN,
    HEADER_TEST,
    HEADER_USER,
)
from flywheel_gateway.errors import ApiError
from flywheel_gateway.keys import Keys, draw_id, is_drawn, is_user_id
from flywheel_gateway.web import Headers, Request

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
COOKIE_SECONDS: Final = 400 * 86400
"""As long as browsers keep a cookie at most."""
_TEST_MAX: Final = 63


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and the arm that served the request. `hashed` is the HMAC of the id, `logged` what rows hold."""

    hashed: str
    logged: str
    source: Literal["Header", "Cookie", "New"]
    cookie: str | None = None
    """The cookie to set, for a new user."""
    forged: bool = False
    """A cookie came that nobody signed; the user counts as new."""
    impostor: bool = False
    """Headers of the router came without its token; they were passed by."""
    arm: Arm | None = None
    test: str | None = None
    fallback: bool = False

    @property
    def enrolled(self) -> bool:
        """Whether the user takes part in a test."""
        return self.arm is not None


class Identifier:
    """Finds out who a request is from."""

    def __init__(
        self,
        keys: Keys,
        router_token: bytes | None,
        *,
        plain_ids: bool,
        proxies: Sequence[Network],
        user_header: str | None,
        cookie_secure: bool,
    ) -> None:
        self._keys, self._router_token, self._plain_ids = keys, router_token, plain_ids
        self._proxies, self._user_header = proxies, user_header
        self._cookie_tail = f"; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Lax" + (
            "; Secure" if cookie_secure else ""
        )

    def identify(self, request: Request) -> Identity:
        """The identity behind a request.

        Raises:
            ApiError: a header that counts holds something that is no user id.
        """
        routed = self._is_router(request)
        vouched = request.header(HEADER_USER) if routed else self._from_proxy(request)
        if vouched is not None:
            if not is_user_id(vouched):
                raise ApiError(400, "invalid_user", "the user id has 1 to 256 characters, no control characters")
            found = self._identity(vouched, "Header")
        else:
            found = self._by_cookie(request, self._drawn_by_router(request) if routed else None)
        if not routed:
            impostor = any(request.raw_header(name) for name in (HEADER_ROUTER_TOKEN, HEADER_USER, HEADER_ARM))
            return replace(found, impostor=True) if impostor else found
        if found.forged:
            # The router split by the forged id: the arm is not this user's.
            return found
        arm, test = request.header(HEADER_ARM), request.header(HEADER_TEST)
        known = Arm(arm) if arm in set(Arm) and test is not None and 0 < len(test) <= _TEST_MAX else None
        return replace(
            found,
            arm=known,
            test=test if known else None,
            fallback=known is not None and request.header(HEADER_FALLBACK) == "1",
        )

    def set_cookie(self, identity: Identity) -> Headers:
        """The header that gives a new user the cookie; nothing for others."""
        if identity.cookie is None:
            return []
        return [(b"set-cookie", f"{COOKIE_USER}={identity.cookie}{self._cookie_tail}".encode())]

    def _by_cookie(self, request: Request, drawn: str | None) -> Identity:
        value = _cookie(request.raw_header("cookie"))
        known = None if value is None else self._keys.user_of_cookie(value)
        if known is not None:
            return self._identity(known, "Cookie")
        new = drawn if drawn is not None and value is None else draw_id()
        return replace(self._identity(new, "New"), cookie=self._keys.cookie(new), forged=value is not None)

    def _identity(self, user: str, source: Literal["Header", "Cookie", "New"]) -> Identity:
        hashed = self._keys.hash_user(user)
        return Identity(hashed=hashed, logged=user if self._plain_ids else hashed, source=source)

    def _is_router(self, request: Request) -> bool:
        given = request.raw_header(HEADER_ROUTER_TOKEN)
        return self._router_token is not None and len(given) == 1 and hmac.compare_digest(given[0], self._router_token)

    def _from_proxy(self, request: Request) -> str | None:
        if self._user_header is None or request.peer is None or not request.raw_header(self._user_header):
            return None
        try:
            peer = ipaddress.ip_address(request.peer)
        except ValueError:
            return None
        if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return request.header(self._user_header) if any(peer in network for network in self._proxies) else None

    @staticmethod
    def _drawn_by_router(request: Request) -> str | None:
        drawn = request.header(HEADER_NEW_USER)
        return drawn if drawn is not None and is_drawn(drawn) else None


def _cookie(headers: Sequence[bytes]) -> str | None:
    """The value of our cookie: the first one, as the router reads it. None where there is none."""
    for header in headers:
        for pair in header.split(b";"):
            name, equals, value = pair.strip().partition(b"=")
            if equals and name == COOKIE_USER.encode():
                return value.decode("ascii", "replace")
    return None
