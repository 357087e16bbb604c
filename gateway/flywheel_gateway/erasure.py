"""Taking rows out of the log: all of one user's, or those whose time is over.

Finished segments are written anew, each at once. An open segment has a writer that would go on into the old file: it is
waited for, because its writer finishes it within `rotateSeconds`.
"""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from flywheel_contract.online import ErasureReceipt, LogTable
from flywheel_gateway.segments import OPEN, adopt
from flywheel_gateway.stores import FolderStore, Store

_log = logging.getLogger(__name__)

RECEIPTS: Final = "erasures"
WAIT_SECONDS: Final = 150.0
"""Longer than a segment stays open by default, and than its upload takes."""
_POLL_SECONDS: Final = 1.0
_ABANDONED_SECONDS: Final = 180.0
_USER_FIELD: Final = {LogTable.EXPOSURES: "user_id", LogTable.EVENTS: "user_id", LogTable.TURNS: "user"}

Unwanted = Callable[[LogTable, dict[str, Any]], bool]


@dataclass(slots=True)
class Removed:
    """What was taken out."""

    rows: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    open_segments: list[str] = field(default_factory=list)
    unreadable: int = 0


def erase(
    store: Store, user: str, now: datetime, *, wait: float = WAIT_SECONDS, pause: Callable[[float], None] = time.sleep
) -> tuple[ErasureReceipt, str]:
    """Removes every row of `user` (as it stands in the log) and leaves a receipt; answers it and its name.

    Rows that are not yet in the store, at most `rotateSeconds` old, are waited for `wait` seconds; what is still open
    then is named in the receipt. Done again, it removes nothing and says so.
    """
    needle = orjson.dumps(user)[1:-1]

    def unwanted(table: LogTable, row: dict[str, Any]) -> bool:
        return row.get(_USER_FIELD[table]) == user

    removed = _sweep(store, needle, unwanted)
    deadline = time.monotonic() + wait
    if isinstance(store, FolderStore):
        while removed.open_segments and time.monotonic() < deadline:
            pause(_POLL_SECONDS)
            adopt(store.root, time.time() - _ABANDONED_SECONDS)
            _sweep(store, needle, unwanted, removed)
    elif wait > 0:
        # What pods still have in their spools comes meanwhile.
        pause(wait)
        _sweep(store, needle, unwanted, removed)
    receipt = ErasureReceipt(
        user=user,
        time=now,
        rows={table.value: removed.rows[table.value] for table in LogTable},
        files=sorted(set(removed.files)),
        open_segments=removed.open_segments,
        unreadable_lines=removed.unreadable,
    )
    name = f"{RECEIPTS}/{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:12]}.json"
    text = orjson.dumps(receipt.to_json(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    store.write(name, text)
    return receipt, name


def expire(store: Store, now: datetime) -> Removed:
    """Removes the turns whose `retain_until` is over. Rows without one stay."""

    def unwanted(table: LogTable, row: dict[str, Any]) -> bool:
        until = row.get("retain_until")
        return table is LogTable.TURNS and isinstance(until, str) and datetime.fromisoformat(until) <= now

    return _sweep(store, b'"retain_until"', unwanted, tables=(LogTable.TURNS,), drop_unreadable=False)


def _sweep(
    store: Store,
    needle: bytes,
    unwanted: Unwanted,
    removed: Removed | None = None,
    *,
    tables: tuple[LogTable, ...] = tuple(LogTable),
    drop_unreadable: bool = True,
) -> Removed:
    """One pass over all segments; only those that hold `needle` are looked at closely."""
    found = removed or Removed()
    found.open_segments = []
    for name in list(store.names()):
        table = LogTable(name.split("/", 1)[0])
        if table not in tables:
            continue
        try:
            content = store.read(name)
        except FileNotFoundError:
            # Renamed since it was listed: its finished form is met in the next pass.
            found.open_segments.append(name)
            continue
        if needle not in content:
            continue
        kept, rows, unreadable = _without(content, needle, table, unwanted, drop_unreadable=drop_unreadable)
        if not rows and not unreadable:
            continue
        if name.rsplit("/", 1)[1].startswith(OPEN):
            found.open_segments.append(name)
            continue
        if kept:
            store.write(name, kept)
        else:
            store.remove(name)
        found.files.append(name)
        found.rows[table.value] += rows
        found.unreadable += unreadable
    return found


def _without(
    content: bytes, needle: bytes, table: LogTable, unwanted: Unwanted, *, drop_unreadable: bool
) -> tuple[bytes, int, int]:
    """The lines that stay, how many rows go, and how many lines that cannot be read but hold `needle`."""
    kept: list[bytes] = []
    rows = unreadable = 0
    for line in content.splitlines(keepends=True):
        if needle not in line:
            kept.append(line)
            continue
        try:
            row = orjson.loads(line)
            gone = isinstance(row, dict) and unwanted(table, row)
        except ValueError:
            unreadable += drop_unreadable
            if not drop_unreadable:
                kept.append(line)
            continue
        if gone:
            rows += 1
        else:
            kept.append(line)
    return b"".join(kept), rows, unreadable
