"""Spec pieces of what talks to users: characters, model servers, gateways."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field

from flywheel_contract.base import Name, Record
from flywheel_contract.characters import REFUSAL_MAX_LENGTH, SYSTEM_PROMPT_MAX_LENGTH, Character, CharacterTraits
from flywheel_contract.gateway_config import SAFE_REPLY
from flywheel_contract.safety import ClassifierParams
from flywheel_operator.model.rules import cel, validations
from flywheel_operator.model.runtime import Resources


class ConfigMapKey(Record):
    """A key of a ConfigMap in the same namespace."""

    name: Name = Field(description="Name of the ConfigMap.")
    key: Annotated[str, Field(max_length=253)] = Field(description="Key in its data.")


class CharacterSpec(CharacterTraits):
    """A character that the model plays."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!(has(self.systemPrompt) && has(self.systemPromptFrom)) && (has(self.systemPrompt) || "
                "has(self.systemPromptFrom) || self.description != '')",
                "set one of systemPrompt and systemPromptFrom, or a description, or one of the two and a description",
            )
        )
    )
    name: Name = Field(description="Name of the character, as rows of the traffic name it.")
    system_prompt: str | None = Field(
        None, min_length=1, max_length=SYSTEM_PROMPT_MAX_LENGTH, description="Its system prompt, in your own words."
    )
    system_prompt_from: ConfigMapKey | None = Field(None, description="A ConfigMap that holds its system prompt.")

    @classmethod
    def inlined(cls, character: Character) -> Self:
        """The character as a spec that holds its prompt itself: what status keeps of it for as long as it is needed."""
        return cls.model_validate({**character.model_dump(), "system_prompt": character.system_prompt or None})

    def with_prompt(self, system_prompt: str) -> Character:
        """The character as stages and gateway know it, with the system prompt that was found."""
        traits = self.model_dump(exclude={"system_prompt", "system_prompt_from"})
        return Character.model_validate({**traits, "system_prompt": system_prompt})


class IdentitySpec(Record):
    """Who says who a user is."""

    user_header: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*$", max_length=64)] = Field(
        "X-User-Id",
        description="Header with the user's id; believed only from trustedProxies.",
        json_schema_extra=validations(
            cel(
                "!self.lowerAscii().startsWith('x-flywheel-') && !(self.lowerAscii() in ['host', 'cookie', "
                "'connection', "
                "'content-length', 'content-type', 'transfer-encoding', 'te', 'upgrade', 'expect', 'authorization', "
                "'keep-alive', 'accept', 'proxy-connection', 'trailer'])",
                "this header has another meaning: take one of your own",
            )
        ),
    )
    trusted_proxies: list[
        Annotated[
            str,
            Field(
                max_length=64,
                json_schema_extra=validations(
                    cel("isCIDR(self) || isIP(self)", "write an address or a CIDR such as 10.0.0.0/8")
                ),
            ),
        ]
    ] = Field(
        default_factory=list,
        max_length=16,
        description="Addresses or CIDRs of the proxies that set the header. For everyone else a signed cookie counts.",
    )
    secure_cookie: bool = Field(True, description="Send the cookie over TLS only; off for plain HTTP in trials.")


class ModerationSpec(ClassifierParams):
    """The safety of prompts and replies at the gateway."""

    prompts: bool = Field(True, description="Refuse prompts that the classifier calls unsafe.")
    replies: bool = Field(True, description="Hold back one sentence; end a reply that is unsafe.")
    threshold: float = Field(0.9, gt=0, le=1, description="Probability of harm from which on something is refused.")
    safe_reply: str = Field(
        SAFE_REPLY,
        min_length=1,
        max_length=REFUSAL_MAX_LENGTH,
        description="What is said in place of what was refused or could not be checked, unless the character has a "
        "refusal of its own.",
    )


class LimitsSpec(Record):
    """What one user may ask for."""

    requests_per_second: float = Field(
        2, gt=0, le=10_000, description="Of one user at one pod, in the long run; more are answered by 429."
    )
    burst: int = Field(20, ge=1, le=10_000, description="Of one user at one pod, at once.")
    concurrent_requests: int = Field(256, ge=1, le=100_000, description="Of all users together, per pod.")
    body_bytes: int = Field(1_048_576, ge=1024, le=67_108_864, description="Largest request.")
    timeout_seconds: int = Field(300, ge=1, le=7200, description="A reply must be complete after this time.")


class CaptureSpec(Record):
    """What is kept of the conversations."""

    turns: bool = Field(True, description="Keep what was said; the next Generation can train on it.")
    require_consent: bool = Field(
        False, description="Keep only the turns of users who agreed to training, instead of those who did not refuse."
    )
    retention_days: int = Field(90, ge=1, le=3650, description="Rows carry the time after which they must be gone.")
    rotate_seconds: int = Field(60, ge=1, le=3600, description="Files of the log are closed this often.")


class GatewaySpec(Record):
    """The gateway beside the model server."""

    mode: Literal["Enabled", "Disabled"] = Field(
        "Enabled",
        description="Disabled: users talk to the model server itself; nothing is moderated or logged.",
    )
    moderation: ModerationSpec = Field(default_factory=ModerationSpec, description="Safety.")
    limits: LimitsSpec = Field(default_factory=LimitsSpec, description="Limits.")
    capture: CaptureSpec = Field(default_factory=CaptureSpec, description="What is kept.")
    identity: IdentitySpec = Field(default_factory=IdentitySpec, description="Who says who a user is.")
    resources: Resources = Field(
        default_factory=lambda: Resources(requests={"cpu": "100m", "memory": "256Mi"}, limits={"memory": "1Gi"}),
        description="Resources of its container.",
    )


class ServingSpec(Record):
    """The model server of the promoted candidate."""

    replicas: int = Field(1, ge=1, le=1000, description="Pods while it is in production.")
    gpus: int = Field(0, ge=0, le=64, description="GPUs per pod; with any, vLLM serves where the image has it.")
    tool_call_parser: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=63)] | None = Field(
        None,
        description="vLLM's name of the parser for the model's tool calls (hermes, llama3_json, mistral, ...): with it "
        "vLLM takes the characters' tools.",
    )
    resources: Resources = Field(default_factory=Resources, description="Resources of a pod.")
    gateway: GatewaySpec = Field(default_factory=GatewaySpec, description="The gateway in the same pod.")
    startup_timeout_seconds: int = Field(
        1800, ge=1, le=86400, description="The server must answer a real request within this time."
    )
    drain_seconds: int = Field(
        60, ge=0, le=86400, description="A superseded server stays up this long before it is scaled to zero."
    )


TOOLS_NEED_A_PARSER = cel(
    "self.serving.gpus == 0 || has(self.serving.toolCallParser) || !self.characters.exists(c, size(c.tools) > 0)",
    "a character has tools, which vLLM takes only with a parser for the model's tool calls: set "
    "serving.toolCallParser (hermes, llama3_json, mistral, ...)",
    ".serving",
)
"""Of a spec with `characters` and `serving`."""
