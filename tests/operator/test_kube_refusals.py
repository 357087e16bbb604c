"""Jobs that the API server refuses for long: a full quota, a policy. And a gateway's ConfigMap that is deleted."""

import json
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from kubernetes.aio.client.exceptions import ApiException

from flywheel_operator.kube import errors
from flywheel_operator.kube.client import Api
from flywheel_operator.kube.execute import Execution
from flywheel_operator.kube.observe import Observer
from flywheel_operator.kube.resources import JOB, Key, Kind, Raw, kind_of
from flywheel_operator.manifests.server import public_service
from flywheel_operator.model.abtest_status import ABTestStatus
from flywheel_operator.model.objects import Metadata
from flywheel_operator.model.observed import Settings
from flywheel_operator.model.phases import ABTestPhase, Phase
from flywheel_operator.model.production import ProductionRecord
from flywheel_operator.model.status import GenerationStatus
from flywheel_operator.plan import abtest
from flywheel_operator.plan.actions import Plan, Ref, SwitchProduction
from tests.operator.kube_objects import MARKS, generation_raw
from tests.unit.abtest_bench import DAY, NAME, Bench, between_generations

FULL = errors.QuotaError("create Job ns/j: exceeded quota: jobs (HTTP 403)")
DENIED = errors.ForbiddenError('create Job ns/j: admission webhook "policy" denied the request (HTTP 403)')
INVALID = errors.InvalidError("create Job ns/j: spec: Invalid value (HTTP 422)")


class Refusing(Api):
    """A cluster in a dict, which refuses Jobs with `refusal`."""

    version: ClassVar[str] = "1"

    def __init__(self, refusal: errors.KubeError | None = None) -> None:
        self.refusal = refusal
        self.done: list[tuple[str, str]] = []
        self.asked: list[tuple[str, str]] = []
        self.objects: dict[tuple[str, str], Raw] = {}
        self.status: Raw = {}

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Raw | None:
        self.asked.append((kind.kind, name))
        return self.objects.get((kind.kind, name))

    async def list(self, kind: Kind, namespace: str | None, labels: str | None = None) -> list[Raw]:
        return [raw for (found, _), raw in self.objects.items() if found == kind.kind]

    async def create(self, manifest: Raw) -> Raw:
        if manifest["kind"] == JOB.kind and self.refusal is not None:
            raise self.refusal
        if (manifest["kind"], manifest["metadata"]["name"]) in self.objects:
            raise errors.AlreadyExistsError("it is there")
        return self._put("create", manifest)

    async def apply(self, manifest: Raw, *, status: bool = False, field_manager: str | None = None) -> Raw:
        if status:
            self.status = manifest["status"]
            self.done.append(("status", manifest["kind"]))
            return manifest
        return self._put("apply", manifest)

    async def replace(self, manifest: Raw) -> Raw:
        return self._put("replace", manifest)

    async def merge_patch(self, kind: Kind, namespace: str, name: str, patch: Raw) -> Raw:
        return {"metadata": {"resourceVersion": self.version}}

    async def delete(self, kind: Kind, namespace: str | None, name: str) -> None:
        self.done.append(("delete", kind.kind))
        self.objects.pop((kind.kind, name), None)

    def _put(self, verb: str, manifest: Raw) -> Raw:
        kind_of(manifest["apiVersion"], manifest["kind"])
        self.done.append((verb, manifest["kind"]))
        manifest = manifest | {"metadata": manifest["metadata"] | {"resourceVersion": self.version}}
        self.objects[manifest["kind"], manifest["metadata"]["name"]] = manifest
        return manifest


def thing(kind: str, name: str, api_version: str = "v1") -> Raw:
    metadata = {"name": name, "namespace": "ns", "labels": MARKS}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def whole_plan(status: Any) -> Plan[Any]:  # noqa: ANN401 -- of any kind
    """A Job between what others depend on."""
    record = ProductionRecord()
    return Plan(
        status=status,
        create=(thing("ConfigMap", "before"), thing("Job", "j", "batch/v1"), thing("ConfigMap", "after")),
        apply=(thing("Deployment", "router", "apps/v1"),),
        switch=SwitchProduction(public_service("luna", "ns", record), record, None),
        delete=(Ref("batch/v1", "Job", "stray"),),
    )


def execution(api: Api, kind: str, status: Any) -> Execution[Any]:  # noqa: ANN401 -- of any kind
    return Execution(
        api, Key(kind, "ns", "x"), Metadata(name="x", namespace="ns", uid="u", resource_version="1"), status
    )


REST = [("create", "ConfigMap"), ("create", "ConfigMap"), ("apply", "Deployment"), ("create", "Service")]


async def test_jobs_come_after_all_that_is_not_about_them_and_before_the_status() -> None:
    api = Refusing()
    assert await execution(api, "ABTest", ABTestStatus()).run(whole_plan(ABTestStatus(phase=ABTestPhase.RUNNING)))
    assert api.done == [*REST, ("create", "Job"), ("status", "ABTest")]


@pytest.mark.parametrize("refusal", [FULL, DENIED, INVALID])
async def test_of_a_test_whose_job_is_refused_all_else_is_carried_out(refusal: errors.KubeError) -> None:
    api = Refusing(refusal)
    api.objects["Job", "stray"] = thing("Job", "stray", "batch/v1") | {"metadata": {"labels": MARKS}}
    wanted = ABTestStatus(phase=ABTestPhase.RUNNING, paused=True)
    with pytest.raises(type(refusal)) as raised:
        await execution(api, "ABTest", ABTestStatus()).run(whole_plan(wanted))
    assert raised.value is refusal
    assert api.done == [*REST, ("status", "ABTest"), ("delete", "Job")]
    assert (api.status["phase"], api.status["paused"]) == ("Running", True)


async def test_a_stage_whose_job_is_refused_is_not_written_as_started() -> None:
    """Its start would freeze the spec, and the time of its deadline would run."""
    api = Refusing(INVALID)
    with pytest.raises(errors.InvalidError):
        await execution(api, "Generation", GenerationStatus()).run(whole_plan(GenerationStatus(phase=Phase.RUNNING)))
    assert api.done == REST


async def carry_out(api: Refusing, bench: Bench) -> None:
    observed = bench.observe()
    test = observed.test
    run = Execution(api, Key("ABTest", "team", NAME), test.metadata, test.status).run(abtest.plan(observed))
    if bench.record is not None:  # what the plan was made on
        service = public_service("luna", "team", bench.record)
        service["metadata"]["resourceVersion"] = str(bench.version)
        api.objects["Service", "luna"] = service
    try:
        await run
    finally:
        bench.raw["status"] = api.status or bench.raw.get("status", {})


def router_config(api: Refusing) -> str:
    (name,) = (n for kind, n in api.objects if kind == "Deployment" and n.endswith("-router"))
    volumes = api.objects["Deployment", name]["spec"]["template"]["spec"]["volumes"]
    config = next(v["configMap"]["name"] for v in volumes if v["name"] == "config")
    return str(api.objects["ConfigMap", config]["data"]["nginx.conf"])


@pytest.mark.parametrize("refusal", [FULL, DENIED])
async def test_the_emergency_pause_reaches_the_router_although_no_job_can_be_made(refusal: errors.KubeError) -> None:
    bench = between_generations()
    bench.until_running()
    bench.advance(DAY + 600)
    bench.raw["spec"]["pauseTreatment"] = True
    api = Refusing(refusal)
    for _ in range(3):
        with pytest.raises(type(refusal)):
            await carry_out(api, bench)
        assert "set $flywheel_fallback 1;\n        }" in router_config(api)
        status = bench.test.status
        assert status.paused
        assert "day-1" not in {run.name for run in status.runs}, "nothing claims that a Job was made"
        bench.advance(60)
    api.refusal = None
    await carry_out(api, bench)
    (run,) = (run for run in bench.test.status.runs if run.name == "day-1")
    assert (run.state, run.attempts, run.failures) == ("Running", 1, 0)
    assert ("Job", run.job) in api.objects


async def test_a_refused_second_attempt_leaves_the_run_as_it_was() -> None:
    bench = between_generations()
    bench.until_running()
    bench.advance(DAY + 600)
    bench.step()
    bench.finish("day-1", None, exit_code=1)
    bench.step()
    bench.advance(3600)
    before = bench.test.status.runs
    assert before[-1].failures == 1
    with pytest.raises(errors.ForbiddenError):
        await carry_out(Refusing(DENIED), bench)
    assert bench.test.status.runs == before


async def test_a_test_is_provisioned_as_far_as_it_can_be() -> None:
    bench = between_generations()
    api = Refusing(FULL)
    for _ in range(2):
        with pytest.raises(errors.QuotaError):
            await carry_out(api, bench)
        assert bench.phase is ABTestPhase.PROVISIONING
        assert bench.test.status.runs == []


def test_a_full_quota_is_tried_again_later() -> None:
    answer = ApiException(status=403, reason="Forbidden")
    said = 'jobs.batch "j" is forbidden: exceeded quota: q, requested: count/jobs.batch=1, used: 5, limited: 5'
    answer.body = json.dumps({"reason": "Forbidden", "message": said})
    error = errors.from_api(answer, "create Job ns/j")
    assert isinstance(error, errors.RetryLaterError)
    assert error.reason == "QuotaExceeded"


# ------------------------------------------------------------------ a ConfigMap that is gone


def server_raw(generation: str, replicas: int, config: str | None) -> Raw:
    volumes: list[Raw] = [{"name": "user-own", "configMap": {"name": "of-the-user"}}]
    if config is not None:
        volumes.append({"name": "gateway-config", "configMap": {"name": config}})
    marks = {**MARKS, "characterflywheel.dev/owner": generation}
    return {
        "metadata": {"name": f"{generation}-server", "namespace": "ns", "labels": marks},
        "spec": {"replicas": replicas, "template": {"spec": {"volumes": volumes}}},
    }


@pytest.mark.parametrize(
    ("replicas", "config", "there", "lost", "asked"),
    [
        (1, "c", True, False, 1),
        (1, "c", False, True, 1),
        (0, "c", False, False, 0),
        (1, None, False, False, 0),
    ],
)
async def test_the_configuration_of_an_own_live_server_is_looked_for(
    replicas: int, config: str | None, there: bool, lost: bool, asked: int
) -> None:
    api = Refusing()
    if there:
        api.objects["ConfigMap", "c"] = thing("ConfigMap", "c")
    api.objects["Deployment", "g1-server"] = server_raw("g1", replicas, config)
    api.objects["Deployment", "g0-server"] = server_raw("g0", 1, "of-a-mate")
    raw = generation_raw()
    raw["metadata"] |= {"namespace": "ns", "uid": "u", "resourceVersion": "1"}
    observer = Observer(api, Settings(trainer_image="t"), None)  # type: ignore[arg-type] -- nothing runs here
    observed = await observer.observe_generation(raw, datetime(2026, 1, 1, tzinfo=UTC))
    assert (observed.servers["g1"].config_lost, observed.servers["g0"].config_lost) == (lost, False)
    assert [name for kind, name in api.asked if kind == "ConfigMap" and name in ("c", "of-a-mate", "of-the-user")] == [
        "c"
    ] * asked
