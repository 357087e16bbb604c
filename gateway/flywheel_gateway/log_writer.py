"""Rows of the log on their way to the disk: taken from the event loop at once, written by a thread.

What a killed process loses is what the thread has not yet taken from the queue, a few hundredths of a second; what a
lost machine loses is what was not yet synced, `flushSeconds`. While the store is away rows wait in memory, up to
`queueBytes`; more are lost, counted by table, and said in the process's log. Requests go on: users come before logs.

A file that fails is given up and its rows go on in a new one: the store may be back while an old descriptor fails for
ever (ESTALE). The other tables and days do not wait for it.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from flywheel_contract.gateway_config import LogSettings
from flywheel_contract.online import LogTable
from flywheel_gateway.segments import Segment, adopt

_log = logging.getLogger(__name__)

GATHER_SECONDS: Final = 0.02
"""Rows that come within this time are written together."""
RETRY_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 20.0
_Key = tuple[LogTable, str]


class LogWriter:
    """Writes rows into segments below `root`. `finished` is told of every segment that may be read or shipped."""

    def __init__(
        self,
        root: Path,
        settings: LogSettings,
        name: str,
        *,
        alone: bool = False,
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        """`name` is unique among all writers ever; `alone` says that nobody else writes below `root`."""
        self._root, self._settings, self._name, self._alone = root, settings, name, alone
        self._finished = finished
        self._queue: deque[tuple[float, _Key, bytes]] = deque()
        self._pending: dict[_Key, list[bytes]] = {}
        self._pending_since: float | None = None
        self._segments: dict[_Key, Segment] = {}
        self._given_up: list[Segment] = []
        self._number = 0
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._last_sync = self._last_adoption = self._retry_at = 0.0
        self._away = False
        self.lost: Counter[LogTable] = Counter()
        self.written: Counter[LogTable] = Counter()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def put(self, table: LogTable, date: str, line: bytes) -> bool:
        """Takes a row (a line with its newline); False where there is no room and the row is lost. Never blocks."""
        with self._lock:
            if self._queued_bytes + len(line) > self._settings.queue_bytes:
                self.lost[table] += 1
                return False
            self._queued_bytes += len(line)
            self._queue.append((time.monotonic(), (table, date), line))
        self._wake.set()
        return True

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Writes what is queued, finishes all segments; what the store does not take within `seconds` is lost."""
        self._stop.set()
        self._wake.set()
        self._thread.join(seconds)
        with self._lock:
            left = Counter(key[0] for _, key, _ in self._queue)
        for key, lines in self._pending.items():
            left[key[0]] += len(lines)
        if left or self._thread.is_alive():
            self.lost.update(left)
            _log.error("the store is away at the end: %d rows are lost", sum(left.values()))

    @property
    def alive(self) -> bool:
        """Whether the thread runs. If it does not, a fault of ours ended it and rows pile up."""
        return self._thread.is_alive()

    @property
    def queued_bytes(self) -> int:
        """Bytes of the rows that are not yet in a file."""
        return self._queued_bytes

    def lag(self) -> float:
        """Seconds that the oldest row waits for its file."""
        since = self._pending_since
        if since is None:
            with self._lock:
                since = self._queue[0][0] if self._queue else None
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        while True:
            self._wake.wait(min(self._settings.flush_seconds, self._settings.rotate_seconds) / 2)
            self._wake.clear()
            stopping = self._stop.is_set()
            if not stopping:
                self._stop.wait(GATHER_SECONDS)
            self._take()
            if time.monotonic() >= self._retry_at or stopping:
                self._pass(finish_all=stopping)
            if stopping and not (self._segments or self._given_up or self._pending or self._queue):
                return
            if stopping:
                # The store is away: try on until `close` gives up.
                time.sleep(0.1)
                self._wake.set()

    def _take(self) -> None:
        """From the queue into the batches by segment."""
        with self._lock:
            taken, self._queue = self._queue, deque()
        if taken and self._pending_since is None:
            self._pending_since = taken[0][0]
        for _, key, line in taken:
            self._pending.setdefault(key, []).append(line)

    def _pass(self, *, finish_all: bool) -> None:
        """Writes, syncs, rotates and adopts what is due; a store that is away is tried again later."""
        errors = self._each(list(self._pending), self._write)
        if not self._pending:
            self._pending_since = None
        now = time.monotonic()
        if finish_all or now - self._last_sync >= self._settings.flush_seconds:
            errors += self._each(list(self._segments), lambda key: self._segments[key].sync())
            self._last_sync = now
        due = [key for key, segment in self._segments.items() if finish_all or self._is_due(segment, now)]
        errors += self._each(due, self._finish)
        errors += self._mend()
        try:
            if now - self._last_adoption >= self._settings.rotate_seconds or self._last_adoption == 0:
                self._adopt()
                self._last_adoption = now
        except OSError as error:
            errors.append(error)
        if errors:
            if not self._away:
                reason = errors[0].strerror or "no reason"
                _log.error("the store cannot be written to (%s): rows wait in memory", reason)
            self._away, self._retry_at = True, time.monotonic() + RETRY_SECONDS
            return
        if self._away:
            _log.warning("the store can be written to again; rows lost so far: %d", sum(self.lost.values()))
        self._away, self._retry_at = False, 0.0

    def _each(self, keys: Iterable[_Key], act: Callable[[_Key], None]) -> list[OSError]:
        """Does it to each; where it fails the segment is given up, and the next row of that key opens another one."""
        errors = []
        for key in keys:
            try:
                act(key)
            except OSError as error:
                errors.append(error)
                segment = self._segments.pop(key, None)
                if segment is not None:
                    segment.give_up()
                    self._given_up.append(segment)
        return errors

    def _is_due(self, segment: Segment, now: float) -> bool:
        return now - segment.opened >= self._settings.rotate_seconds or segment.size >= self._settings.rotate_bytes

    def _write(self, key: _Key) -> None:
        lines = self._pending[key]
        segment = self._segments.get(key)
        if segment is None:
            segment = Segment(self._root, *key, f"{self._name}-{self._number}")
            self._segments[key] = segment
            self._number += 1
        data = b"".join(lines)
        segment.append(data, len(lines))
        del self._pending[key]
        self.written[key[0]] += len(lines)
        with self._lock:
            self._queued_bytes -= len(data)

    def _finish(self, key: _Key) -> None:
        segment = self._segments[key]
        gone = segment.finish()
        del self._segments[key]
        self._count(segment, gone)

    def _mend(self) -> list[OSError]:
        """Finishes what was given up; what cannot be yet is tried again."""
        errors, given_up = [], self._given_up
        self._given_up = []
        for segment in given_up:
            try:
                self._count(segment, segment.mend())
            except OSError as error:
                errors.append(error)
                self._given_up.append(segment)
        return errors

    def _count(self, segment: Segment, gone: int) -> None:
        if gone:
            self.lost[segment.table] += gone
            _log.error("an open segment of %s was removed or cut: %d rows are lost", segment.table, gone)
        self._finished()

    def _adopt(self) -> None:
        """A live writer's segment is never older than `rotateSeconds`: it finishes idle ones too."""
        patience = 0.0 if self._alone else 2 * self._settings.rotate_seconds + 60
        mine = {segment.open_path for segment in (*self._segments.values(), *self._given_up)}
        if adopt(self._root, time.time() - patience, mine):
            self._finished()
