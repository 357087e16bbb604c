"""The status endpoint of a running stage: `GET /progress` and `GET /healthz` on a thread of its own."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from flywheel_contract.progress import Progress


class ProgressBoard:
    """The last known progress. Written by the stage, read by the endpoint, from different threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress = Progress()
        self._first: tuple[float, float] | None = None

    def read(self) -> Progress:
        """The last snapshot."""
        with self._lock:
            return self._progress

    def write(
        self,
        now: float,
        *,
        percent: float | None = None,
        step: int | None = None,
        total_steps: int | None = None,
        loss: float | None = None,
        reward: float | None = None,
        message: str | None = None,
    ) -> Progress:
        """Takes over what is given and keeps the rest. `now` is in seconds of any monotonic clock.

        The ETA is the time per percent since the first report, so work of an earlier attempt does not flatter it.
        """
        with self._lock:
            old = self._progress
            step = old.step if step is None else step
            total_steps = old.total_steps if total_steps is None else total_steps
            done = _done(percent, step, total_steps, old.percent)
            if self._first is None:
                self._first = (now, done)
            self._progress = Progress(
                percent=min(100, max(0, int(done))),
                step=step,
                total_steps=total_steps,
                loss=old.loss if loss is None else loss,
                reward=old.reward if reward is None else reward,
                eta_seconds=_eta(self._first, now, done),
                message=(old.message if message is None else message)[:200],
            )
            return self._progress


def _done(percent: float | None, step: int | None, total_steps: int | None, old: float) -> float:
    if percent is not None:
        return percent
    if step is not None and total_steps:
        return 100 * step / total_steps
    return old


def _eta(first: tuple[float, float], now: float, done: float) -> int | None:
    start, begun = first
    if done <= begun:
        return None
    return max(0, round((now - start) * (100 - done) / (done - begun)))


class StatusServer:
    """Serves a board until it is closed. Port 0 takes a free one; `port` tells which."""

    def __init__(self, board: ProgressBoard, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/progress":
                    self._answer(200, board.read().model_dump_json(by_alias=True, exclude_none=True))
                elif self.path == "/healthz":
                    self._answer(200, '{"status":"ok"}')
                else:
                    self._answer(404, '{"error":"there are /progress and /healthz"}')

            def _answer(self, status: int, body: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
                """The operator's scrapes are no news."""

        self._server = ThreadingHTTPServer(("", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def monotonic() -> float:
    """Seconds of the clock that `ProgressBoard.write` is given."""
    return time.monotonic()
