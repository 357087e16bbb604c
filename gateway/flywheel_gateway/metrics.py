"""The gateway's Prometheus metrics, in a registry of their own. No label holds anything that a client chose."""

import functools
import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flywheel_contract.online import EventType, LogTable
from flywheel_gateway.log_writer import LogWriter
from flywheel_gateway.moderation import Moderator
from flywheel_gateway.shipping import Shipper

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_CATEGORIES_MAX: Final = 64
"""Series that an endpoint's own names may make; what comes after them is counted as `other`."""


class Metrics:
    """All metrics; the methods say what happened."""

    def __init__(self, generation: str) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "flywheel_gateway_requests", "Requests by path and status.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "flywheel_gateway_request_seconds",
            "From the request to the last byte of the answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_part = Histogram(
            "flywheel_gateway_first_part_seconds",
            "From the request to the first part of a streamed reply that the client gets.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("flywheel_gateway_in_flight", "Requests being answered.", registry=self.registry)
        self.events = Counter(
            "flywheel_gateway_events", "Events logged, by type.", ("type",), registry=self.registry
        )  # fmt: skip
        self.moderated = Counter(
            "flywheel_gateway_moderated",
            "Texts by what was moderated and what came out (safe, unsafe, failed).",
            ("what", "result"),
            registry=self.registry,
        )
        self.unsafe = Counter(
            "flywheel_gateway_unsafe",
            "Unsafe texts by what was moderated and the classifier's category.",
            ("what", "category"),
            registry=self.registry,
        )
        self.upstream_errors = Counter(
            "flywheel_gateway_upstream_errors",
            "Requests that the model server did not answer, by what went wrong.",
            ("kind",),
            registry=self.registry,
        )
        self.forged = Counter(
            "flywheel_gateway_forged_cookies", "Cookies that nobody with the key signed.", registry=self.registry
        )
        self.impostors = Counter(
            "flywheel_gateway_untrusted_headers",
            "Requests with the router's headers and without its token.",
            registry=self.registry,
        )
        self.new_users = Counter("flywheel_gateway_new_users", "Users who got a cookie.", registry=self.registry)
        self.limited = Counter("flywheel_gateway_limited", "Requests over the user's rate.", registry=self.registry)
        self.disconnects = Counter(
            "flywheel_gateway_disconnects", "Clients who left before the end.", registry=self.registry
        )
        self.undetected = Counter(
            "flywheel_gateway_undetected", "Replies that no detector saw: too many waited.", registry=self.registry
        )
        info = Gauge("flywheel_gateway_info", "1.", ("generation",), registry=self.registry)
        info.labels(generation).set(1)
        self._categories: set[str] = set()
        self._event_counters = {kind: self.events.labels(kind.value) for kind in EventType}

    def count_event(self, kind: EventType) -> None:
        """An event goes to the log."""
        self._event_counters[kind].inc()

    def said(self, what: str, category: str | None) -> None:
        """The classifier answered about a `prompt` or a `reply`; None: it is safe."""
        self.moderated.labels(what, "safe" if category is None else "unsafe").inc()
        if category is not None:
            if len(self._categories) < _CATEGORIES_MAX:
                self._categories.add(category)
            self.unsafe.labels(what, category if category in self._categories else "other").inc()

    def cannot_say(self, what: str) -> None:
        """The classifier failed on a `prompt` or a `reply`, which counts as unsafe."""
        self.moderated.labels(what, "failed").inc()

    def answered(self, path: str, status: int, began: float) -> None:
        """A request was answered; `began` is of the monotonic clock."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(time.monotonic() - began)

    def watch_log(self, writer: LogWriter) -> None:
        """Shows the state of the log's writer whenever it is scraped."""
        gauge = Gauge("flywheel_gateway_log_queue_bytes", "Rows not yet in a file.", registry=self.registry)
        gauge.set_function(lambda: writer.queued_bytes)
        lag = Gauge("flywheel_gateway_log_lag_seconds", "Age of the oldest of them.", registry=self.registry)
        lag.set_function(writer.lag)
        alive = Gauge("flywheel_gateway_log_alive", "1 while the writer runs.", registry=self.registry)
        alive.set_function(lambda: float(writer.alive))
        for name, about, counts in (
            ("flywheel_gateway_log_rows", "Rows written by this process.", writer.written),
            ("flywheel_gateway_log_rows_lost", "Rows that the log will never hold.", writer.lost),
        ):
            rows = Gauge(name, about, ("table",), registry=self.registry)
            for table in LogTable:
                rows.labels(table.value).set_function(functools.partial(counts.__getitem__, table))

    def watch_shipping(self, shipper: Shipper) -> None:
        """Shows the state of the uploads."""
        waiting = Gauge("flywheel_gateway_spooled_segments", "Segments not yet in the bucket.", registry=self.registry)
        waiting.set_function(shipper.waiting)
        failures = Gauge("flywheel_gateway_upload_failures", "Uploads that failed.", registry=self.registry)
        failures.set_function(lambda: shipper.failures)

    def watch_moderation(self, moderator: Moderator) -> None:
        """Shows how often the classifier failed."""
        failures = Gauge("flywheel_gateway_classifier_failures", "Texts it could not score.", registry=self.registry)
        failures.set_function(lambda: moderator.failures)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
