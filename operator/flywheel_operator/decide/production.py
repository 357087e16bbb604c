"""What serves a lineage, and how that changes: pure steps from one record to the next."""

from datetime import datetime
from typing import Final

from flywheel_operator.model.production import Ended, ProductionRecord, Served

HISTORY_LIMIT: Final = 300
"""Entries kept; all annotations together may hold 256 KiB, and an entry takes up to 800 bytes."""


def promote(record: ProductionRecord, generation: str, uri: str, digest: str, now: datetime) -> ProductionRecord:
    """`generation` serves; what served before is superseded."""
    return ProductionRecord(
        serving=Served(generation=generation, uri=uri, digest=digest, since=now),
        history=_end(record, Ended.SUPERSEDED, now),
    )


def rollback(record: ProductionRecord, target: Served, now: datetime) -> ProductionRecord:
    """`target` serves again; what served is rolled back."""
    return ProductionRecord(
        serving=Served(generation=target.generation, uri=target.uri, digest=target.digest, since=now),
        history=_end(record, Ended.ROLLED_BACK, now),
    )


def retire(record: ProductionRecord, now: datetime) -> ProductionRecord:
    """Nothing serves any more."""
    return ProductionRecord(serving=None, history=_end(record, Ended.RETIRED, now))


def route(record: ProductionRecord, router: str | None) -> ProductionRecord:
    """Users come through the router of the ABTest `router`; None: straight to what serves."""
    return record.model_copy(update={"router": router})


def rollback_target(record: ProductionRecord) -> Served | None:
    """What served last before the serving one and was superseded, not rolled back or retired."""
    if record.serving is None:
        return None
    bad = {s.generation for s in record.history if s.ended is not Ended.SUPERSEDED} | {record.serving.generation}
    before: list[Served] = []
    for served in record.history:
        if served.generation == record.serving.generation:
            break  # what served after its first time is newer than it
        before.append(served)
    return next((s for s in reversed(before) if s.generation not in bad), None)


def last_time(record: ProductionRecord | None, generation: str) -> Served | None:
    """The last time that `generation` was in production, the present one included; None: it never was."""
    if record is None:
        return None
    if record.serving is not None and record.serving.generation == generation:
        return record.serving
    return next((s for s in reversed(record.history) if s.generation == generation), None)


def serving_digest(record: ProductionRecord | None) -> str | None:
    """The digest in production; None where nothing serves."""
    return record.serving.digest if record is not None and record.serving is not None else None


def _end(record: ProductionRecord, how: Ended, now: datetime) -> list[Served]:
    if record.serving is None:
        return record.history
    return [*record.history, record.serving.model_copy(update={"until": now, "ended": how})][-HISTORY_LIMIT:]
