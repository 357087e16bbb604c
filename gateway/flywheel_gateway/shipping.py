"""Finished segments on their way from the spool to a bucket.

A segment is deleted here only after it stands there whole. What an earlier process left in the spool goes first.
"""

import logging
import threading
from pathlib import Path
from typing import Final

from flywheel_gateway.segments import is_open, segment_files
from flywheel_gateway.stores import BucketStore

_log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 20.0


class Shipper:
    """A thread that uploads what is finished below `spool`."""

    def __init__(self, spool: Path, bucket: BucketStore, retry_seconds: float = RETRY_SECONDS) -> None:
        self._spool, self._bucket, self._retry_seconds = spool, bucket, retry_seconds
        self._wake, self._stop = threading.Event(), threading.Event()
        self.failures = self.shipped = 0
        self._thread = threading.Thread(target=self._run, name="log-shipper", daemon=True)

    def start(self) -> None:
        """Begins with what lies there."""
        self._wake.set()
        self._thread.start()

    def wake(self) -> None:
        """There is something to ship."""
        self._wake.set()

    def waiting(self) -> int:
        """Finished segments in the spool."""
        return sum(not is_open(path) for path in segment_files(self._spool))

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Ships the rest, as far as it goes within `seconds`; what is left lies in the spool for the next process."""
        self._stop.set()
        self._wake.set()
        self._thread.join(seconds)
        left = self.waiting()
        if left:
            _log.error("the bucket is away at the end: %d segments stay in the spool %s", left, self._spool)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            stopping = self._stop.is_set()
            if not self._ship_all():
                self._stop.wait(self._retry_seconds) if not stopping else self._pause()
                self._wake.set()
            elif stopping:
                return

    @staticmethod
    def _pause() -> None:
        threading.Event().wait(0.2)

    def _ship_all(self) -> bool:
        """Uploads every finished segment; False where the bucket did not take one."""
        for path in segment_files(self._spool):
            if is_open(path):
                continue
            name = path.relative_to(self._spool).as_posix()
            try:
                self._bucket.upload(path, name)
            except Exception as error:  # noqa: BLE001 -- each driver has errors of its own; nothing is deleted, all retried
                self.failures += 1
                _log.error("the segment %s could not be uploaded (%s); it stays", name, type(error).__qualname__)
                return False
            path.unlink()
            self.shipped += 1
        return True
