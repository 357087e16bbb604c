"""Events are counted, not repeated; the condition Reconciled comes and goes."""

from datetime import UTC, datetime, timedelta

import pytest

from flywheel_operator.kube import errors, faults, parsing
from flywheel_operator.kube.client import Api
from flywheel_operator.kube.events import REMEMBERED, REPEAT_SECONDS, Recorder
from flywheel_operator.kube.execute import Execution
from flywheel_operator.kube.resources import EVENT, GENERATION, Key, Raw
from flywheel_operator.model.phases import Phase
from flywheel_operator.model.status import GenerationStatus
from flywheel_operator.plan.actions import Event, Plan
from tests.operator.kube_objects import generation_raw

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HELD = Event("Warning", "GateFailed", "winRate 0.48 is below 0.50")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def raw(api: Api, namespace: str) -> Raw:
    manifest = generation_raw()
    manifest["metadata"]["namespace"] = namespace
    return await api.create(manifest)


@pytest.mark.apiserver
async def test_the_same_event_again_is_a_count(api: Api, raw: Raw, namespace: str, kubectl) -> None:  # noqa: ANN001
    clock = Clock()
    recorder = Recorder(api, "me", clock)
    for _ in range(5):
        await recorder.record(raw, HELD, NOW)
    (event,) = await api.list(EVENT, namespace)
    assert (event["type"], event["reason"], event["note"]) == (HELD.type, HELD.reason, HELD.message)
    assert "series" not in event
    clock.now += REPEAT_SECONDS
    await recorder.record(raw, HELD, NOW + timedelta(minutes=1))
    (event,) = await api.list(EVENT, namespace)
    assert event["series"]["count"] == 6
    # After a restart nothing is remembered, and it is still the same Event.
    await Recorder(api, "me", clock).record(raw, HELD, NOW + timedelta(minutes=2))
    (event,) = await api.list(EVENT, namespace)
    assert event["series"]["count"] == 7
    await recorder.record(raw, Event("Normal", "Promoted", "it serves"), NOW)
    assert len(await api.list(EVENT, namespace)) == 2
    described = kubectl("describe", "gen", "g1")
    assert "GateFailed" in described
    assert "Promoted" in described


@pytest.mark.apiserver
async def test_an_event_that_the_server_forgot_is_said_anew(api: Api, raw: Raw, namespace: str) -> None:
    clock = Clock()
    recorder = Recorder(api, "me", clock)
    await recorder.record(raw, HELD, NOW)
    (event,) = await api.list(EVENT, namespace)
    await api.delete(EVENT, namespace, event["metadata"]["name"])
    clock.now += REPEAT_SECONDS
    await recorder.record(raw, HELD, NOW)
    (event,) = await api.list(EVENT, namespace)
    assert "series" not in event


@pytest.mark.apiserver
async def test_long_events_are_cut_at_the_limit_of_bytes(api: Api, raw: Raw, namespace: str) -> None:
    await Recorder(api, "me" * 200, Clock()).record(raw, Event("Normal", "R" * 300, "ü" * 2000), NOW)
    (event,) = await api.list(EVENT, namespace)
    assert event["note"].endswith("…")
    assert len(event["note"].encode()) <= 1024


@pytest.mark.apiserver
async def test_an_event_that_cannot_be_written_fails_nothing(api: Api, raw: Raw, caplog) -> None:  # noqa: ANN001
    lost = {**raw, "metadata": raw["metadata"] | {"namespace": "no-such-namespace"}}
    await Recorder(api, "me", Clock()).record(lost, HELD, NOW)
    assert "event GateFailed was not written" in caplog.text


class Nowhere(Api):
    """Takes every object and keeps none."""

    def __init__(self) -> None:
        pass

    async def create(self, manifest: Raw) -> Raw:
        return manifest


async def test_the_recorder_remembers_only_so_much(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr("flywheel_operator.kube.events.REMEMBERED", 3)
    recorder = Recorder(Nowhere(), "me", Clock())
    raw = generation_raw()
    raw["metadata"] |= {"namespace": "ns", "uid": "u"}
    for number in range(10):
        await recorder.record(raw, Event("Normal", "R", str(number)), NOW)
    assert len(recorder._said) == 3
    assert REMEMBERED > 1000


@pytest.mark.apiserver
async def test_a_fault_is_shown_beside_the_status_and_taken_away_again(api: Api, raw: Raw, namespace: str) -> None:
    async def now() -> Raw:
        return await api.get(GENERATION, namespace, "g1") or {}

    async def write(status: GenerationStatus) -> bool:
        generation = parsing.generation(await now())
        key = Key("Generation", namespace, "g1")
        return await Execution(api, key, generation.metadata, generation.status).run(Plan(status=status))

    await write(GenerationStatus(phase=Phase.RUNNING, stage="sft"))
    assert await faults.report(api, await now(), errors.ForbiddenError("no jobs for you"), NOW)
    assert not await faults.report(api, await now(), errors.ForbiddenError("no jobs for you"), NOW + timedelta(hours=1))
    found = await now()
    assert found["status"]["phase"] == "Running"
    condition = faults.fault_of(found)
    assert condition is not None
    assert (condition["status"], condition["reason"], condition["message"]) == ("False", "Forbidden", "no jobs for you")
    # The planner does not see it, and so neither copies it nor counts it as a change.
    assert parsing.generation(found).status.conditions == []
    assert not await write(GenerationStatus(phase=Phase.RUNNING, stage="sft"))
    # The planner's next status does not take it away; the next pass that succeeds does.
    await write(GenerationStatus(phase=Phase.EVALUATING, stage="evaluate"))
    assert faults.fault_of(await now()) is not None
    await faults.clear(api, await now(), NOW + timedelta(hours=2))
    found = await now()
    assert faults.fault_of(found) is None
    assert found["status"]["phase"] == "Evaluating"
    (condition,) = found["status"]["conditions"]
    assert (condition["status"], condition["lastTransitionTime"]) == ("True", "2026-01-01T02:00:00+00:00")
    assert parsing.generation(found).status.conditions == []
    version = found["metadata"]["resourceVersion"]
    await faults.clear(api, found, NOW)
    assert (await now())["metadata"]["resourceVersion"] == version
