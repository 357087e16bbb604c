"""How a safety classifier is chosen. Curation and the gateway share these settings and the classifiers behind them."""

from typing import Annotated

from pydantic import Field, StringConstraints

from flywheel_contract.base import Record, list_map

Category = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]([A-Za-z0-9_/-]*[A-Za-z0-9])?$", max_length=64)]
"""What kind of harm, as it is counted: letters, digits, `_`, `/` and `-`."""
Phrase = Annotated[str, StringConstraints(pattern=r"\S", max_length=128)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]


class WordList(Record):
    """Phrases that make a text unsafe."""

    category: Category = Field(description="What they are counted as; a built-in category gets more phrases.")
    phrases: list[Phrase] = Field(
        min_length=1,
        max_length=256,
        description="Words or phrases; whole words, in any case, with any white space between them.",
    )


class ModerationEndpoint(Record):
    """An OpenAI-compatible moderation API."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^/?#\s@]+(/[^?#\s]*)?$", max_length=255)] = Field(
        description="Base URL, e.g. https://api.openai.com/v1; /moderations is added."
    )
    model: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        None, description="Name of the model; left out, the endpoint's default."
    )
    api_key_env: EnvName | None = Field(
        None,
        description="Variable with the API key, from a Secret in runtime.secretEnv; left out, no key is sent.",
    )
    timeout_seconds: float = Field(5.0, gt=0, le=60, description="Longest wait for one answer.")


class ClassifierParams(Record):
    """Which classifier says whether a text is safe. Without an endpoint it is the embedded one."""

    words: list[WordList] = Field(
        default_factory=list,
        max_length=16,
        description="Phrases beside those that come with the embedded classifier; an endpoint does not use them.",
        json_schema_extra=list_map("category"),
    )
    endpoint: ModerationEndpoint | None = Field(
        None, description="Ask this endpoint instead of the embedded classifier. No answer counts as unsafe."
    )
