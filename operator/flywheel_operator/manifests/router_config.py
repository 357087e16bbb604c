"""What the router's behaviour follows from: typed, and checked once, so that no value can be read as nginx's syntax."""

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final

from flywheel_contract.online import ROUTER_PORT

HEALTH_PORT: Final = 9103
"""`/healthz` and `/stub_status`; users cannot reach it through ROUTER_PORT."""
DEFAULT_USER_HEADER: Final = "X-User-Id"

_HOST: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*", re.ASCII)
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_SALT: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_HEADER: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*", re.ASCII)
_HEADER_MAX_LENGTH: Final = 64
_TAKEN_HEADERS: Final = frozenset(
    "accept authorization connection content-length content-type cookie expect host keep-alive proxy-connection te "
    "trailer transfer-encoding upgrade".split()
)
_OUR_PREFIX: Final = "x-flywheel-"
_MAX_ENTRIES: Final = 64


class RouterConfigError(ValueError):
    """A value cannot stand in the router's configuration. The message names the field, the value and the fix."""


def _require(good: bool, message: str) -> None:
    if not good:
        raise RouterConfigError(message)


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where an arm or production is served: `host:port` of a Service, or several.

    Raises:
        RouterConfigError: no server, or one that is not a DNS name or IPv4 address with a port.
    """

    servers: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(0 < len(self.servers) <= _MAX_ENTRIES, f"upstream: name 1 to {_MAX_ENTRIES} servers")
        for server in self.servers:
            host, _, port = server.partition(":")
            good = len(host) <= 253 and _HOST.fullmatch(host) and re.fullmatch(r"[1-9][0-9]{0,4}", port, re.ASCII)
            _require(bool(good) and int(port) < 65536, f"upstream server {server!r}: write host:port")
            _require(
                not re.fullmatch(r"[0-9.]+", host) or _is_ipv4(host), f"upstream server {server!r}: no IPv4 address"
            )


@dataclass(frozen=True, slots=True)
class Timeouts:
    """All in seconds.

    Raises:
        RouterConfigError: one is not above 0, or above a day.
    """

    connect: float = 1
    """To an upstream; then its arm counts as absent."""
    read: float = 600
    """Between two reads of a reply; the first token of a long prompt takes the longest."""
    turnover: float = 10
    """Age at which a client's connection is told to close with the next reply: it moves to the pods of a new
    configuration."""
    idle: float = 65
    """How long a client's connection may lie idle: longer than ingress controllers keep theirs (60)."""
    upstream_age: float = 3
    """Age at which a connection to an upstream is closed after the reply. With the idle time it is less than what a
    server waits between leaving the endpoints and its end: no request is sent into a connection that closes."""
    upstream_idle: float = 1
    """How long a connection to an upstream may lie idle."""

    def __post_init__(self) -> None:
        for name in ("connect", "read", "turnover", "idle", "upstream_age", "upstream_idle"):
            value = getattr(self, name)
            _require(0.001 <= value <= 86400, f"timeouts.{name} is {value!r}: between 0.001 and 86400 seconds")


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Everything that the router's behaviour follows from.

    Raises:
        RouterConfigError: a value is out of bounds, or could be read as nginx's syntax.
    """

    lineage: str
    production: Upstream
    test: str = ""
    """The ABTest; empty where none runs, then there are no arms."""
    salt: str = ""
    control: Upstream | None = None
    treatment: Upstream | None = None
    control_percent: float = 0
    """Of all users; rounded to two decimals."""
    treatment_percent: float = 0
    treatment_paused: bool = False
    """The treatment's users stay assigned and are served by production, marked as fallback."""
    user_header: str = DEFAULT_USER_HEADER
    trusted_proxies: tuple[str, ...] = ()
    """CIDRs of the peers whose user header counts."""
    max_body_bytes: int = 1 << 20
    timeouts: Timeouts = field(default_factory=Timeouts)
    workers: int = 2
    port: int = ROUTER_PORT
    health_port: int = HEALTH_PORT

    def __post_init__(self) -> None:
        _require(bool(_NAME.fullmatch(self.lineage)), f"lineage {self.lineage!r}: not a Kubernetes name")
        _require(
            bool(_HEADER.fullmatch(self.user_header)) and len(self.user_header) <= _HEADER_MAX_LENGTH,
            f"user_header {self.user_header!r}: letters, digits and single dashes, at most {_HEADER_MAX_LENGTH}",
        )
        lower = self.user_header.lower()
        _require(
            lower not in _TAKEN_HEADERS and not lower.startswith(_OUR_PREFIX),
            f"user_header {self.user_header!r} has another meaning: take one of your own",
        )
        _require(len(self.trusted_proxies) <= _MAX_ENTRIES, f"trusted_proxies: at most {_MAX_ENTRIES}")
        for text in self.trusted_proxies:
            _require(_is_network(text), f"trusted_proxies has {text!r}: write a CIDR such as 10.0.0.0/8")
        _require(1 <= self.max_body_bytes <= 1 << 30, f"max_body_bytes is {self.max_body_bytes}: 1 byte to 1 GiB")
        _require(1 <= self.workers <= 64, f"workers is {self.workers}: 1 to 64")
        ports = (self.port, self.health_port)
        _require(all(0 < p < 65536 for p in ports) and len(set(ports)) == 2, f"ports {ports}: two different ones")
        self._check_test()

    def _check_test(self) -> None:
        shares = (hundredths("control", self.control_percent), hundredths("treatment", self.treatment_percent))
        _require(sum(shares) <= 10_000, f"control and treatment are {sum(shares) / 100} % together: at most 100")
        if not self.test:
            none = sum(shares) == 0 and self.control is None and self.treatment is None and not self.treatment_paused
            _require(none, "arms without a test: name the test")
            return
        _require(bool(_NAME.fullmatch(self.test)), f"test {self.test!r}: not a Kubernetes name")
        _require(bool(_SALT.fullmatch(self.salt)), f"salt {self.salt!r}: 1 to 128 letters, digits, '.', '_' and '-'")
        _require(self.control is not None or not shares[0], "control has users and no upstream")
        paused = self.treatment_paused or self.treatment is not None or not shares[1]
        _require(paused, "treatment has users and no upstream, and is not paused")


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _is_network(text: str) -> bool:
    try:
        network(text)
    except ValueError:
        return False
    return "%" not in text  # a scope (`fe80::1%eth0`) may hold anything, and is no part of a CIDR


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """The network of a CIDR, or of one address; bits beyond the prefix are dropped.

    Raises:
        ValueError: it is neither.
    """
    return ipaddress.ip_network(text, strict=False)


def hundredths(arm: str, percent: float) -> int:
    """The share in hundredths of a percent, the finest that nginx takes: the nearest, but never none of some.

    Raises:
        RouterConfigError: it is not between 0 and 100.
    """
    _require(0 <= percent <= 100, f"{arm}_percent is {percent!r}: 0 to 100")
    return max(round(percent * 100), 1 if percent else 0)
