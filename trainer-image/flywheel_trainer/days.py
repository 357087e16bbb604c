"""Some days of a log: of a folder with `date=YYYY-MM-DD` folders in it, those of a range, as a folder of links.

A log that is still written has another digest a minute later. Days that are over do not change.
"""

import shutil
from datetime import UTC, datetime
from pathlib import Path

from flywheel_contract.online import LogTable
from flywheel_contract.stage_spec import DateRange, Input
from flywheel_contract.uris import join_uri
from flywheel_trainer.artifacts import Store
from flywheel_trainer.data.feedback import FOLDER as FEEDBACK
from flywheel_trainer.errors import DataError


def refuse_unfinished(spec: Input, now: datetime | None = None) -> None:
    """Raises DataError where the last day (UTC) is not over."""
    today = (now or datetime.now(UTC)).astimezone(UTC).date()
    if spec.dates is not None and spec.dates.last >= today:
        raise DataError(
            f"input {spec.name}: the day {spec.dates.last} is not over (UTC), so its files still change; "
            "set dates.last to an earlier day"
        )


def gather(store: Store, spec: Input, folder: Path) -> Path:
    """Fills `folder` with links to the files of the days in `spec.dates`, and answers it.

    With `spec.feedback` the events of the same days are linked below `_feedback`, where there are any.

    Raises:
        DataError: none of the days is there.
    """
    assert spec.dates is not None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _link(store, spec.uri, spec.dates, folder)
    if not any(folder.iterdir()):
        raise DataError(
            f"input {spec.name}: {spec.uri} has no folder date=YYYY-MM-DD with files from {spec.dates.first} to "
            f"{spec.dates.last}"
        )
    if spec.feedback:
        log = spec.uri.rstrip("/").removesuffix(LogTable.TURNS)
        _link(store, join_uri(log, LogTable.EVENTS), spec.dates, folder / FEEDBACK)
    return folder


def _link(store: Store, uri: str, dates: DateRange, folder: Path) -> None:
    for day in dates.days():
        name = f"date={day}"
        place = join_uri(uri, name)
        if not store.exists(place):
            continue
        source = store.local(place)
        for file in source.rglob("*"):
            inside = file.relative_to(source)
            # What begins with `_` is still open, and no reader's.
            if file.is_file() and not any(part.startswith(("_", ".")) for part in inside.parts):
                link = folder / name / inside
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
