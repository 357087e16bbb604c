"""The gateway's own log: one JSON object a line, without anything that a user or a model wrote.

Exceptions are written as their class and where they were raised: their text may quote a request.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO


class JsonFormatter(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "message": ..., "error": {"type": ..., "at": [...]}}`"""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            line["error"] = {
                "type": type(record.exc_info[1]).__qualname__,
                "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]],
            }
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends everything at `level` and above to `stream` (standard error); libraries only from WARNING on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("aiohttp", "fsspec", "uvicorn"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
