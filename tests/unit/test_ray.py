"""The Ray cluster of curation: there while its Job works, gone with it, refused where nobody could make it."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_contract.paths import RAY_ADDRESS, RAY_WORKERS
from flywheel_contract.stages import Stage
from flywheel_operator.manifests.common import POD_SECURITY_CONTEXT, SECURITY_CONTEXT
from flywheel_operator.manifests.ray import NAME_LIMIT, RAY_VERSION, ray_cluster_name
from flywheel_operator.model.names import LABEL_OWNER
from flywheel_operator.model.objects import Metadata
from flywheel_operator.model.observed import JobState, JobView
from flywheel_operator.model.phases import Phase
from tests.unit.lab import Lab

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
RAY: dict[str, Any] = {"curation": {"ray": {"workers": 3, "resources": {"requests": {"cpu": 8}}}}}


def curating(**spec: Any) -> Lab:  # noqa: ANN401 -- fields of the spec
    """A Generation whose curation has a Job."""
    lab = world()
    lab.put("gen-1", **RAY, **spec)
    lab.until_stage("gen-1", Stage.CURATE)
    return lab


def world() -> Lab:
    return Lab(random.Random(0))


def cluster(lab: Lab) -> dict[str, Any]:
    (name,) = lab.ray_clusters
    return lab.children[name]


def test_it_is_made_for_a_job_that_works_and_owned_by_it() -> None:
    lab = curating()
    assert lab.ray_clusters == frozenset(), "there is no Job yet that could own it"
    lab.step("gen-1")
    (job,) = lab.live()
    made = cluster(lab)
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": lab.jobs[job].view.uid}
    ]
    assert made["metadata"]["labels"][LABEL_OWNER] == "gen-1"
    environment = {
        e["name"]: e["value"] for e in lab.jobs[job].manifest["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    head = f"{made['metadata']['name']}-head-svc.{made['metadata']['namespace']}.svc"
    assert (environment[RAY_ADDRESS], environment[RAY_WORKERS]) == (f"ray://{head}:10001", "3")


def test_it_is_made_once() -> None:
    lab = curating()
    lab.step("gen-1")
    plan = lab.step("gen-1")
    assert plan is not None
    assert plan.create == ()
    assert plan.delete == ()


def test_its_pods_are_as_restricted_as_the_others_and_nobody_takes_them_for_the_stages() -> None:
    lab = curating(runtime={"nodeSelector": {"pool": "cpu"}, "imagePullSecrets": ["mine"]})
    lab.step("gen-1")
    spec = cluster(lab)["spec"]
    (workers,) = spec["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (3, 3, 3)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (spec["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"] == POD_SECURITY_CONTEXT
        assert container["securityContext"] == SECURITY_CONTEXT
        assert pod["nodeSelector"] == {"pool": "cpu"}
        assert not {"command", "args"} & container.keys(), "KubeRay starts Ray"
        assert LABEL_OWNER not in group["template"]["metadata"]["labels"]
        claims = [v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert claims
        assert all(claim["readOnly"] for claim in claims)
        assert container["readinessProbe"]
        assert container["livenessProbe"]
    assert workers["template"]["spec"]["containers"][0]["resources"]["requests"] == {"cpu": 8}


def test_the_version_is_the_images() -> None:
    for variant in ("cpu", "cuda"):
        pinned = (REQUIREMENTS / f"trainer-{variant}.txt").read_text(encoding="utf-8")
        assert re.search(rf"^ray=={re.escape(RAY_VERSION)} ", pinned, re.MULTILINE)


@pytest.mark.parametrize("state", [JobState.SUSPENDED, JobState.SUCCEEDED])
def test_a_job_that_does_not_work_has_none(state: JobState) -> None:
    lab = curating()
    lab.step("gen-1")
    (job,) = lab.live()
    lab.children.pop(cluster(lab)["metadata"]["name"])
    if state is JobState.SUCCEEDED:
        lab.settle()
    else:
        lab.jobs[job].view = JobView(job, state)
    lab.step("gen-1")
    assert lab.ray_clusters == frozenset()


def test_it_goes_with_the_stage_however_that_ends() -> None:
    lab = curating()
    lab.go("gen-1", rounds=3)
    assert lab.ray_clusters == frozenset(), "the stage is done"
    lab = curating()
    lab.step("gen-1")
    assert lab.ray_clusters
    lab.change("gen-1", suspend=True)
    lab.step("gen-1")
    assert lab.ray_clusters == frozenset()


def test_another_attempt_has_another_one() -> None:
    lab = curating()
    lab.step("gen-1")
    first = cluster(lab)["metadata"]["name"]
    (job,) = lab.live()
    lab.fail(lab.jobs[job], "oom")
    for _ in range(20):
        lab.step("gen-1")
        if lab.ray_clusters - {first}:
            break
        lab.advance(15)
    assert cluster(lab)["metadata"]["name"] != first


def test_without_kuberay_it_waits_and_says_so() -> None:
    lab = world()
    lab.kuberay = False
    lab.put("gen-1", **RAY)
    lab.go("gen-1", rounds=3)
    assert lab.status("gen-1").phase is Phase.PENDING
    _, reason, message = lab.condition("gen-1", "PrerequisitesMet")
    assert reason == "KubeRayMissing"
    assert "install it" in message
    lab.kuberay = True
    lab.go("gen-1", rounds=3)
    assert lab.status("gen-1").start_time is not None


def test_kuberay_that_goes_away_is_not_asked() -> None:
    lab = curating()
    lab.kuberay = False
    lab.step("gen-1")
    assert lab.ray_clusters == frozenset()


@given(st.from_regex(r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?", fullmatch=True), st.text(min_size=1, max_size=63))
def test_kuberay_takes_its_name_uncut(owner: str, job: str) -> None:
    name = ray_cluster_name(Metadata(name=owner, namespace="lab", uid="uid-1"), job)
    assert len(name) <= NAME_LIMIT
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), "a DNS-1035 label"
    assert name != ray_cluster_name(Metadata(name=owner, namespace="lab", uid="uid-1"), job + "x")
