"""A bench for the planner of ABTests: one test, what is around it, and an executor that takes every wish for a deed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from flywheel_contract.experiment import (
    AnalysisReason,
    AnalysisResult,
    ArmStatistics,
    BaselineMetric,
    BaselineReport,
    MeasureStatus,
    MetricKind,
    MetricReading,
    SampleRatio,
    Users,
    Window,
)
from flywheel_operator.decide.production import promote
from flywheel_operator.model.experiment import DEFAULT_GUARDRAILS, DEFAULT_PRIMARIES
from flywheel_operator.model.names import ANNOTATION_CONFIG
from flywheel_operator.model.objects import ABTest, Generation
from flywheel_operator.model.observed import DeploymentView, JobState, JobView, ObservedABTest, ServerView
from flywheel_operator.model.phases import ABTEST_TERMINAL, ABTEST_TRANSITIONS, ABTestPhase
from flywheel_operator.model.production import Production, ProductionRecord
from flywheel_operator.plan import abtest
from flywheel_operator.plan.actions import Plan
from tests.unit.build import SETTINGS, T0, digest, generation_spec, raw_object

DAY = 86400.0
NAME = "luna-2-test"


def reading(name: str, lift: float = 0.0, error: float = 0.01, **more: Any) -> MetricReading:  # noqa: ANN401 -- its fields
    return MetricReading(
        name=name,
        status=MeasureStatus.MEASURED,
        control=1.0,
        treatment=1.0 + lift,
        control_sum=1000,
        treatment_sum=1000 * (1 + lift),
        lift=lift,
        low=lift - 2 * error,
        high=lift + 2 * error,
        log_standard_error=error,
        difference_upper=0.0001,
        harm_p_value=0.5,
        **more,
    )


def result(lift: float = 0.0, *, users: int = 1000, p: float = 0.5, harm: float = 0.0) -> AnalysisResult:
    """An analysis in which both primaries have the same lift, and the first guardrail rises by `harm`."""
    guardrails = [g.metric for g in DEFAULT_GUARDRAILS]
    return AnalysisResult(
        reason=AnalysisReason.SUCCEEDED,
        window=Window(start="a", end="b", days=7),
        users=Users(control=users, treatment=users),
        sample_ratio=SampleRatio(expected_treatment_share=0.5, observed_treatment_share=0.5, p_value=p),
        metrics=[
            *(reading(name, lift) for name in DEFAULT_PRIMARIES),
            reading(guardrails[0], harm).model_copy(update={"difference_upper": 1.0 if harm else 0.0001}),
            *(reading(name) for name in guardrails[1:]),
        ],
    )


def baseline(users: int) -> AnalysisResult:
    window = Window(start="a", end="b", days=7)
    statistics = ArmStatistics(n=users, mean=2.0, variance=4.0, numerator=2.0 * users, denominator=users)
    names = [*DEFAULT_PRIMARIES, *(g.metric for g in DEFAULT_GUARDRAILS)]
    metrics = [BaselineMetric(name=name, kind=MetricKind.MEAN, statistics=statistics) for name in names]
    return AnalysisResult(
        reason=AnalysisReason.SUCCEEDED, baseline=BaselineReport(window=window, users=users, metrics=metrics)
    )


@dataclass
class Bench:
    """One test, what is around it, and an executor that takes every wish for a deed."""

    raw: dict[str, Any]
    now: datetime = T0
    generations: dict[str, Generation] = field(default_factory=dict)
    record: ProductionRecord | None = None
    version: int = 1
    deployments: dict[str, DeploymentView] = field(default_factory=dict)
    jobs: dict[str, JobView] = field(default_factory=dict)
    others: dict[str, ABTest] = field(default_factory=dict)
    config_maps: dict[str, dict[str, str]] = field(default_factory=dict)
    ready: bool = True
    events: list[str] = field(default_factory=list)
    manifests: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def test(self) -> ABTest:
        return ABTest.model_validate_json(json.dumps(self.raw))

    def observe(self) -> ObservedABTest:
        servers = {
            name: ServerView(name, g.status.candidate.digest, 1, int(self.ready))
            for name, g in self.generations.items()
            if g.status.candidate is not None
        }
        production = None if self.record is None else Production(self.record, str(self.version))
        return ObservedABTest(
            test=self.test,
            now=self.now,
            settings=SETTINGS,
            generations=self.generations,
            tests={**self.others, NAME: self.test},
            config_maps=self.config_maps,
            jobs=self.jobs,
            deployments=self.deployments,
            servers=servers,
            production=production,
        )

    def step(self) -> Plan[Any]:
        """One pass, carried out."""
        observed = self.observe()
        plan = abtest.plan(observed)
        assert abtest.plan(observed) == plan, "asked twice, it wants the same"
        names = [(m["kind"], m["metadata"]["name"]) for m in (*plan.create, *plan.apply)]
        assert len(set(names)) == len(names)
        assert plan.status.phase in ABTEST_TRANSITIONS[self.test.status.phase]
        before = self.test.status.phase
        for manifest in (*plan.create, *plan.apply):
            self._take(manifest)
        if plan.switch is not None:
            assert (str(self.version) if self.record else None) == plan.switch.resource_version
            self.record, self.version = plan.switch.record, self.version + 1
        for ref in plan.delete:
            self.deployments.pop(ref.name, None)
            self.jobs.pop(ref.name, None)
            self.manifests.pop((ref.kind, ref.name), None)
        if plan.add_finalizer:
            self.raw["metadata"].setdefault("finalizers", []).append(plan.add_finalizer)
        if plan.remove_finalizer:
            self.raw["metadata"]["finalizers"].remove(plan.remove_finalizer)
        self.raw["status"] = plan.status.to_json()
        self.events += [e.reason for e in plan.events]
        if before in ABTEST_TERMINAL:
            assert plan.status.phase is before
        return plan

    def _take(self, manifest: dict[str, Any]) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        self.manifests[kind, name] = manifest
        if kind == "Deployment":
            replicas = manifest["spec"]["replicas"]
            config = manifest["metadata"]["annotations"].get(ANNOTATION_CONFIG, "")
            self.deployments[name] = DeploymentView(name, config, replicas, replicas if self.ready else 0)
        elif kind == "Job":
            self.jobs.setdefault(name, JobView(name, JobState.RUNNING))

    def delete(self) -> None:
        """Someone deletes the test."""
        self.raw["metadata"]["deletionTimestamp"] = f"{self.now:%Y-%m-%dT%H:%M:%SZ}"

    def finish(self, run: str, given: AnalysisResult | None, **view: Any) -> None:  # noqa: ANN401 -- fields of the view
        """The Job of `run` ends."""
        entry = next(r for r in self.test.status.runs if r.name == run)
        assert entry.job is not None
        state = JobState.SUCCEEDED if given is not None else JobState.FAILED
        self.jobs[entry.job] = JobView(entry.job, state, analysis=given, **view)

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def until_running(self, history: AnalysisResult | None = None) -> None:
        """Provisioned, with the window open."""
        self.step()
        self.step()
        self.finish("baseline", history or AnalysisResult(reason=AnalysisReason.NO_DATA))
        self.step()
        self.step()
        assert self.phase is ABTestPhase.RUNNING

    def look(self, run: str, given: AnalysisResult) -> None:
        """The look `run` starts, and measures `given`."""
        self.step()
        self.finish(run, given)
        self.step()

    def to_the_end(self, given: AnalysisResult) -> None:
        """The window passes, and the last analysis measures `given`."""
        end = self.test.status.window_end
        assert end is not None
        self.now = end + timedelta(minutes=10)
        name = "final-1" if self.test.status.extensions else "final"
        self.look(name, given)

    @property
    def phase(self) -> ABTestPhase:
        return self.test.status.phase

    @property
    def verdict(self) -> tuple[str, str] | None:
        verdict = self.test.status.verdict
        return (verdict.result.value, verdict.reason.value) if verdict is not None else None

    def condition(self, kind: str) -> tuple[str, str, str]:
        found = next(c for c in self.test.status.conditions if c.type == kind)
        return found.status, found.reason, found.message

    def service(self, name: str) -> Mapping[str, str]:
        selector: Mapping[str, str] = self.manifests["Service", name]["spec"]["selector"]
        return selector


def generation(name: str, spec: dict[str, Any] | None = None, **status: Any) -> Generation:  # noqa: ANN401 -- fields
    raw = raw_object("Generation", name, generation_spec(**spec or {}))
    raw["status"] = {"candidate": {"generation": name, "uri": f"pvc://m/{name}", "digest": digest(name)}, **status}
    return Generation.model_validate_json(json.dumps(raw))


def between_generations(**spec: Any) -> Bench:  # noqa: ANN401 -- fields of the spec
    raw = {
        "metadata": {"name": NAME, "namespace": "team", "uid": "uid-test", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "lineage": "luna",
            "control": {"generation": "luna-1"},
            "treatment": {"generation": "luna-2"},
            "artifacts": {"uri": "pvc://artifacts/runs"},
            **spec,
        },
    }
    record = promote(ProductionRecord(), "luna-1", "pvc://m/luna-1", digest("luna-1"), T0)
    return Bench(raw, generations={n: generation(n) for n in ("luna-1", "luna-2")}, record=record)
