"""Metrics say what status says, and nothing of what is gone."""

from datetime import UTC, datetime

from flywheel_contract.stages import Stage
from flywheel_operator.kube.parsing import generation
from flywheel_operator.metrics.registry import Metrics
from flywheel_operator.model.phases import Phase
from flywheel_operator.model.status import GateStatus, GenerationStatus, StageProgress, StageStatus
from tests.operator.kube_objects import generation_raw

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ABOUT = {"namespace": "ns", "name": "g1"}


def sample(metrics: Metrics, metric: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(metric, labels)


def observed(status: GenerationStatus | None = None):  # noqa: ANN201
    raw = generation_raw()
    raw["metadata"] |= {"namespace": "ns", "uid": "u"}
    return generation(raw).model_copy(update={"status": status or GenerationStatus()})


def running(percent: int, attempts: int = 1) -> GenerationStatus:
    stage = StageStatus(name=Stage.SFT, attempts=attempts, progress=StageProgress(percent=percent))
    return GenerationStatus(phase=Phase.RUNNING, stage="sft", stages=[stage])


def test_phase_and_progress_follow_status() -> None:
    metrics = Metrics()
    metrics.show("Generation", observed(), running(10))
    assert sample(metrics, "flywheel_generation_phase", **ABOUT, phase="Running") == 1
    assert sample(metrics, "flywheel_generation_stage_progress", **ABOUT, stage="sft") == 10
    metrics.show("Generation", observed(running(10)), running(60))
    assert sample(metrics, "flywheel_generation_stage_progress", **ABOUT, stage="sft") == 60
    done = GenerationStatus(phase=Phase.COMPLETED, stages=running(100).stages)
    metrics.show("Generation", observed(running(60)), done)
    assert sample(metrics, "flywheel_generation_phase", **ABOUT, phase="Running") is None
    assert sample(metrics, "flywheel_generation_phase", **ABOUT, phase="Completed") == 1
    assert sample(metrics, "flywheel_generation_stage_progress", **ABOUT, stage="sft") is None
    metrics.forget("Generation", "ns", "g1")
    metrics.forget("Generation", "ns", "g1")
    assert sample(metrics, "flywheel_generation_phase", **ABOUT, phase="Completed") is None


def test_gates() -> None:
    metrics = Metrics()
    gate = {"metric": "winRate", "bound": ">= 0.5", "message": "m"}
    gates = [
        GateStatus(name="better", verdict="Passed", value=0.6, low=0.55, n=100, **gate),
        GateStatus(name="unknown", verdict="NotMeasured", **gate),
    ]
    metrics.show("Generation", observed(), GenerationStatus(gates=gates))
    about = {"kind": "Generation", **ABOUT, "metric": "winRate"}
    assert sample(metrics, "flywheel_gate_value", **about, gate="better") == 0.6
    assert sample(metrics, "flywheel_gate_low", **about, gate="better") == 0.55
    assert sample(metrics, "flywheel_gate_high", **about, gate="better") is None
    assert sample(metrics, "flywheel_gate_passed", **about, gate="better") == 1
    assert sample(metrics, "flywheel_gate_passed", **about, gate="unknown") == 0
    assert sample(metrics, "flywheel_gate_value", **about, gate="unknown") is None


def test_retries_are_attempts_after_the_first() -> None:
    metrics = Metrics()
    about = {"kind": "Generation", "namespace": "ns", "stage": "sft"}
    metrics.show("Generation", observed(), running(0))
    assert sample(metrics, "flywheel_stage_retries_total", **about) is None
    metrics.show("Generation", observed(running(0)), running(0, attempts=2))
    metrics.show("Generation", observed(running(0, attempts=2)), running(5, attempts=2))
    metrics.show("Generation", observed(running(0, attempts=2)), running(5, attempts=3))
    assert sample(metrics, "flywheel_stage_retries_total", **about) == 2


def test_counters_and_gauges_that_ask() -> None:
    metrics = Metrics()
    metrics.passed("Generation", "changed", 0.2)
    metrics.switched("ns", "luna")
    metrics.watch("flywheel_queue_depth", "Depth.", lambda: 7)
    metrics.watch_kinds("flywheel_watch_last_event_seconds", "Age.", ("Job", "Pod"), lambda kind: float(len(kind)))
    assert sample(metrics, "flywheel_reconcile_total", kind="Generation", result="changed") == 1
    assert sample(metrics, "flywheel_reconcile_seconds_sum", kind="Generation") == 0.2
    assert sample(metrics, "flywheel_production_switches_total", namespace="ns", lineage="luna") == 1
    assert sample(metrics, "flywheel_queue_depth") == 7
    assert sample(metrics, "flywheel_watch_last_event_seconds", kind="Pod") == 3
    assert b"flywheel_queue_depth 7.0" in metrics.text()
