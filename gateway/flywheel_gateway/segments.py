"""The files of the log: one open segment per table and date, and what became of those that nobody closed.

An open segment's name begins with `_`, so readers pass it by; finished, it is renamed. A finished segment never changes
but by an erasure.
"""

import logging
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from flywheel_contract.online import LogTable

_log = logging.getLogger(__name__)

OPEN: Final = "_"
SUFFIX: Final = ".jsonl"
_TAIL: Final = 1 << 16


class Segment:
    """One open file. Not for several threads at a time."""

    def __init__(self, root: Path, table: LogTable, date: str, name: str) -> None:
        """Raises OSError where it cannot be created."""
        folder = root / table / f"date={date}"
        folder.mkdir(parents=True, exist_ok=True)
        self.table, self.final, self.open_path = table, folder / f"{name}{SUFFIX}", folder / f"{OPEN}{name}{SUFFIX}"
        self._fd = os.open(self.open_path, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY, 0o640)
        self.size = self.rows = 0
        self.opened = time.monotonic()
        self.dirty = False

    def append(self, data: bytes, rows: int) -> None:
        """Writes whole lines, or nothing and raises OSError: a reader never sees half a line of ours.

        Where what was written in part cannot be taken back either, `mend` does it.
        """
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)
        self.rows += rows
        self.dirty = True

    def sync(self) -> None:
        """Makes what was written survive the machine. Raises OSError."""
        if self.dirty:
            os.fsync(self._fd)
            self.dirty = False

    def finish(self) -> int:
        """Closes the file and gives it its name; answers how many rows are gone because somebody removed it.

        Raises:
            OSError: the store is away; the segment is still open and may be finished later, or given up and mended.
        """
        self.sync()
        lost = 0
        try:
            self.open_path.rename(self.final)
        except FileNotFoundError:
            # Another gateway took it for abandoned and renamed it, which is as good, or somebody deleted it.
            lost = self.rows if os.fstat(self._fd).st_nlink == 0 else 0
        else:
            sync_folder(self.final.parent)
        self.give_up()
        return lost

    def give_up(self) -> None:
        """Closes the file as it is: nothing is written to it any more. What was to be kept was synced before."""
        try:
            os.close(self._fd)
        except OSError as error:
            _log.warning("closing %s failed (%s)", self.open_path.name, error.strerror or "no reason")

    def mend(self) -> int:
        """Finishes a file that was given up, through its name: its descriptor may fail for ever (ESTALE).

        It is cut to the rows that were written (the others are written elsewhere); answers how many of them are gone.

        Raises:
            OSError: the store is away; to be tried again.
        """
        lost = 0
        try:
            size = _cut(self.open_path, self.size)
            if size < self.size:
                lost = self.rows - self.open_path.read_bytes().count(b"\n")
            if size == 0:
                self.open_path.unlink()
            else:
                self.open_path.rename(self.final)
        except FileNotFoundError:
            # We had renamed it already, or another gateway has; or somebody deleted it.
            if not self.final.exists():
                return self.rows
        sync_folder(self.final.parent)
        return lost


def sync_folder(folder: Path) -> None:
    """Makes names in `folder` survive the machine. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def segment_files(root: Path) -> Iterator[Path]:
    """All segments, open ones too, table by table and sorted by name."""
    for table in LogTable:
        yield from sorted((root / table).glob(f"date=*/*{SUFFIX}"))


def is_open(path: Path) -> bool:
    """Whether somebody may still write to it."""
    return path.name.startswith(OPEN)


def adopt(root: Path, older_than: float, mine: Collection[Path] = ()) -> list[Path]:
    """Finishes the open segments that nobody has written to since `older_than` (seconds since the epoch).

    What a killed writer left may end in half a line: it is cut off. A segment without a whole line is removed.
    Several gateways may do this at a time; a live writer whose segment is taken goes on into the renamed file.
    """
    found = []
    for path in segment_files(root):
        if not is_open(path) or path in mine:
            continue
        try:
            if path.stat().st_mtime > older_than:
                continue
            final = path.with_name(path.name.removeprefix(OPEN))
            if _cut(path) == 0:
                path.unlink()
                continue
            path.rename(final)
        except FileNotFoundError:
            continue  # another one was quicker
        sync_folder(final.parent)
        _log.info("adopted the segment %s", final.relative_to(root))
        found.append(final)
    return found


def _cut(path: Path, limit: int | None = None) -> int:
    """Cuts a file behind its last whole line within `limit` bytes, syncs it and answers its new size."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        if limit is not None:
            end = min(end, limit)
        while end > 0:
            start = max(0, end - _TAIL)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
        os.fsync(file.fileno())
    return end
