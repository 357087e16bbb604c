"""Looking at a real API server: every state of a Job as kubelets and controllers write it, and all that is around."""

# ruff: noqa: ANN401 -- fixtures that are functions

import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from flywheel_contract.progress import Progress
from flywheel_operator.kube import errors
from flywheel_operator.kube.client import Api, connect
from flywheel_operator.kube.observe import Observer
from flywheel_operator.kube.progress import Scraper
from flywheel_operator.kube.resources import GENERATION, JOB, POD, Raw
from flywheel_operator.manifests.server import public_service
from flywheel_operator.manifests.stage import peers
from flywheel_operator.manifests.stage_owner import StageOwner
from flywheel_operator.model.names import snapshot_name
from flywheel_operator.model.observed import JobState, JobView, ObservedGeneration, Settings
from flywheel_operator.model.production import ProductionRecord
from flywheel_operator.plan.stage_specs import resolve_generation
from tests.operator.kube_objects import condition, ended, generation_raw, job_manifest, result_text, reward_model_raw

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings(trainer_image="trainer:test")


class Deaf(Scraper):
    """Hears every pod say the same."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def scrape(self, address: str) -> Progress | None:
        self.asked.append(address)
        return Progress(percent=42)


@pytest.fixture
def scraper() -> Deaf:
    return Deaf()


@pytest.fixture
def look(api: Api, scraper: Deaf) -> Callable[[Raw], Any]:
    async def look_at(raw: Raw) -> ObservedGeneration:
        return await Observer(api, SETTINGS, scraper).observe_generation(raw, NOW)

    return look_at


@pytest.fixture
async def raw(api: Api, namespace: str) -> Raw:
    return await create(api, namespace, generation_raw())


async def create(api: Api, namespace: str, manifest: Raw) -> Raw:
    manifest["metadata"]["namespace"] = namespace
    return await api.create(manifest)


pytestmark = pytest.mark.apiserver


async def test_a_lonely_generation(raw: Raw, look: Any) -> None:
    observed = await look(raw)
    assert observed.generation.metadata.name == "g1"
    assert (observed.now, observed.settings) == (NOW, SETTINGS)
    assert set(observed.generations) == {"g1"}
    assert (observed.reward_models, observed.config_maps, observed.jobs, observed.servers) == ({}, {}, {}, {})
    assert (observed.snapshot, observed.production) == (None, None)
    assert (observed.service_taken, observed.namespace_terminating) == (False, False)


async def test_everything_around_a_generation(api: Api, namespace: str, look: Any) -> None:
    await create(api, namespace, generation_raw("g0"))
    await create(api, namespace, reward_model_raw("rm1"))
    await create(
        api, namespace, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c1"}, "data": {"k": "v"}}
    )
    await create(api, namespace, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "empty"}})
    characters = [
        {"name": f"a{n}", "systemPromptFrom": {"name": name, "key": "k"}}
        for n, name in enumerate(("c1", "c1", "empty", "none"))
    ]
    raw = await create(
        api,
        namespace,
        generation_raw(
            parent={"generation": "g0"},
            characters=[*characters, {"name": "b", "systemPrompt": "You are Luna."}],
            rewards=[{"rewardModel": "rm1"}, {"rewardModel": "none"}],
        ),
    )
    await api.create(public_service("luna", namespace, ProductionRecord()))
    observed = await look(raw)
    assert set(observed.generations) == {"g0", "g1"}
    assert set(observed.reward_models) == {"rm1"}
    assert observed.config_maps == {"c1": {"k": "v"}, "empty": {}}
    assert observed.production is not None
    assert observed.production.record == ProductionRecord()


async def test_the_snapshot_and_one_that_does_not_parse(api: Api, namespace: str, raw: Raw, look: Any) -> None:
    observed = await look(raw)
    model = {"uri": "pvc://a/b", "digest": "sha256:" + "0" * 64}
    content = {
        "spec": observed.generation.spec.to_json(),
        "parent": model,
        "baseline": model,
        "inputs": [],
        "trainerImage": "trainer:test",
    }
    name = snapshot_name("g1", raw["metadata"]["uid"])

    async def put(**data: str) -> None:
        await api.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}
        )

    await put(**{"snapshot.json": json.dumps(content)})
    assert (await look(raw)).snapshot.trainer_image == "trainer:test"
    await put(**{"snapshot.json": "{}"})
    with pytest.raises(
        errors.UnreadableError, match=r"snapshot.json does not parse: spec: Field required; .*; and \d more"
    ):
        await look(raw)
    await put(other="x")
    with pytest.raises(errors.UnreadableError, match="has no key"):
        await look(raw)


async def test_a_service_of_someone_else_is_in_the_way(api: Api, namespace: str, raw: Raw, look: Any) -> None:
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "luna"}, "spec": {"ports": [{"port": 80}]}}
    await create(api, namespace, theirs)
    observed = await look(raw)
    assert observed.service_taken
    assert observed.production is None


@pytest.mark.parametrize("text", [None, "{", '{"serving": {}}'])
async def test_a_lost_record_is_not_an_empty_one(
    api: Api, namespace: str, raw: Raw, look: Any, text: str | None
) -> None:
    service = public_service("luna", namespace, ProductionRecord())
    service["metadata"]["annotations"] = {"characterflywheel.dev/production": text} if text else {}
    await api.create(service)
    with pytest.raises(errors.UnreadableError, match="annotation characterflywheel"):
        await look(raw)


async def test_an_object_of_another_version_is_an_error_where_it_matters(
    api: Api,
    namespace: str,
    raw: Raw,
    look: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if another version of the CRD had let a field in that we do not know."""
    await create(api, namespace, generation_raw("mate"))
    await create(api, namespace, generation_raw("stranger", lineage="mars"))
    child = await create(api, namespace, generation_raw("child", lineage="sun", parent={"generation": "stranger"}))
    list_them = api.list

    def unknown(*names: str) -> None:
        async def with_unknown_fields(kind: Any, *args: Any) -> list[Raw]:
            found = await list_them(kind, *args)
            return [r | {"spec": r["spec"] | {"novel": 1}} if r["metadata"]["name"] in names else r for r in found]

        monkeypatch.setattr(api, "list", with_unknown_fields)

    unknown("stranger")
    assert set((await look(raw)).generations) == {"g1", "mate", "child"}
    with pytest.raises(
        errors.UnreadableError, match=r"Generation .*/stranger does not parse: spec.novel: Extra inputs"
    ):
        await look(child)
    unknown("mate")
    with pytest.raises(errors.UnreadableError, match="/mate does not parse"):
        await look(raw)
    with pytest.raises(errors.UnreadableError, match="/g1 does not parse"):
        await look(raw | {"spec": raw["spec"] | {"novel": 1}})


async def test_the_namespace_is_asked_for_only_when_the_object_goes(
    api: Api,
    namespace: str,
    raw: Raw,
    look: Any,
    kubectl: Any,
) -> None:
    going = raw | {"metadata": raw["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    assert not (await look(going)).namespace_terminating
    elsewhere = going | {"metadata": going["metadata"] | {"namespace": "no-such-namespace"}}
    assert (await look(elsewhere)).namespace_terminating


async def test_no_permission_is_not_absence(namespace: str, raw: Raw, kubectl: Any, tmp_path: Any) -> None:
    kubectl("create", "serviceaccount", "half")
    kubectl("create", "role", "half", "--verb=get,list", "--resource=abtests,generations,jobs,pods,services,configmaps")
    kubectl("create", "rolebinding", "half", "--role=half", f"--serviceaccount={namespace}:half")
    token = kubectl("create", "token", "half").strip()
    async with connect(kubectl.kubeconfig_with(token, tmp_path)) as client:
        with pytest.raises(errors.ForbiddenError, match="list deployments"):
            await Observer(Api(client), SETTINGS, Deaf()).observe_generation(raw, NOW)


UNSCHEDULABLE = condition("PodScheduled", "False", "Unschedulable", "0/1 nodes are available: 1 Insufficient cpu.")
FAILED = [condition("FailureTarget", reason="BackoffLimitExceeded"), condition("Failed", reason="BackoffLimitExceeded")]
COMPLETE = [condition("SuccessCriteriaMet"), condition("Complete")]


@pytest.mark.parametrize(
    ("pod", "job", "expected"),
    [
        (
            {"phase": "Pending", "conditions": [UNSCHEDULABLE]},
            None,
            JobView("j", JobState.PENDING, waiting=UNSCHEDULABLE["message"]),
        ),
        (
            {"phase": "Pending", "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}},
            None,
            JobView("j", JobState.PENDING, waiting="ErrImagePull: not found"),
        ),
        (
            {"phase": "Running", "state": {"running": {}}},
            None,
            JobView("j", JobState.RUNNING, progress=Progress(percent=42)),
        ),
        (
            {"phase": "Failed", "state": ended(137, reason="OOMKilled")},
            FAILED,
            JobView("j", JobState.FAILED, exit_code=137, fault="OOMKilled"),
        ),
        ({"phase": "Failed", "reason": "Evicted"}, FAILED, JobView("j", JobState.FAILED, fault="Evicted")),
        (
            {"phase": "Failed", "state": ended(137), "conditions": [condition("DisruptionTarget", reason="Preempted")]},
            None,
            JobView("j", JobState.PENDING, exit_code=137, fault="Preempted", disrupted=True),
        ),
        (
            {"phase": "Succeeded", "state": ended(0, "no JSON", "Completed")},
            COMPLETE,
            JobView("j", JobState.SUCCEEDED, exit_code=0, fault="UnreadableResult"),
        ),
    ],
    ids=lambda value: str(value.fault or value.state) if isinstance(value, JobView) else "",
)
async def test_jobs_as_the_cluster_words_them(
    api: Api,
    namespace: str,
    raw: Raw,
    look: Any,
    kubectl: Any,
    pod: Raw,
    job: list[Raw] | None,
    expected: JobView,
) -> None:
    await run_by_hand(api, namespace, raw, kubectl, pod, job)
    [view] = (await look(raw)).jobs.values()
    assert dataclasses.replace(view, uid="") == expected
    assert view.uid


async def run_by_hand(api: Api, namespace: str, raw: Raw, kubectl: Any, pod: Raw, job: list[Raw] | None) -> None:
    """A suspended Job, so that the Job controller leaves it alone, with a pod whose status we write."""
    manifest = job_manifest(raw, "j", suspend=True)
    created = await api.create(manifest)
    state = pod.pop("state", None)
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": created["metadata"]["uid"]}
    spec = manifest["spec"]["template"]["spec"] | {"schedulerName": "none"}
    metadata = {
        "name": "j-x",
        "namespace": namespace,
        "labels": manifest["metadata"]["labels"],
        # Not the controller yet: the Job controller would delete the pod of a suspended Job.
        "ownerReferences": [reference],
    }
    await api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    status = {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], **pod}
    if state:
        status["containerStatuses"] = [
            {"name": "stage", "state": state, "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        ]
    kubectl.set_status("pod", "j-x", status)
    pods = await api.list(POD, namespace)
    jobs = [created | {"spec": created["spec"] | {"suspend": False}, "status": {"conditions": job or []}}]
    for found in pods:
        found["metadata"]["ownerReferences"] = [reference | {"controller": True}]
    real = api.list

    async def as_if_running(kind: Any, *args: Any) -> list[Raw]:
        return jobs if kind == JOB else pods if kind == POD else await real(kind, *args)

    api.list = as_if_running  # type: ignore[method-assign]


async def test_a_job_that_succeeded_with_its_result(
    api: Api, namespace: str, raw: Raw, look: Any, kubectl: Any
) -> None:
    pod = {"phase": "Succeeded", "state": ended(0, result_text(message="done"), "Completed")}
    await run_by_hand(api, namespace, raw, kubectl, pod, COMPLETE)
    view = (await look(raw)).jobs["j"]
    assert view.state is JobState.SUCCEEDED
    assert view.fault == ""
    assert view.result is not None
    assert view.result.message == "done"


async def test_only_running_stages_are_asked_how_far_they_are(
    api: Api,
    namespace: str,
    raw: Raw,
    look: Any,
    scraper: Deaf,
) -> None:
    await api.create(job_manifest(raw, "j", suspend=True))
    view = (await look(raw)).jobs["j"]
    assert (view.state, view.progress) == (JobState.SUSPENDED, None)
    assert scraper.asked == []


async def test_pods_on_several_nodes_are_named_by_a_service_of_their_job(api: Api, raw: Raw, look: Any) -> None:
    manifest = job_manifest(raw, "j")
    several = {"completionMode": "Indexed", "completions": 2, "parallelism": 2}
    manifest["spec"] |= several
    await api.create(manifest)
    view = (await look(raw)).jobs["j"]
    assert (view.nodes, view.peers) == (2, False)
    generation = (await look(raw)).generation
    owner = StageOwner("Generation", generation.metadata, "luna", generation.spec.runtime, "trainer:1")
    await api.create(peers(owner, resolve_generation("g1", generation.spec), "j", view.uid))
    assert (await look(raw)).jobs["j"].peers


async def test_jobs_of_a_former_namesake_are_left_out(api: Api, raw: Raw, look: Any) -> None:
    former = raw | {"metadata": raw["metadata"] | {"uid": "11111111-1111-1111-1111-111111111111"}}
    await api.create(job_manifest(former, "old", suspend=True))
    await api.create(job_manifest(raw, "new", suspend=True))
    assert set((await look(raw)).jobs) == {"new"}


async def test_a_real_pod_that_no_node_takes(api: Api, namespace: str, raw: Raw, look: Any) -> None:
    """Nothing by hand here: the Job controller and the scheduler say it themselves."""
    import asyncio  # noqa: PLC0415

    await api.create(job_manifest(raw, "j"))
    for _ in range(100):
        view = (await look(raw)).jobs["j"]
        if view.waiting:
            break
        await asyncio.sleep(0.1)
    assert view.state is JobState.PENDING
    assert "nodes are available" in view.waiting


async def test_kueue_says_why_a_job_waits(api: Api, namespace: str, raw: Raw, look: Any, monkeypatch: Any) -> None:
    await api.create(job_manifest(raw, "j", suspend=True, labels={"kueue.x-k8s.io/queue-name": "team"}))
    # Without Kueue's CRD: in the Job's own words, which may be none yet.
    assert (await look(raw)).jobs["j"].waiting in ("", "Job suspended")
    real = api.list

    async def with_kueue(kind: Any, *args: Any) -> list[Raw]:
        if kind.kind != "Workload":
            return await real(kind, *args)
        return [{"status": {"conditions": [condition("QuotaReserved", "False", "Pending", "no quota for 8 GPUs")]}}]

    monkeypatch.setattr(api, "list", with_kueue)
    assert (await look(raw)).jobs["j"].waiting == "no quota for 8 GPUs"


async def test_a_reward_model(api: Api, namespace: str, kubectl: Any) -> None:
    raw = await create(api, namespace, reward_model_raw())
    job = job_manifest(raw, "j", suspend=True, labels={"characterflywheel.dev/owner-kind": "RewardModel"})
    await api.create(job)
    observed = await Observer(api, SETTINGS, Deaf()).observe_reward_model(raw, NOW)
    assert observed.reward_model.metadata.name == "rm1"
    assert set(observed.jobs) == {"j"}
    with pytest.raises(errors.UnreadableError):
        await Observer(api, SETTINGS, Deaf()).observe_reward_model(raw | {"spec": {}}, NOW)


async def test_servers_of_the_lineage(api: Api, namespace: str, raw: Raw, look: Any) -> None:
    for name, lineage in (("g0", "luna"), ("g7", "mars")):
        labels = {
            "characterflywheel.dev/lineage": lineage,
            "characterflywheel.dev/owner": name,
            "app.kubernetes.io/component": "server",
        }
        template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "s", "image": "none.invalid/s"}]}}
        await create(
            api,
            namespace,
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": name, "labels": labels},
                "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
            },
        )
    servers = (await look(raw)).servers
    assert set(servers) == {"g0"}
    assert servers["g0"].replicas == 0


class TestScraper:
    """Against a pod of our own making; no API server is needed."""

    @pytest.fixture
    async def answers(self) -> AsyncIterator[tuple[list[web.Response], Scraper]]:
        answers: list[web.Response] = []

        async def progress(_: web.Request) -> web.Response:
            return answers.pop(0)

        app = web.Application()
        app.router.add_get("/progress", progress)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            yield answers, Scraper(session, runner.addresses[0][1])
        await runner.cleanup()

    async def test_progress(self, answers: Any) -> None:
        said, scraper = answers
        said += [
            web.json_response({"percent": 7, "step": 3, "etaSeconds": 60}),
            web.json_response({"percent": 700}),
            web.Response(text="<html>"),
            web.Response(status=503),
        ]
        assert await scraper.scrape("127.0.0.1") == Progress(percent=7, step=3, eta_seconds=60)
        assert [await scraper.scrape("127.0.0.1") for _ in range(3)] == [None, None, None]

    async def test_nobody_answers(self) -> None:
        async with aiohttp.ClientSession() as session:
            assert await Scraper(session, 1).scrape("127.0.0.1") is None
            assert await Scraper(session, 1).scrape("::1") is None


async def test_generations_are_listed_once_per_look(api: Api, raw: Raw, look: Any, monkeypatch: Any) -> None:
    asked: list[str] = []
    real = api.list

    async def counted(kind: Any, *args: Any) -> list[Raw]:
        asked.append(kind.kind)
        return await real(kind, *args)

    monkeypatch.setattr(api, "list", counted)
    await look(raw)
    assert sorted(asked) == ["ABTest", "Deployment", GENERATION.kind, "Job", "Pod"]
