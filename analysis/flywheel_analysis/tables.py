"""The columns of the three tables, as every source gives them to the analysis."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import ibis.expr.types as ir


class TableName(StrEnum):
    """What is read."""

    EXPOSURES = "exposures"
    EVENTS = "events"
    COVARIATES = "covariates"


REQUIRED: Final = {
    TableName.EXPOSURES: ("user_id", "arm", "ts"),
    TableName.EVENTS: ("user_id", "ts", "type"),
    TableName.COVARIATES: ("user_id",),
}
"""The columns without which a table says nothing."""

TEXTS: Final = frozenset({"user_id", "arm", "type", "event_id", "test"})
TRUTHS: Final = frozenset({"fallback", "enrolled"})
NUMBERS: Final = frozenset({"value", "pre_messages", "pre_active_days"})
TIME: Final = "ts"
SECOND: Final = "fw_second"
"""`ts` in whole seconds since 1970, where an engine gives it cheaply."""

KNOWN: Final = {
    TableName.EXPOSURES: ("user_id", "arm", "ts", "test", "enrolled", "fallback", "event_id"),
    TableName.EVENTS: ("user_id", "ts", "type", "value", "event_id", "test", "fallback"),
    TableName.COVARIATES: ("user_id", "pre_messages", "pre_active_days"),
}
"""The columns that mean something to us."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables of one source: text, truth and number columns have their types, `ts` is a time in UTC."""

    exposures: ir.Table
    events: ir.Table
    covariates: ir.Table | None = None
