"""RayClusters on a real API server: unknown without KubeRay, then found, and removed with their stage."""

# ruff: noqa: ANN401 -- fixtures that are functions

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from flywheel_operator.kube.client import Api
from flywheel_operator.kube.errors import UnavailableError
from flywheel_operator.kube.execute import Execution
from flywheel_operator.kube.observe import Observer
from flywheel_operator.kube.resources import GENERATION, RAY_CLUSTER, Key, Raw
from flywheel_operator.manifests.ray import API_VERSION, KIND, ray_cluster
from flywheel_operator.manifests.stage_owner import StageOwner
from flywheel_operator.model.observed import ObservedGeneration, Settings
from flywheel_operator.plan.actions import Plan, Ref
from flywheel_operator.plan.stage_specs import resolve_generation
from tests.operator.conftest import Kubectl
from tests.operator.kube_objects import generation_raw
from tests.operator.test_kube_observe import Deaf

pytestmark = pytest.mark.apiserver

CRD: Raw = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "rayclusters.ray.io"},
    "spec": {
        "group": "ray.io",
        "names": {"kind": "RayCluster", "plural": "rayclusters", "singular": "raycluster"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
"""The place of KubeRay's own, of which only the names matter here."""


@pytest.fixture
async def kuberay(api: Api, kubectl: Kubectl) -> AsyncIterator[None]:
    kubectl.apply(CRD)
    kubectl("wait", "crd/rayclusters.ray.io", "--for=condition=Established", "--timeout=30s")
    # Established, its storage may still be (re)initialized.
    async with asyncio.timeout(30):
        while True:
            try:
                await api.list(RAY_CLUSTER, "default")
            except UnavailableError:
                await asyncio.sleep(0.1)
            else:
                break
    yield
    kubectl("delete", "crd", "rayclusters.ray.io", "--wait=true")


async def look(api: Api, raw: Raw) -> ObservedGeneration:
    observer = Observer(api, Settings(trainer_image="trainer:test"), Deaf())
    return await observer.observe_generation(raw, datetime(2026, 1, 1, tzinfo=UTC))


async def asking(api: Api, namespace: str) -> Raw:
    raw = generation_raw()
    raw["metadata"]["namespace"] = namespace
    raw["spec"]["curation"] = {"ray": {"workers": 2}}
    return await api.create(raw)


async def test_without_kuberay_there_is_no_such_kind(api: Api, namespace: str) -> None:
    assert (await look(api, await asking(api, namespace))).ray_clusters is None
    plain = generation_raw() | {"metadata": {"name": "plain", "namespace": namespace}}
    assert (await look(api, await api.create(plain))).ray_clusters == frozenset(), "nobody asks"


@pytest.mark.usefixtures("kuberay")
async def test_a_cluster_is_made_found_and_removed(api: Api, namespace: str) -> None:
    raw = await asking(api, namespace)
    observed = await look(api, raw)
    assert observed.ray_clusters == frozenset()
    generation = observed.generation
    ray = generation.spec.curation.ray
    assert ray is not None
    owner = StageOwner("Generation", generation.metadata, "luna", generation.spec.runtime, "trainer:1", (), ray)
    cluster = ray_cluster(owner, ray, resolve_generation("g1", generation.spec), "job-1", raw["metadata"]["uid"])
    # The Job is not there: the garbage collector would take its cluster away.
    cluster["metadata"].pop("ownerReferences")

    async def carry_out(**wanted: Any) -> None:
        key = Key(GENERATION.kind, namespace, "g1")
        plan: Plan[Any] = Plan(generation.status, **wanted)
        await Execution(api, key, generation.metadata, generation.status).run(plan)

    await carry_out(create=(cluster,))
    name = cluster["metadata"]["name"]
    assert (await look(api, raw)).ray_clusters == {name}
    await carry_out(delete=(Ref(API_VERSION, KIND, name),))
    assert (await look(api, raw)).ray_clusters == frozenset()
    assert await api.get(RAY_CLUSTER, namespace, name) is None
