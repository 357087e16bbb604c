"""ABTests in the rooms that talk to the cluster: what is seen of them, what is made for them, whom they concern."""

from datetime import UTC, datetime
from typing import Any

import pytest

from flywheel_contract.experiment import AnalysisReason, AnalysisResult, Users
from flywheel_contract.gateway_config import KEY_FILE, ROUTER_TOKEN_FILE
from flywheel_operator.kube import parsing
from flywheel_operator.kube.client import Api
from flywheel_operator.kube.execute import Execution
from flywheel_operator.kube.jobs import job_view
from flywheel_operator.kube.observe import Observer
from flywheel_operator.kube.resources import ABTEST, GENERATION, SECRET, Key, Raw
from flywheel_operator.manifests.gateway import key_secret
from flywheel_operator.manifests.server import public_service
from flywheel_operator.metrics.registry import Metrics
from flywheel_operator.model.abtest_status import ABTestStatus, ExposedUsers, MetricOutcome
from flywheel_operator.model.names import API_VERSION, MANAGED_BY
from flywheel_operator.model.observed import JobState, Settings
from flywheel_operator.model.phases import ABTestPhase
from flywheel_operator.model.production import ProductionRecord
from flywheel_operator.plan.actions import Plan
from flywheel_operator.watch.routing import Router
from tests.operator.kube_objects import ended, generation_raw, job_raw, pod_raw

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MARKS = {
    "app.kubernetes.io/managed-by": MANAGED_BY,
    "characterflywheel.dev/owner-kind": "ABTest",
    "characterflywheel.dev/owner": "t1",
}


def abtest_raw(name: str = "t1", lineage: str = "luna", **status: Any) -> Raw:  # noqa: ANN401 -- fields of the status
    return {
        "apiVersion": API_VERSION,
        "kind": "ABTest",
        "metadata": {"name": name, "namespace": "ns", "uid": name, "generation": 1},
        "spec": {
            "lineage": lineage,
            "control": {"generation": "g1"},
            "treatment": {"model": "pvc://models/new"},
            "artifacts": {"uri": "pvc://artifacts/runs"},
        },
        "status": status,
    }


@pytest.mark.apiserver
async def test_everything_around_a_test(api: Api, namespace: str) -> None:
    async def create(manifest: Raw) -> Raw:
        manifest["metadata"] = {k: v for k, v in manifest["metadata"].items() if k in ("name", "labels", "annotations")}
        manifest["metadata"]["namespace"] = namespace
        return await api.create({k: v for k, v in manifest.items() if k != "status"})

    await create(generation_raw("g1"))
    await create(generation_raw("unrelated"))
    await create(abtest_raw("other"))
    await create(abtest_raw("elsewhere", "sol"))
    raw = await create(abtest_raw())
    service = public_service("luna", namespace, ProductionRecord(router="t1"))
    await create(service)
    labels = {**MARKS, "app.kubernetes.io/component": "router"}
    pod = {"containers": [{"name": "router", "image": "none.invalid/router"}]}
    router = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "t1-router", "labels": labels, "annotations": {"characterflywheel.dev/config": "c1"}},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    await create(router)
    observer = Observer(api, Settings(trainer_image="t"), None)  # type: ignore[arg-type] -- no stage runs here
    observed = await observer.observe_ab_test(raw, NOW)
    assert set(observed.generations) == {"g1"}, "only those of its arms"
    assert set(observed.tests) == {"t1", "other"}, "only those of its lineage"
    assert observed.production is not None
    assert observed.production.record.router == "t1"
    view = observed.deployments["t1-router"]
    assert (view.config, view.replicas, view.ready) == ("c1", 2, False)
    assert (observed.jobs, observed.servers, observed.service_taken) == ({}, {}, False)
    generation = await api.get(GENERATION, namespace, "g1")
    assert generation is not None
    assert set((await observer.observe_generation(generation, NOW)).tests) == {"t1", "other"}


@pytest.mark.apiserver
async def test_the_lineages_key_is_made_once_and_never_read(
    api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = abtest_raw()
    raw["metadata"] = {"name": "t1", "namespace": namespace}
    raw.pop("status")
    made = parsing.ab_test(await api.create(raw))
    wanted = key_secret("luna", {"namespace": namespace, "labels": MARKS})
    plan: Plan[ABTestStatus] = Plan(status=made.status, create=(wanted,))
    assert await Execution(api, Key("ABTest", namespace, "t1"), made.metadata, made.status).run(plan)
    first = await api.get(SECRET, namespace, wanted["metadata"]["name"])
    assert first is not None
    assert set(first["data"]) == {KEY_FILE, ROUTER_TOKEN_FILE}
    assert len(set(first["data"].values())) == 2
    assert "ownerReferences" not in first["metadata"]
    real = api.get

    async def get(kind: Any, *args: Any) -> Raw | None:  # noqa: ANN401 -- the real one's arguments
        assert kind is not SECRET, "the operator reads no Secret"
        return await real(kind, *args)

    monkeypatch.setattr(api, "get", get)
    assert not await Execution(api, Key("ABTest", namespace, "t1"), made.metadata, made.status).run(plan)
    monkeypatch.undo()
    assert await api.get(SECRET, namespace, wanted["metadata"]["name"]) == first


def test_the_analysis_speaks_by_its_termination_message() -> None:
    said = AnalysisResult(reason=AnalysisReason.SUCCEEDED, users=Users(control=7, treatment=8)).to_termination_message()
    job = job_raw({"type": "Complete", "status": "True"}, labels={"app.kubernetes.io/component": "analysis"})
    view = job_view(job, [pod_raw("Succeeded", ended(0, said))])
    assert view.state is JobState.SUCCEEDED
    assert view.result is None
    assert view.analysis is not None
    assert view.analysis.users == Users(control=7, treatment=8)
    stage = job_raw({"type": "Complete", "status": "True"})
    assert job_view(stage, [pod_raw("Succeeded", ended(0, said))]).fault == "UnreadableResult"


def test_a_test_and_the_generations_of_its_lineage_concern_each_other() -> None:
    router = Router()
    for name, lineage in (("g1", "luna"), ("g2", "luna"), ("s1", "sol")):
        generation = generation_raw(name, lineage=lineage)
        generation["metadata"] |= {"namespace": "ns", "uid": name, "generation": 1}
        router.own(generation)
    router.own(abtest_raw("second"))
    news = {key.name for key in router.own(abtest_raw(phase="Running"))}
    assert news == {"t1", "g1", "g2", "second"}, "the arms, and who waits in line"
    assert {key.name for key in router.own(abtest_raw(phase="Running", day="1/7"))} == set()
    assert {key.name for key in router.own(abtest_raw(phase="Completed"))} == {"t1", "g1", "g2", "second"}
    assert router.lineage(Key("ABTest", "ns", "t1")) == "luna", "looked at one after the other with its lineage"
    assert router.child({"metadata": {"namespace": "ns", "labels": MARKS}}) == {Key("ABTest", "ns", "t1")}
    assert ABTEST.plural == "abtests"


def test_metrics_of_a_test() -> None:
    metrics = Metrics()
    test = parsing.ab_test(abtest_raw())
    outcome = MetricOutcome(name="messagesPerUser", role="Primary", lift=0.03, low=0.01, high=0.05)
    users = ExposedUsers(control=100, treatment=90)
    status = ABTestStatus(phase=ABTestPhase.RUNNING, paused=True, users=users, metrics=[outcome])
    metrics.show("ABTest", test, status)
    about = {"namespace": "ns", "name": "t1"}
    value = metrics.registry.get_sample_value
    assert value("flywheel_abtest_phase", {**about, "phase": "Running"}) == 1
    assert value("flywheel_abtest_exposed_users", {**about, "arm": "treatment"}) == 90
    assert value("flywheel_abtest_low", {**about, "metric": "messagesPerUser", "role": "Primary"}) == 0.01
    assert value("flywheel_abtest_paused", about) == 1
    metrics.show("ABTest", test, status.model_copy(update={"phase": ABTestPhase.COMPLETED}))
    assert value("flywheel_abtest_paused", about) is None
    metrics.forget("ABTest", "ns", "t1")
    assert value("flywheel_abtest_exposed_users", {**about, "arm": "treatment"}) is None
