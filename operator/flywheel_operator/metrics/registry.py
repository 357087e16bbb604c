"""The operator's Prometheus metrics, in a registry of their own."""

import functools
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flywheel_operator.model.abtest_status import ABTestStatus
from flywheel_operator.model.objects import ABTest, Generation, RewardModel
from flywheel_operator.model.phases import ABTEST_TERMINAL
from flywheel_operator.model.status import GenerationStatus, RewardModelStatus, StageStatus

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

Status = GenerationStatus | RewardModelStatus | ABTestStatus
_Put = Callable[..., None]
_OBJECT: Final = ("kind", "namespace", "name")


class Metrics:
    """All metrics; the methods say what happened."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._passes = Counter(
            "flywheel_reconcile",
            "Passes over our objects by how they ended.",
            ("kind", "result"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "flywheel_reconcile_seconds", "How long a pass took.", ("kind",), buckets=_SECONDS, registry=self.registry
        )
        self._phase = self._gauge("flywheel_{}_phase", "1 for the phase that the object is in.", "phase")
        self._progress = self._gauge("flywheel_{}_stage_progress", "Percent done of the stage that runs.", "stage")
        self._gates: dict[str, Gauge] = {
            part: self._one(f"flywheel_gate_{part}", help_, (*_OBJECT, "gate", "metric"))
            for part, help_ in (
                ("value", "What a gate's metric measured."),
                ("low", "The low end of its interval."),
                ("high", "The high end of its interval."),
                ("passed", "1 where the gate passed, 0 where it failed or was not measured."),
            )
        }
        self._paused = self._one(
            "flywheel_abtest_paused", "1 while production serves the treatment's users.", ("namespace", "name")
        )
        self._users = self._one(
            "flywheel_abtest_exposed_users", "Exposed users at the last look.", ("namespace", "name", "arm")
        )
        self._lifts: dict[str, Gauge] = {
            part: self._one(f"flywheel_abtest_{part}", help_, ("namespace", "name", "metric", "role"))
            for part, help_ in (
                ("lift", "Lift of a metric at the last look."),
                ("low", "The low end of its 95 % interval."),
                ("high", "The high end of its 95 % interval."),
            )
        }
        self._retries = Counter(
            "flywheel_stage_retries",
            "Attempts of a stage after its first.",
            ("kind", "namespace", "stage"),
            registry=self.registry,
        )
        self._switches = Counter(
            "flywheel_production_switches",
            "Changes of what a lineage's Service points at.",
            ("namespace", "lineage"),
            registry=self.registry,
        )
        self._shown: dict[tuple[str, str, str], set[tuple[Gauge, tuple[str, ...]]]] = {}

    def watch(self, name: str, help_: str, value: Callable[[], float]) -> None:
        """A gauge that asks `value` whenever it is scraped."""
        Gauge(name, help_, registry=self.registry).set_function(value)

    def watch_kinds(self, name: str, help_: str, kinds: tuple[str, ...], value: Callable[[str], float]) -> None:
        """A gauge per kind that asks `value` whenever it is scraped."""
        gauge = Gauge(name, help_, ("kind",), registry=self.registry)
        for kind in kinds:
            gauge.labels(kind).set_function(functools.partial(value, kind))

    def passed(self, kind: str, result: str, seconds: float) -> None:
        """A pass over an object of `kind` ended."""
        self._passes.labels(kind, result).inc()
        self._seconds.labels(kind).observe(seconds)

    def switched(self, namespace: str, lineage: str) -> None:
        """Production changed."""
        self._switches.labels(namespace, lineage).inc()

    def show(self, kind: str, observed: Generation | RewardModel | ABTest, status: Status) -> None:
        """What `status`, which now stands, says; `observed` is the object before."""
        key = (kind, observed.metadata.namespace, observed.metadata.name)
        before = self._shown.pop(key, set())
        now = self._shown[key] = set()

        def put(gauge: Gauge, value: float, *labels: str) -> None:
            now.add((gauge, labels))
            gauge.labels(*labels).set(value)

        put(self._phase[kind], 1, *key[1:], status.phase.value)
        if isinstance(status, ABTestStatus):
            self._show_test(put, key[1:], status)
        else:
            self._show_stages(put, key, status)
        for gauge, labels in before - now:
            gauge.remove(*labels)
        if not isinstance(status, ABTestStatus) and not isinstance(observed, ABTest):
            self._count_retries(kind, key[1], observed.status.stages, status.stages)

    def _show_test(self, put: _Put, name: tuple[str, str], status: ABTestStatus) -> None:
        if status.phase not in ABTEST_TERMINAL:
            put(self._paused, status.paused, *name)
        users = status.users
        if users is not None:
            put(self._users, users.control, *name, "control")
            put(self._users, users.treatment, *name, "treatment")
        for metric in status.metrics:
            for part in ("lift", "low", "high"):
                number = getattr(metric, part)
                if number is not None:
                    put(self._lifts[part], number, *name, metric.name, metric.role)

    def _show_stages(self, put: _Put, key: tuple[str, str, str], status: GenerationStatus | RewardModelStatus) -> None:
        kind = key[0]
        for stage in status.stages:
            if stage.progress is not None and stage.name.value == status.stage:
                put(self._progress[kind], stage.progress.percent, *key[1:], stage.name.value)
        for gate in status.gates:
            gate_labels = (*key, gate.name, gate.metric)
            put(self._gates["passed"], gate.verdict == "Passed", *gate_labels)
            for part in ("value", "low", "high"):
                number = getattr(gate, part)
                if number is not None:
                    put(self._gates[part], number, *gate_labels)

    def forget(self, kind: str, namespace: str, name: str) -> None:
        """The object is gone."""
        for gauge, labels in self._shown.pop((kind, namespace, name), set()):
            gauge.remove(*labels)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def _count_retries(self, kind: str, namespace: str, before: list[StageStatus], after: list[StageStatus]) -> None:
        attempts = {stage.name: stage.attempts for stage in before}
        for stage in after:
            more = stage.attempts - max(1, attempts.get(stage.name, 0))
            if more > 0:
                self._retries.labels(kind, namespace, stage.name.value).inc(more)

    def _gauge(self, name: str, help_: str, label: str) -> dict[str, Gauge]:
        return {
            kind: self._one(name.format(word), help_, ("namespace", "name", label))
            for kind, word in (("Generation", "generation"), ("RewardModel", "reward_model"), ("ABTest", "abtest"))
        }

    def _one(self, name: str, help_: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, help_, labels, registry=self.registry)
