"""The gateway's configuration: the operator renders it into a ConfigMap, the gateway reads it once at its start.

Secrets are not in it: `keyDirectory` is where the lineage's Secret is mounted, with the files `key` (at least 16 bytes)
and, where a router stands before the gateway, `router-token`.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, IPvAnyNetwork, StringConstraints, model_validator

from flywheel_contract.base import Record
from flywheel_contract.characters import REFUSAL_MAX_LENGTH, Tool
from flywheel_contract.online import FEEDBACK, EventType
from flywheel_contract.paths import SERVER_PORT
from flywheel_contract.safety import ClassifierParams
from flywheel_contract.stages import Origin
from flywheel_contract.uris import OutputUri

GATEWAY_CONFIG: Final = "/etc/flywheel/gateway.json"
"""The GatewayConfig; the gateway takes another file by `--config`."""
KEY_DIRECTORY: Final = "/etc/flywheel/keys"
KEY_FILE: Final = "key"
"""The lineage's key: user ids, cookies and session tokens hang on it. Another key is another set of users."""
ROUTER_TOKEN_FILE: Final = "router-token"
KEY_MIN_BYTES: Final = 16
SPOOL: Final = "/var/spool/flywheel"
"""Where segments lie that are not yet in the bucket; an emptyDir outlives the container, a claim the pod."""

SAFE_REPLY: Final = "Let's talk about something else."

CharacterName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$", max_length=63)]


class CharacterPrompt(Record):
    """A character and what the model is told about it."""

    name: CharacterName
    system_prompt: Annotated[str, StringConstraints(min_length=1, max_length=65536)]
    refusal: Annotated[str, StringConstraints(min_length=1, max_length=REFUSAL_MAX_LENGTH)] | None = Field(
        None, description="What the character says in place of what was cut; left out, `moderation.safeReply`."
    )
    tools: list[Tool] = Field(
        default_factory=list, max_length=4, description="What it can call, in place of the client's own `tools`."
    )


class ConsentPolicy(Record):
    """What is stored of whose turns."""

    default: bool | None = Field(None, description="What counts where the client says nothing about training.")
    mode: Literal["Mark", "Require"] = Field(
        "Mark",
        description="Mark: every turn is stored with what the user said, and curation drops `training: false`. "
        "Require: only turns with `training: true` are stored; events and exposures, which hold no text, always are.",
    )


class Moderation(ClassifierParams):
    """What may reach the model, and what may reach the user."""

    prompt: bool = Field(True, description="Score the user's newest message before the model sees it.")
    reply: bool = Field(True, description="Score the reply; a stream is held back by one sentence.")
    threshold: float = Field(0.9, gt=0, le=1, description="A text scored at or above this is unsafe.")
    detect: bool = Field(
        True, description="With `reply` off: score replies after they were sent, for the `safety_violation` event."
    )
    safe_reply: str = Field(
        SAFE_REPLY, min_length=1, max_length=REFUSAL_MAX_LENGTH, description="What stands for what was cut."
    )


class Limits(Record):
    """What one request, one user and all together may take."""

    body_bytes: int = Field(1 << 20, ge=1024, le=1 << 26, description="Largest body of a chat request.")
    prompt_chars: int = Field(100_000, ge=1, le=10_000_000, description="Characters of all messages of a request.")
    messages: int = Field(1000, ge=1, le=100_000, description="Messages of a request.")
    reply_bytes: int = Field(1 << 23, ge=1024, le=1 << 28, description="Largest reply that is taken from the model.")
    requests_per_second: float = Field(2, gt=0, le=10_000, description="Of one user, in the long run.")
    burst: int = Field(20, ge=1, le=10_000, description="Of one user, at once.")
    concurrent_requests: int = Field(256, ge=1, le=100_000, description="Chats at a time; more get 503.")
    connect_seconds: float = Field(2, gt=0, le=60, description="To reach the model server.")
    first_byte_seconds: float = Field(60, gt=0, le=3600, description="To the first part of a streamed reply.")
    idle_seconds: float = Field(30, gt=0, le=3600, description="Between two parts of a streamed reply.")
    total_seconds: float = Field(300, gt=0, le=7200, description="For a whole reply.")
    body_seconds: float = Field(15, gt=0, le=600, description="For the client to send its body.")
    drain_seconds: int = Field(30, ge=0, le=3600, description="After SIGTERM, for what has begun.")
    drain_delay_seconds: float = Field(
        3, ge=0, le=60, description="After SIGTERM, time in which new requests are still taken: proxies learn slowly."
    )


class LogSettings(Record):
    """The lineage's log: exposures, events and turns."""

    store: OutputUri = Field(description="`<artifacts>/<lineage>/traffic`: pvc://, file://, s3:// or gs://.")
    turns: bool = Field(True, description="Keep what was said. Exposures and events hold no text and are always kept.")
    spool: Annotated[str, StringConstraints(pattern=r"^/", max_length=255)] = Field(
        SPOOL, description="Local folder of the segments that are on their way to a bucket."
    )
    flush_seconds: float = Field(1, gt=0, le=60, description="Longest time until a row survives a lost machine.")
    rotate_seconds: float = Field(60, ge=1, le=3600, description="Longest time until a row can be read.")
    rotate_bytes: int = Field(64 << 20, ge=1024, le=1 << 30, description="A segment that is longer is finished.")
    queue_bytes: int = Field(
        64 << 20, ge=1024, le=1 << 32, description="Rows kept while the store is away; more are lost, counted."
    )


class GatewayConfig(Record):
    """All of it."""

    generation: str = Field(min_length=1, max_length=253, description="Who serves, as it stands in the log.")
    lineage: str = Field(min_length=1, max_length=63)
    origin: Origin = Field(Origin.USER, description="What the turns are marked with.")
    upstream: Annotated[str, StringConstraints(pattern=r"^http://[^/?#\s]+$", max_length=255)] = Field(
        f"http://127.0.0.1:{SERVER_PORT}", description="The model server, without a path."
    )
    model: str | None = Field(None, max_length=253, description="Put into every request as its `model`, if set.")
    characters: list[CharacterPrompt] = Field(default_factory=list, max_length=256)
    default_character: str | None = Field(None, description="Whose prompt goes in where a request names nobody.")
    completions: bool = Field(False, description="Answer /v1/completions, which knows no character.")
    log: LogSettings
    key_directory: Annotated[str, StringConstraints(pattern=r"^/", max_length=255)] = KEY_DIRECTORY
    id_hash: Literal["HMAC", "None"] = Field(
        "HMAC", description="None writes user ids as they are, for teams that join with tables of their own."
    )
    consent: ConsentPolicy = Field(default_factory=ConsentPolicy)
    retention_days: int | None = Field(None, ge=1, le=36500, description="Turns are marked to be gone after so long.")
    moderation: Moderation = Field(default_factory=Moderation)
    limits: Limits = Field(default_factory=Limits)
    trusted_proxies: list[IPvAnyNetwork] = Field(
        default_factory=list, max_length=64, description="Peers that may vouch for a user id."
    )
    user_header: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=64)] | None = Field(
        None, description="The header in which they do, in lower case."
    )
    cookie_secure: bool = Field(True, description="Send the cookie back over TLS only; off for plain HTTP in trials.")
    session_seconds: int = Field(86400, ge=60, le=30 * 86400, description="How long a session's token holds.")
    feedback: list[EventType] = Field(
        default_factory=lambda: sorted(FEEDBACK), description="What clients may send to /v1/events."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [character.name for character in self.characters]
        if len(set(names)) < len(names):
            raise ValueError("characters: two have the same name")
        if self.default_character is not None and self.default_character not in names:
            raise ValueError(f"defaultCharacter: there is no character {self.default_character!r}")
        unknown = sorted(set(self.feedback) - FEEDBACK)
        if unknown:
            raise ValueError(f"feedback: clients cannot send {', '.join(unknown)}")
        if self.user_header is not None and not self.trusted_proxies:
            raise ValueError("userHeader: name the proxies that set it in trustedProxies, or nobody is believed")
        if self.log.store.startswith("hf://"):
            raise ValueError("log.store: the Hugging Face Hub is read only; name a pvc://, file://, s3:// or gs:// URI")
        return self
