"""The parameters of curation's two later steps: diversity by meaning, and constraints on shares of what is kept."""

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from flywheel_contract.base import Record, list_map

FIELD_NAME: Final = r"^(origin|character|locale|month|turns|length|(signals|metadata)\.[A-Za-z0-9_.-]{1,64})$"
"""The dimensions of a conversation that a constraint may name; docs/data.md says what each is."""


class DiversityParams(Record):
    """Embeds prompts, clusters each origin by itself, prunes close neighbours, keeps a share of each cluster."""

    similarity: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Cosine of two prompts' embeddings from which the later one of a cluster is dropped.",
    )
    keep_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of each cluster that is kept, rounded up; those farthest from one another first.",
    )
    clusters: int | None = Field(
        None, ge=1, le=65_536, description="Clusters of each origin; default: the square root of its prompts."
    )
    batch_size: int = Field(64, ge=1, le=4096, description="Prompts embedded at a time.")


class ShareTarget(Record):
    """What share of the kept conversations one value shall have."""

    value: str = Field(min_length=1, max_length=128, description="The value, as docs/data.md spells it.")
    share: float = Field(ge=0, le=1, description="Its share, 0 to 1.")


class ConstraintDimension(Record):
    """One dimension that the kept set shall match."""

    name: Annotated[str, Field(pattern=FIELD_NAME, max_length=80)] = Field(
        description="origin, character, locale, month, turns, length, signals.NAME or metadata.NAME."
    )
    target: list[ShareTarget] | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Declared shares; values that are not named share the rest as in the traffic. Left out, the "
        "target is the traffic as it was read.",
        json_schema_extra=list_map("value"),
    )

    @model_validator(mode="after")
    def _shares_are_shares(self) -> Self:
        if self.target is None:
            return self
        values = [t.value for t in self.target]
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise ValueError(f"dimension {self.name}: {twice[0]!r} has two shares; name every value once")
        total = sum(t.share for t in self.target)
        if total > 1 + 1e-6:
            raise ValueError(f"dimension {self.name}: the shares add up to {total:g}; at most 1 can be given away")
        return self


class ConstraintsParams(Record):
    """Stratified sampling: which shares the kept conversations of each origin shall have."""

    dimensions: list[ConstraintDimension] = Field(
        min_length=1, max_length=8, description="What is matched.", json_schema_extra=list_map("name")
    )
    tolerance: float = Field(
        0.01, ge=0, le=1, description="A share that is off by more than this has not been met, and the report says why."
    )
    min_kept_fraction: float = Field(
        0.5,
        gt=0,
        le=1,
        description="At least this share of an origin's conversations is kept, also where targets are missed.",
    )

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        names = [d.name for d in self.dimensions]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"constraints.dimensions: {twice[0]} stands there twice; name every dimension once")
        return self
