"""What the style reports can be told."""

from typing import Annotated, Final

from pydantic import Field

from flywheel_contract.base import Record

PATTERN_MAX_LENGTH: Final = 256


class StylePattern(Record):
    """A style artefact of your own: replies that a regular expression is found in."""

    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)] = Field(
        description="Its name in reports; not that of a built-in artefact."
    )
    pattern: str = Field(
        min_length=1,
        max_length=PATTERN_MAX_LENGTH,
        description="Regular expression (Python's syntax), looked for anywhere in the reply.",
    )
    ignore_case: bool = Field(True, description="Whether upper and lower case are the same.")


class StyleParams(Record):
    """Style artefacts: what a reply looks like, whatever it says."""

    patterns: list[StylePattern] = Field(
        default_factory=list,
        max_length=16,
        description="Artefacts of your own, beside the built-in ones.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    tolerance: float = Field(
        0.1, ge=0, le=1, description="An artefact jumps where its rate rises by more than this over the baseline's."
    )
    length_tolerance: float = Field(
        0.5, ge=0, le=100, description="Reply length jumps where it grows by more than this share of the baseline's."
    )
