"""Models that are served elsewhere: policies of a pool, judges."""

from typing import Annotated

from pydantic import Field

from flywheel_contract.base import Record


class ChatEndpoint(Record):
    """An OpenAI-compatible chat endpoint."""

    url: str = Field(
        pattern=r"^https?://[!#-\[\]-~]+$",
        max_length=512,
        description="Base URL, e.g. https://host/v1; /chat/completions is added.",
    )
    model: str = Field(min_length=1, max_length=253, description="The model's name there.")
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)] | None = Field(
        None, description="Environment variable that holds the key; runtime.secretEnv brings it from a Secret."
    )
    concurrency: int = Field(4, ge=1, le=256, description="Requests in flight.")
    timeout_seconds: int = Field(120, ge=1, le=3600, description="Longest wait for one answer.")
