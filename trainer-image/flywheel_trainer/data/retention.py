"""Rows whose time is over, and rows of users who asked to be erased.

`flywheel-gateway erase` takes a user's rows out of the log and leaves a receipt in `erasures/` beside the log's tables.
A copy of the log that was made before still has the rows: so the receipts count wherever they lie beside a source, and
those of the lineage's own log count for all its data.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import ValidationError

from flywheel_contract.online import ErasureReceipt, LogTable, traffic_uri
from flywheel_contract.uris import join_uri, parse_uri
from flywheel_trainer.context import StageContext
from flywheel_trainer.data.rows import Row
from flywheel_trainer.errors import DataError

RECEIPTS: Final = "erasures"


def receipts(ctx: StageContext, sources: Iterable[str]) -> list[ErasureReceipt]:
    """The receipts that lie beside some sources of data, and those of the lineage's own log, each once.

    Raises:
        DataError: one cannot be read: whom it names is not known, so nothing may be used.
    """
    found = {}
    own_log = join_uri(traffic_uri(ctx.spec.artifacts, ctx.spec.group), LogTable.TURNS)
    for folder in dict.fromkeys(folder for source in (*sources, own_log) for folder in _folders(source)):
        if not ctx.store.exists(folder):
            continue
        for file in sorted(ctx.store.local(folder).glob("*.json")):
            try:
                found[file.name] = ErasureReceipt.model_validate_json(file.read_bytes())
            except (ValidationError, OSError) as error:
                raise DataError(
                    f"{file} is no receipt of an erasure, so it is not known whose rows must go; put it right or take "
                    "it away"
                ) from error
    return list(found.values())


def erased(row: Row, erasures: dict[str, datetime]) -> bool:
    """Whether the row's user was erased at or after the row's time; a row without a time counts as older.

    What somebody says after the erasure is new, and has a consent of its own.
    """
    until = erasures.get(row.user)
    if until is None:
        return False
    said = time_of(row)
    return said is None or said <= until


def latest(found: Iterable[ErasureReceipt]) -> dict[str, datetime]:
    """User -> the time of the last erasure."""
    times: dict[str, datetime] = {}
    for receipt in found:
        times[receipt.user] = max(receipt.time, times.get(receipt.user, receipt.time))
    return times


def is_over(row: Row, now: datetime, max_age_days: int | None) -> bool:
    """Whether the row must be gone by its own mark, or is older than the days given (a row without a time is)."""
    if row.retain_until is not None and row.retain_until <= now:
        return True
    if max_age_days is None:
        return False
    said = time_of(row)
    return said is None or said < now - timedelta(days=max_age_days)


def time_of(row: Row) -> datetime | None:
    """The row's time, or None where it says none that can be read. Without an offset it is taken as UTC."""
    try:
        said = datetime.fromisoformat(row.time or "")
    except ValueError:
        return None
    return said if said.tzinfo is not None else said.replace(tzinfo=UTC)


def _folders(source: str) -> Iterator[str]:
    """Where receipts of this source may lie: beside it, or beside the log's table that it is a part of."""
    location = parse_uri(source)
    parts = location.path.split("/") if location.path else []
    if location.scheme == "hf" or not parts:
        return
    tables = [index for index, part in enumerate(parts) if part == LogTable.TURNS]
    for above in dict.fromkeys([len(parts) - 1, *tables]):
        base = f"{location.scheme}://{location.root}/" if location.scheme != "file" else "file:///"
        yield join_uri(base + "/".join([*parts[:above], RECEIPTS]))
