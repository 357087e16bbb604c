"""Carrying out plans against a real API server."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from flywheel_operator.kube import errors, parsing
from flywheel_operator.kube.client import Api
from flywheel_operator.kube.execute import Execution
from flywheel_operator.kube.resources import CONFIG_MAP, DEPLOYMENT, GENERATION, JOB, SERVICE, Key, Raw
from flywheel_operator.manifests.server import public_service
from flywheel_operator.model.names import FINALIZER_SERVING
from flywheel_operator.model.phases import Phase
from flywheel_operator.model.production import ProductionRecord, Served
from flywheel_operator.model.status import Condition, GenerationStatus
from flywheel_operator.plan.actions import Plan, Ref, SwitchProduction
from tests.operator.kube_objects import MARKS, generation_raw, job_manifest, owner_of

pytestmark = pytest.mark.apiserver
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def raw(api: Api, namespace: str) -> Raw:
    manifest = generation_raw()
    manifest["metadata"]["namespace"] = namespace
    return await api.create(manifest)


def execution(api: Api, raw: Raw) -> Execution[GenerationStatus]:
    generation = parsing.generation(raw)
    key = Key("Generation", generation.metadata.namespace, generation.metadata.name)
    return Execution(api, key, generation.metadata, generation.status)


async def run(api: Api, raw: Raw, **plan: Any) -> bool:  # noqa: ANN401
    status = plan.pop("status", parsing.generation(raw).status)
    return await execution(api, raw).run(Plan(status=status, **plan))


async def again(api: Api, raw: Raw) -> Raw:
    found = await api.get(GENERATION, raw["metadata"]["namespace"], raw["metadata"]["name"])
    assert found is not None
    return found


async def test_a_plan_that_wants_nothing_asks_for_nothing(api: Api, raw: Raw) -> None:
    assert not await run(api, raw)
    assert (await again(api, raw))["metadata"]["resourceVersion"] == raw["metadata"]["resourceVersion"]


async def test_finalizers_come_and_go_and_those_of_others_stay(api: Api, raw: Raw, kubectl) -> None:  # noqa: ANN001
    kubectl("patch", "gen", "g1", "--type=merge", "-p", '{"metadata":{"finalizers":["example.com/theirs"]}}')
    with pytest.raises(errors.ConflictError):  # someone has written since
        await run(api, raw, add_finalizer=FINALIZER_SERVING)
    raw = await again(api, raw)
    assert await run(api, raw, add_finalizer=FINALIZER_SERVING)
    raw = await again(api, raw)
    assert raw["metadata"]["finalizers"] == ["example.com/theirs", FINALIZER_SERVING]
    assert not await run(api, raw, add_finalizer=FINALIZER_SERVING)
    # In one plan with a new status, whose writing changes the version that the finalizer's removal depends on.
    status = GenerationStatus(phase=Phase.COMPLETED)
    assert await run(api, raw, status=status, remove_finalizer=FINALIZER_SERVING)
    raw = await again(api, raw)
    assert raw["metadata"]["finalizers"] == ["example.com/theirs"]
    assert raw["status"]["phase"] == "Completed"
    assert not await run(api, raw, remove_finalizer=FINALIZER_SERVING)


async def test_create_leaves_what_is_there_as_it_is(api: Api, raw: Raw, namespace: str) -> None:
    job = job_manifest(raw, "g1-sft-1", suspend=True)
    assert await run(api, raw, create=(job,))
    first = await api.get(JOB, namespace, "g1-sft-1")
    assert first is not None
    # A queue admits it; another pass asks for the same Job again.
    await api.merge_patch(JOB, namespace, "g1-sft-1", {"spec": {"suspend": False}})
    await run(api, raw, create=(job,))
    second = await api.get(JOB, namespace, "g1-sft-1")
    assert second is not None
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert second["spec"]["suspend"] is False


def config_map(namespace: str, owner: Raw | None = None, **labels: str) -> Raw:
    metadata: Raw = {"name": "c", "namespace": namespace, "labels": labels}
    if owner:
        metadata["ownerReferences"] = [owner_of(owner)]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"k": "ours"}}


async def test_create_refuses_what_someone_else_made(api: Api, raw: Raw, namespace: str) -> None:
    await api.create(config_map(namespace) | {"data": {"k": "theirs"}})
    with pytest.raises(errors.NotOursError, match=r"ConfigMap .*/c exists and is not ours: rename or delete it"):
        await run(api, raw, create=(config_map(namespace, raw, **MARKS),))
    with pytest.raises(errors.NotOursError):
        await run(api, raw, create=(config_map(namespace),))  # without marks, nothing tells whose it is
    found = await api.get(CONFIG_MAP, namespace, "c")
    assert found is not None
    assert found["data"] == {"k": "theirs"}


async def test_create_waits_for_the_leavings_of_a_former_owner(api: Api, raw: Raw, namespace: str) -> None:
    # It stands for a former g1: for the garbage collector it has to exist.
    former = generation_raw("former")
    former["metadata"]["namespace"] = namespace
    former = await api.create(former)
    held = config_map(namespace, former, **MARKS)
    held["metadata"]["finalizers"] = ["example.com/hold"]
    await api.create(held)
    with pytest.raises(errors.NameBusyError, match="belongs to a former Generation of this name"):
        await run(api, raw, create=(config_map(namespace, raw, **MARKS),))
    await api.delete(CONFIG_MAP, namespace, "c")
    with pytest.raises(errors.NameBusyError, match="is being deleted"):
        await run(api, raw, create=(config_map(namespace, raw, **MARKS),))
    await api.merge_patch(CONFIG_MAP, namespace, "c", {"metadata": {"finalizers": None}})
    assert await run(api, raw, create=(config_map(namespace, raw, **MARKS),))


async def test_create_knows_ownerless_objects_by_their_marks(api: Api, raw: Raw, namespace: str) -> None:
    await run(api, raw, create=(config_map(namespace, **MARKS),))
    await run(api, raw, create=(config_map(namespace, **MARKS),))


def deployment(namespace: str, replicas: int) -> Raw:
    template = {
        "metadata": {"labels": {"app": "s"}},
        "spec": {"containers": [{"name": "s", "image": "none.invalid/s"}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "g1-server", "namespace": namespace, "labels": MARKS},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "s"}}, "template": template},
    }


async def test_apply_owns_what_it_says_and_leaves_the_rest(api: Api, raw: Raw, namespace: str, kubectl) -> None:  # noqa: ANN001
    await run(api, raw, apply=(deployment(namespace, 0),))
    kubectl("annotate", "deployment", "g1-server", "example.com/note=kept")
    kubectl("scale", "deployment", "g1-server", "--replicas=3")
    await run(api, raw, apply=(deployment(namespace, 0),))
    found = await api.get(DEPLOYMENT, namespace, "g1-server")
    assert found is not None
    assert found["spec"]["replicas"] == 0
    assert found["metadata"]["annotations"]["example.com/note"] == "kept"


async def test_a_deployment_of_someone_else_is_neither_taken_over_nor_deleted(
    api: Api, raw: Raw, namespace: str
) -> None:
    theirs = deployment(namespace, 0)
    del theirs["metadata"]["labels"]
    await api.create(theirs)
    with pytest.raises(errors.NotOursError, match="g1-server exists and is not ours"):
        await run(api, raw, apply=(deployment(namespace, 1),))
    await run(api, raw, delete=(Ref("apps/v1", "Deployment", "g1-server"),))
    found = await api.get(DEPLOYMENT, namespace, "g1-server")
    assert found is not None
    assert found["spec"]["replicas"] == 0


def switch(namespace: str, generation: str, version: str | None) -> SwitchProduction:
    served = Served(generation=generation, uri="pvc://a/b", digest="sha256:" + "0" * 64, since=NOW)
    record = ProductionRecord(serving=served)
    return SwitchProduction(public_service("luna", namespace, record), record, version)


async def test_switching_is_compare_and_swap(api: Api, raw: Raw, namespace: str, kubectl) -> None:  # noqa: ANN001
    await run(api, raw, switch=switch(namespace, "g1", None))
    with pytest.raises(errors.ConflictError):  # it exists by now
        await run(api, raw, switch=switch(namespace, "g2", None))
    first = await api.get(SERVICE, namespace, "luna")
    assert first is not None
    assert parsing.is_lineage_service(first, "luna")
    kubectl("annotate", "service", "luna", "example.com/dns=luna.example.com")
    with pytest.raises(errors.ConflictError, match="changed since"):
        await run(api, raw, switch=switch(namespace, "g2", first["metadata"]["resourceVersion"]))
    second = await api.get(SERVICE, namespace, "luna")
    assert second is not None
    await run(api, raw, switch=switch(namespace, "g2", second["metadata"]["resourceVersion"]))
    third = await api.get(SERVICE, namespace, "luna")
    assert third is not None
    assert third["spec"]["selector"]["characterflywheel.dev/owner"] == "g2"
    assert third["spec"]["clusterIP"] == first["spec"]["clusterIP"]
    assert third["metadata"]["annotations"]["example.com/dns"] == "luna.example.com"
    production = parsing.production(third)
    assert production.record.serving is not None
    assert production.record.serving.generation == "g2"
    assert production.resource_version == third["metadata"]["resourceVersion"]
    await api.delete(SERVICE, namespace, "luna")
    with pytest.raises(errors.ConflictError):
        await run(api, raw, switch=switch(namespace, "g3", production.resource_version))


async def test_of_two_that_switch_at_once_one_wins(api: Api, raw: Raw, namespace: str) -> None:
    first = await asyncio.gather(
        *(run(api, raw, switch=switch(namespace, f"g{n}", None)) for n in range(5)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in first) == ["ConflictError"] * 4 + ["bool"]
    service = await api.get(SERVICE, namespace, "luna")
    assert service is not None
    version = service["metadata"]["resourceVersion"]
    second = await asyncio.gather(
        *(run(api, raw, switch=switch(namespace, f"g{n}", version)) for n in range(5)), return_exceptions=True
    )
    # Who wrote what had been written already changed nothing and won as well.
    assert {type(outcome).__name__ for outcome in second} == {"ConflictError", "bool"}
    after = await api.get(SERVICE, namespace, "luna")
    assert after is not None
    winners = [f"g{n}" for n, outcome in enumerate(second) if outcome is True]
    assert after["spec"]["selector"]["characterflywheel.dev/owner"] in winners


async def test_a_status_that_loses_the_race_for_the_switch_is_not_written(api: Api, raw: Raw, namespace: str) -> None:
    await run(api, raw, switch=switch(namespace, "g9", None))
    with pytest.raises(errors.ConflictError):
        await run(api, raw, switch=switch(namespace, "g1", None), status=GenerationStatus(phase=Phase.COMPLETED))
    assert "status" not in await again(api, raw)


def ready(message: str) -> Condition:
    return Condition(type="Ready", status="False", reason="Waits", message=message, last_transition_time=NOW)


async def test_status_is_ours_whole_but_not_what_others_wrote(api: Api, raw: Raw, kubectl) -> None:  # noqa: ANN001
    condition = {"type": "Theirs", "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    theirs = json.dumps({"status": {"conditions": [condition]}})
    kubectl("patch", "gen", "g1", "--subresource=status", "--type=merge", "--field-manager=them", "-p", theirs)
    raw = await again(api, raw)
    status = GenerationStatus(phase=Phase.QUEUED, stage="sft", conditions=[ready("for quota")])
    assert await run(api, raw, status=status)
    raw = await again(api, raw)
    assert {c["type"] for c in raw["status"]["conditions"]} == {"Ready", "Theirs"}
    assert raw["status"]["stage"] == "sft"
    # What is left out goes away, if it was ours.
    assert await run(api, raw, status=GenerationStatus(phase=Phase.PENDING))
    raw = await again(api, raw)
    assert "stage" not in raw["status"]
    assert [c["type"] for c in raw["status"]["conditions"]] == ["Theirs"]


async def test_status_is_not_written_to_what_has_changed_meanwhile(api: Api, raw: Raw, namespace: str) -> None:
    await api.merge_patch(GENERATION, namespace, "g1", {"spec": {"suspend": True}})
    with pytest.raises(errors.ConflictError):
        await run(api, raw, status=GenerationStatus(phase=Phase.COMPLETED))
    await api.delete(GENERATION, namespace, "g1")
    namesake = generation_raw()
    namesake["metadata"]["namespace"] = namespace
    await api.create(namesake)
    with pytest.raises(errors.ConflictError):
        await run(api, raw, status=GenerationStatus(phase=Phase.COMPLETED))


async def test_status_is_written_before_anything_is_deleted(api: Api, raw: Raw, namespace: str) -> None:
    await run(api, raw, create=(job_manifest(raw, "g1-sft-1", suspend=True),))
    ref = Ref("batch/v1", "Job", "g1-sft-1")
    assert await run(api, raw, status=GenerationStatus(phase=Phase.COMPLETED), delete=(ref, replace(ref, name="none")))
    assert (await again(api, raw))["status"]["phase"] == "Completed"
    gone = await api.get(JOB, namespace, "g1-sft-1")
    assert gone is None or gone["metadata"]["deletionTimestamp"]
