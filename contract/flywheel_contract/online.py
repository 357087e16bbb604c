"""What router, gateway and readers of the log agree on: headers, ports, event types, rows."""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from flywheel_contract.base import Record
from flywheel_contract.experiment import Arm
from flywheel_contract.uris import join_uri

GATEWAY_PORT: Final = 8001
"""The gateway's OpenAI-compatible API, /v1/sessions and /v1/events, in the pod of its model server."""
ROUTER_PORT: Final = 8002
METRICS_PORT: Final = 9102
"""The gateway's Prometheus metrics and health: never reachable through the router."""

HEADER_ROUTER_TOKEN: Final = "x-flywheel-router-token"
"""The router's proof that the headers below are its own; without it the gateway takes none of them."""
HEADER_USER: Final = "x-flywheel-user"
"""The user id that a configured proxy vouched for. Absent where the id comes from the cookie."""
HEADER_NEW_USER: Final = "x-flywheel-new-user"
"""An id that the router drew for somebody without one; the gateway signs it and sets the cookie."""
HEADER_TEST: Final = "x-flywheel-test"
HEADER_ARM: Final = "x-flywheel-arm"
"""`control`, `treatment`, or `none` for who is not enrolled."""
HEADER_FALLBACK: Final = "x-flywheel-fallback"
"""`1` where production serves in place of the arm."""
HEADER_SESSION: Final = "x-flywheel-session"
"""The session's token, from the client."""
HEADER_CHARACTER: Final = "x-flywheel-character"
"""The character that the client wants, where there is no session."""
HEADER_CONVERSATION: Final = "x-flywheel-conversation"
"""The client's own id of the conversation; comes back with every reply."""
HEADER_TURN: Final = "x-flywheel-turn"
"""The id of a reply, for feedback on it."""
COOKIE_USER: Final = "flywheel_user"
"""`<id>.<signature>`: id is [A-Za-z0-9_-]{1,64}, signature an HMAC-SHA256 of it by a key that is derived from the
lineage's, base64url without padding. Only the gateway can tell whether it is right."""
NOT_ENROLLED: Final = "none"

USER_ID_MAX_LENGTH: Final = 256
UserId = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=USER_ID_MAX_LENGTH)]
CLIENT_ID_PATTERN: Final = r"^[A-Za-z0-9_.:-]{1,128}$"
"""Ids of conversations, turns and events that clients choose."""


class EventType(StrEnum):
    """The events that we know. Clients may send those in FEEDBACK only."""

    MESSAGE = "message"
    """A reply was given; value is its latency in milliseconds."""
    ERROR = "error"
    """No reply could be given."""
    SAFETY_VIOLATION = "safety_violation"
    FALSE_REFUSAL = "false_refusal"
    BLOCKED_PROMPT = "blocked_prompt"
    THUMBS_UP = "thumbs_up"
    THUMBS_DOWN = "thumbs_down"
    REGENERATE = "regenerate"
    CONTINUE = "continue"
    SHARE = "share"
    REPORT = "report"


FEEDBACK: Final = frozenset(
    {
        EventType.THUMBS_UP,
        EventType.THUMBS_DOWN,
        EventType.REGENERATE,
        EventType.CONTINUE,
        EventType.SHARE,
        EventType.REPORT,
    }
)


class LogTable(StrEnum):
    """The folders of a lineage's log; below each `date=YYYY-MM-DD/<writer>-<n>.jsonl`."""

    EXPOSURES = "exposures"
    EVENTS = "events"
    TURNS = "turns"


class _LogRow(Record):
    user_id: UserId = Field(
        description="HMAC-SHA256 of the user's id by the lineage's key, 64 hexadecimal digits; the id itself with "
        "`idHash: None`."
    )
    ts: AwareDatetime
    enrolled: bool = False
    arm: Arm | None = None
    test: str | None = None
    fallback: bool = False
    generation: str = Field("", description="Who served.")
    character: str | None = None
    event_id: str = Field(description="Unique; the same id twice is the same row.")

    def to_row(self) -> dict[str, Any]:
        """The row as it stands in the log: snake_case, as the analysis reads it."""
        return self.model_dump(mode="json", by_alias=False, exclude_none=True)


class Exposure(_LogRow):
    """A user opened a session, or made a first request."""

    session: str | None = None
    trigger: Literal["Session", "FirstRequest"]


class Event(_LogRow):
    """Something happened to a user."""

    type: EventType
    value: float | None = None
    conversation: str | None = None
    turn: str | None = Field(None, description="The reply that it is about.")
    detector: str | None = Field(None, description="`name/version` of what saw it.")
    blocked: bool | None = Field(None, description="Whether the user was spared it.")


class Consent(Record):
    """What the user allowed."""

    training: bool | None = None


class Turn(Record):
    """A reply with the conversation before it, in the traffic format of docs/data.md plus where it came from."""

    conversation: str
    user: UserId
    character: str | None = None
    origin: Literal["User", "Internal"] = "User"
    time: AwareDatetime
    messages: list[dict[str, Any]]
    signals: dict[str, bool | int | float | str] = Field(default_factory=dict)
    consent: Consent = Consent()
    turn: str = Field(description="Id of this turn, as events name it.")
    latency_ms: float
    generation: str
    arm: Arm | None = None
    test: str | None = None
    enrolled: bool = False
    fallback: bool = False
    retain_until: AwareDatetime | None = Field(None, description="The row must be gone after this time.")

    def to_row(self) -> dict[str, Any]:
        """The row as it stands in the log and as `curate` reads it: snake_case, without what is not known."""
        return self.model_dump(mode="json", by_alias=False, exclude_none=True)


class SessionRequest(Record):
    """The body of POST /v1/sessions."""

    character: str | None = None
    consent: Consent = Consent()
    conversation: Annotated[str, Field(pattern=CLIENT_ID_PATTERN)] | None = None


class Session(Record):
    """Its answer."""

    session: str
    token: str = Field(description="Goes into the header x-flywheel-session of chats and events.")
    arm: Arm | None = Field(None, description="None for who is not enrolled.")
    test: str | None = None
    character: str | None = None
    expires: AwareDatetime


class Feedback(Record):
    """One event of POST /v1/events, which takes one or a list."""

    type: EventType
    conversation: Annotated[str, Field(pattern=CLIENT_ID_PATTERN)] | None = None
    turn: Annotated[str, Field(pattern=CLIENT_ID_PATTERN)] | None = None
    value: Annotated[float, Field(ge=-1e12, le=1e12)] | None = None
    id: Annotated[str, Field(pattern=CLIENT_ID_PATTERN)] | None = Field(
        None, description="The same id of the same user counts once, however often it is sent."
    )


FEEDBACK_MAX: Final = 50
"""Events in one POST."""


def traffic_uri(artifacts: str, lineage: str) -> str:
    """Where the gateways of a lineage write its log, and the stages and the analysis read it."""
    return join_uri(artifacts, lineage, "traffic")


class ErasureReceipt(Record):
    """What `flywheel-gateway erase` leaves below `<store>/erasures/`."""

    user: UserId
    time: AwareDatetime
    rows: dict[str, int] = Field(description="Rows removed, by table.")
    files: list[str] = Field(description="Files that were written anew or removed, relative to the store.")
    open_segments: list[str] = Field(
        default_factory=list, description="Still open at the end, with rows of the user: run it again."
    )
    unreadable_lines: int = Field(0, description="Lines that are no JSON and name the user: removed too.")
