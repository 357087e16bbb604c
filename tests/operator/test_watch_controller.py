"""Passes over real objects with planners of our own: what happens after success, conflict, refusal and bugs."""

# ruff: noqa: ANN401 -- fixtures that are functions

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from flywheel_operator.kube import errors, faults
from flywheel_operator.kube.client import Api
from flywheel_operator.kube.events import Recorder
from flywheel_operator.kube.observe import Observer
from flywheel_operator.kube.resources import EVENT, GENERATION, JOB, POD, REWARD_MODEL, SERVICE, Key, Raw
from flywheel_operator.manifests.server import public_service
from flywheel_operator.metrics.registry import Metrics
from flywheel_operator.model.abtest_status import ABTestStatus
from flywheel_operator.model.observed import ObservedABTest, ObservedGeneration, ObservedRewardModel, Settings
from flywheel_operator.model.phases import Phase
from flywheel_operator.model.production import ProductionRecord
from flywheel_operator.model.status import GenerationStatus, RewardModelStatus
from flywheel_operator.plan.actions import Event, Plan, SwitchProduction
from flywheel_operator.watch.controller import STUBBORN_FAILURES, Controller, Planners
from flywheel_operator.watch.health import Vitals
from flywheel_operator.watch.routing import Router
from flywheel_operator.watch.workqueue import WorkQueue
from tests.operator.kube_objects import generation_raw, job_manifest, reward_model_raw

pytestmark = pytest.mark.apiserver


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A controller with everything that it needs, and planners that do as they are told."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.clock = Clock()
        self.queue: WorkQueue[Key] = WorkQueue(self.clock, lambda: 0.5)
        self.metrics = Metrics()
        self.vitals = Vitals(self.clock, 300.0, self.queue.oldest_seconds, self.queue.longest_pass_seconds)
        self.plan: Callable[[ObservedGeneration], Plan[GenerationStatus]] = lambda o: Plan(status=o.generation.status)
        self.controller = Controller(
            api,
            Observer(api, Settings(trainer_image="t"), None),  # type: ignore[arg-type] -- nothing runs here
            Recorder(api, "me", self.clock),
            Planners(self.plan_generation, self.plan_reward_model, self.plan_ab_test),
            self.queue,
            Router(),
            self.metrics,
            self.vitals,
            (namespace,),
        )
        self.key = Key("Generation", namespace, "g1")

    def plan_generation(self, observed: ObservedGeneration) -> Plan[GenerationStatus]:
        return self.plan(observed)

    def plan_ab_test(self, observed: ObservedABTest) -> Plan[ABTestStatus]:
        return Plan(status=observed.test.status.model_copy(update={"stage": "seen"}))

    def plan_reward_model(self, observed: ObservedRewardModel) -> Plan[RewardModelStatus]:
        return Plan(status=observed.reward_model.status)

    async def create(self, manifest: Raw) -> Raw:
        manifest["metadata"]["namespace"] = self.namespace
        return await self.api.create(manifest)

    async def generation(self) -> Raw:
        return await self.api.get(GENERATION, self.namespace, "g1") or {}

    def count(self, result: str, kind: str = "Generation") -> float | None:
        return self.metrics.registry.get_sample_value("flywheel_reconcile_total", {"kind": kind, "result": result})


@pytest.fixture
async def bench(api: Api, namespace: str) -> Bench:
    bench = Bench(api, namespace)
    await bench.create(generation_raw())
    return bench


async def test_a_pass_writes_the_status_says_the_events_and_wakes_others(bench: Bench) -> None:
    def plan(observed: ObservedGeneration) -> Plan[GenerationStatus]:
        return Plan(
            status=GenerationStatus(phase=Phase.RUNNING, stage="sft"),
            events=(Event("Normal", "Started", "it begins"), Event("Warning", "Slow", "it is slow")),
            wake=("g2",),
            requeue_after=30,
        )

    bench.plan = plan
    assert await bench.controller.handle(bench.key) == "changed"
    assert (await bench.generation())["status"]["phase"] == "Running"
    reasons = {event["reason"] for event in await bench.api.list(EVENT, bench.namespace)}
    assert reasons == {"Started", "Slow"}
    assert bench.queue.poll() == Key("Generation", bench.namespace, "g2")
    bench.clock.now += 31
    assert bench.queue.poll() == bench.key
    assert await bench.controller.handle(bench.key) == "unchanged"
    assert (bench.count("changed"), bench.count("unchanged")) == (1, 1)


async def test_generations_of_a_lineage_are_looked_at_one_after_the_other(bench: Bench) -> None:
    await bench.create(generation_raw("g2"))
    seen: dict[str, Phase] = {}

    def plan(observed: ObservedGeneration) -> Plan[GenerationStatus]:
        mate = {"g1": "g2", "g2": "g1"}[observed.generation.metadata.name]
        seen[observed.generation.metadata.name] = observed.generations[mate].status.phase
        return Plan(status=GenerationStatus(phase=Phase.RUNNING))

    bench.plan = plan
    await bench.controller.resync()
    keys = [Key("Generation", bench.namespace, name) for name in ("g1", "g2")]
    assert await asyncio.gather(*(bench.controller.handle(key) for key in keys)) == ["changed", "changed"]
    # The second one to have its turn saw what the first one had written.
    assert sorted(seen.values()) == [Phase.PENDING, Phase.RUNNING]


async def test_a_reward_model_has_its_own_planner(bench: Bench) -> None:
    await bench.create(reward_model_raw())
    assert await bench.controller.handle(Key("RewardModel", bench.namespace, "rm1")) == "unchanged"


async def test_what_is_gone_is_forgotten(bench: Bench) -> None:
    await bench.controller.handle(bench.key)
    about = {"namespace": bench.namespace, "name": "g1", "phase": "Pending"}
    assert bench.metrics.registry.get_sample_value("flywheel_generation_phase", about) == 1
    await bench.api.delete(GENERATION, bench.namespace, "g1")
    assert await bench.controller.handle(bench.key) == "gone"
    assert bench.metrics.registry.get_sample_value("flywheel_generation_phase", about) is None


async def test_a_switch_is_counted(bench: Bench) -> None:
    switch = SwitchProduction(public_service("luna", bench.namespace, ProductionRecord()), ProductionRecord(), None)
    bench.plan = lambda o: Plan(status=o.generation.status, switch=switch)
    assert await bench.controller.handle(bench.key) == "changed"
    about = {"namespace": bench.namespace, "lineage": "luna"}
    assert bench.metrics.registry.get_sample_value("flywheel_production_switches_total", about) == 1
    # It exists now: the same plan lost the race, and another look is due at once.
    assert await bench.controller.handle(bench.key) == "conflict"
    assert bench.queue.poll() == bench.key
    assert await bench.api.get(SERVICE, bench.namespace, "luna") is not None


async def test_what_no_retry_mends_is_shown_on_the_object_until_it_is_mended(bench: Bench) -> None:
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": bench.namespace}}
    await bench.api.create(theirs)
    bench.plan = lambda o: Plan(status=o.generation.status, create=(theirs,))
    assert await bench.controller.handle(bench.key) == "gave_up"
    assert await bench.controller.handle(bench.key) == "gave_up"
    fault = faults.fault_of(await bench.generation())
    assert fault is not None
    assert fault["reason"] == "NameTaken"
    (event,) = await bench.api.list(EVENT, bench.namespace)
    assert (event["type"], event["reason"]) == ("Warning", "NameTaken")
    assert "series" not in event
    bench.clock.now += 1000
    assert bench.queue.poll() is None
    bench.plan = lambda o: Plan(status=o.generation.status)
    assert await bench.controller.handle(bench.key) == "unchanged"
    assert faults.fault_of(await bench.generation()) is None


async def test_what_does_not_parse_ends_as_a_condition(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench.api.get

    async def newer(kind: Any, *args: Any) -> Raw | None:
        raw = await real(kind, *args)
        return raw | {"spec": raw["spec"] | {"novel": 1}} if raw and kind == GENERATION else raw

    monkeypatch.setattr(bench.api, "get", newer)
    assert await bench.controller.handle(bench.key) == "gave_up"
    fault = faults.fault_of(await bench.generation())
    assert fault is not None
    assert fault["reason"] == "Unreadable"
    assert "spec.novel: Extra inputs are not permitted" in fault["message"]


async def test_a_bug_over_one_object_is_shown_there_and_tried_again(bench: Bench, caplog: Any) -> None:
    def broken(_: ObservedGeneration) -> Plan[GenerationStatus]:
        raise ZeroDivisionError("of a planner")

    bench.plan = broken
    assert await bench.controller.handle(bench.key) == "error"
    assert "the operator broke over this object" in caplog.text
    fault = faults.fault_of(await bench.generation())
    assert fault is not None
    assert (fault["reason"], fault["message"]) == ("InternalError", "ZeroDivisionError: of a planner")
    bench.clock.now += 2
    assert bench.queue.poll() == bench.key


async def test_an_outage_is_waited_for_and_shown_once_it_lasts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(*_: Any) -> list[Raw]:
        raise errors.UnavailableError("list jobs: 503")

    real = bench.api.list
    monkeypatch.setattr(bench.api, "list", down)
    for _ in range(STUBBORN_FAILURES - 1):
        assert await bench.controller.handle(bench.key) == "error"
    assert faults.fault_of(await bench.generation()) is None
    await bench.controller.handle(bench.key)
    assert faults.fault_of(await bench.generation()) is not None
    assert bench.queue.failures(bench.key) == STUBBORN_FAILURES
    monkeypatch.setattr(bench.api, "list", real)
    await bench.controller.handle(bench.key)
    assert bench.queue.failures(bench.key) == 0
    assert faults.fault_of(await bench.generation()) is None


async def test_where_nothing_can_be_written_the_log_says_so(bench: Bench, monkeypatch: Any, caplog: Any) -> None:
    async def refused(*_: Any, **__: Any) -> Raw:
        raise errors.ForbiddenError("apply Generation status: no")

    bench.plan = lambda o: Plan(status=GenerationStatus(phase=Phase.RUNNING))
    monkeypatch.setattr(bench.api, "apply", refused)
    assert await bench.controller.handle(bench.key) == "gave_up"
    assert "the object does not show what is wrong with it" in caplog.text
    monkeypatch.setattr(bench.api, "get", refused)
    assert await bench.controller.handle(bench.key) == "gave_up"


async def test_a_pass_does_not_last_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(*_: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("flywheel_operator.watch.controller.PASS_SECONDS", 0.05)
    monkeypatch.setattr(bench.api, "get", hangs)
    assert await bench.controller.handle(bench.key) == "error"


async def test_an_object_that_goes_with_its_last_finalizer_is_no_error(bench: Bench) -> None:
    await bench.api.merge_patch(GENERATION, bench.namespace, "g1", {"metadata": {"finalizers": ["f.example.com/x"]}})
    raw = await bench.generation()
    await faults.report(bench.api, raw, errors.InvalidError("x"), datetime.now(UTC))
    await bench.api.delete(GENERATION, bench.namespace, "g1")
    bench.plan = lambda o: Plan(status=o.generation.status, remove_finalizer="f.example.com/x")
    assert await bench.controller.handle(bench.key) == "changed"
    assert await bench.generation() == {}


async def test_events_go_to_the_queue_and_resync_finds_what_they_missed(bench: Bench) -> None:
    raw = await bench.generation()
    bench.controller.notify(GENERATION, {k: v for k, v in raw.items() if k != "kind"}, False)
    assert bench.queue.poll() == bench.key
    bench.queue.done(bench.key)
    bench.controller.notify(JOB, job_manifest(raw, "j"), False)
    bench.controller.notify(POD, {"metadata": {"name": "p", "namespace": bench.namespace}}, True)
    assert [bench.queue.poll(), bench.queue.poll()] == [bench.key, None]
    bench.queue.done(bench.key)
    assert set(bench.vitals.last_event) == {"Generation", "Job", "Pod"}
    # One came and one went without an event.
    await bench.create(reward_model_raw())
    gone = generation_raw("gone")
    gone["metadata"] |= {"namespace": bench.namespace, "uid": "x"}
    bench.controller.notify(GENERATION, gone, False)
    await bench.controller.resync()
    queued = {bench.queue.poll() for _ in range(3)}
    assert {key.name for key in queued if key} == {"g1", "rm1", "gone"}
    assert bench.vitals.last_resync == bench.clock.now
    assert REWARD_MODEL.kind in {key.kind for key in queued if key}


async def test_workers_take_keys_until_the_queue_is_closed(bench: Bench) -> None:
    worker = asyncio.create_task(bench.controller.work())
    bench.queue.add(bench.key)
    while not bench.count("unchanged"):
        await asyncio.sleep(0.01)
    bench.queue.close()
    await asyncio.wait_for(worker, 5)


async def test_resync_goes_on_after_an_outage(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = bench.api.list, []

    async def down_once(*args: Any) -> list[Raw]:
        calls.append(args)
        if len(calls) == 1:
            raise errors.UnavailableError("503")
        return await real(*args)

    monkeypatch.setattr(bench.api, "list", down_once)
    bench.vitals.resync_seconds = 0.01
    task = asyncio.create_task(bench.controller.resync_for_ever())
    while bench.vitals.last_resync is None:
        await asyncio.sleep(0.01)
    task.cancel()
    assert bench.queue.poll() == bench.key
