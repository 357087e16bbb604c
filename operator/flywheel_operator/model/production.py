"""What serves a lineage, as written on its public Service."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import ConfigDict, Field

from flywheel_contract.base import Record


class Ended(StrEnum):
    """How a Generation's time in production ended."""

    SUPERSEDED = "Superseded"
    ROLLED_BACK = "RolledBack"
    RETIRED = "Retired"


class Served(Record):
    """One Generation's time in production."""

    model_config = ConfigDict(extra="ignore")
    generation: str
    uri: str
    digest: str
    since: datetime
    until: datetime | None = None
    ended: Ended | None = None


class ProductionRecord(Record):
    """What serves (None once retired) and what served before, oldest first."""

    model_config = ConfigDict(extra="ignore")
    serving: Served | None = None
    history: list[Served] = Field(default_factory=list)
    router: str | None = None
    """The ABTest whose router the Service points at; None: it points at what serves."""


@dataclass(frozen=True, slots=True)
class Production:
    """The record and the version of the Service that it was read from, for compare-and-swap."""

    record: ProductionRecord
    resource_version: str
