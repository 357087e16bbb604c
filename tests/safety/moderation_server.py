"""A moderation API on loopback that does what a test tells it."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Moderation:
    """Flags what holds `badword` as `rude`, unless `answers` has something else: (status, body) for each request."""

    url: str = ""
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    location: str | None = None

    def answer(self, body: dict[str, Any]) -> tuple[int, bytes]:
        if self.answers:
            return self.answers.pop(0)
        results = [result(flagged="badword" in text) for text in body["input"]]
        return 200, json.dumps({"id": "m-1", "model": "m", "results": results}).encode()


def result(*, flagged: bool, **scores: float) -> dict[str, Any]:
    """One result as OpenAI's endpoint writes it."""
    return {
        "flagged": flagged,
        "categories": {"rude": flagged, "mean": False},
        "category_scores": scores or {"rude": 0.1},
    }


@contextlib.contextmanager
def moderation_server() -> Iterator[Moderation]:
    """A running endpoint."""
    told = Moderation()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.seen.append({"path": self.path, **body})
            told.keys.append(self.headers["authorization"])
            status, answer = told.answer(body)
            self.send_response(status)
            if told.location is not None:
                self.send_header("location", told.location)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
