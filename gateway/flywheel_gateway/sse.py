"""Server-sent events: from the model server's bytes to whole events, and back."""

from typing import Any, Final

import orjson

DONE: Final = b"data: [DONE]\n\n"


class EventReader:
    """Collects bytes into events. Lines end with LF, CRLF or CR; comments and fields other than data are dropped."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of one event."""
        self._rest = b""
        self._data: list[bytes] = []
        self._limit = limit

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes.

        Raises:
            ValueError: an event is longer than the limit.
        """
        lines = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) + sum(map(len, self._data)) > self._limit:
            raise ValueError("an event is too long")
        events = []
        for raw in lines:
            line = raw.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events


def event(value: Any) -> bytes:  # noqa: ANN401 -- any JSON value
    """A JSON value as an event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def raw_event(data: bytes) -> bytes:
    """Data as it came, as an event."""
    return b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"
