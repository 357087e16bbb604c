"""Logs as one JSON object a line, with the object and the stage that a pass is about."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

_about: ContextVar[dict[str, str]] = ContextVar("about", default={})  # noqa: B039 -- never mutated, only replaced


@contextlib.contextmanager
def about(**fields: str) -> Iterator[None]:
    """Every line logged inside carries `fields`, beside those of outer calls."""
    token = _about.set(_about.get() | fields)
    try:
        yield
    finally:
        _about.reset(token)


class JsonFormatter(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "message": ..., "kind": ..., "namespace": ..., "name": ...}`"""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about.get(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, stream: TextIO = sys.stderr) -> None:
    """Sends everything at `level` and above to `stream`; kopf and the client library only from WARNING on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("kopf", "kubernetes", "aiohttp.access"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    # kopf runs in a thread on purpose; it says each time that signals are not for it.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
