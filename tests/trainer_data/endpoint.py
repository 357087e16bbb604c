"""An OpenAI-compatible endpoint on the loopback that answers as it is told."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answers:
    """What the endpoint says, and what it was asked."""

    text: str | None = "fine"
    failures: list[int] = field(default_factory=list)
    """Status codes of the first answers; those that follow succeed."""
    body: Any = None
    """Instead of a chat completion."""
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    def answer(self, request: dict[str, Any], key: str | None) -> tuple[int, str]:
        """Status and text of an answer."""
        self.requests.append(request)
        self.keys.add(key)
        if self.failures:
            return self.failures.pop(0), f"refused, {key}"
        completion = {"choices": [{"message": {"role": "assistant", "content": self.text}}]}
        return 200, self.body if isinstance(self.body, str) else json.dumps(self.body or completion)


@contextlib.contextmanager
def endpoint(answers: Answers) -> Iterator[Answers]:
    """Serves `answers` at its `url` inside the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            status, text = answers.answer(json.loads(self.rfile.read(length)), self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Nothing: tests read no log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    answers.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
