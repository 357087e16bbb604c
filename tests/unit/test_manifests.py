"""The builders: what Pod Security `restricted` demands, names that fit, nothing of the user's handed on."""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_contract.exit_codes import USER_MISTAKES
from flywheel_contract.online import METRICS_PORT
from flywheel_contract.stage_spec import CurateSpec, Input, SftSpec, StageSpec
from flywheel_contract.stages import Role, Stage
from flywheel_operator.manifests.common import labels, resources, volumes
from flywheel_operator.manifests.gateway import Beside, gateway
from flywheel_operator.manifests.server import DRAIN_PAUSE_SECONDS, public_service, server
from flywheel_operator.manifests.snapshot import snapshot_config_map
from flywheel_operator.manifests.stage import config_map, config_map_name, job, job_name, peers, peers_name
from flywheel_operator.manifests.stage_owner import StageOwner
from flywheel_operator.model.names import ANNOTATION_PRODUCTION, bounded_name, server_name, snapshot_name
from flywheel_operator.model.objects import Metadata
from flywheel_operator.model.production import ProductionRecord
from flywheel_operator.model.runtime import MAX_NODES, Resources, Runtime
from flywheel_operator.model.serving import GatewaySpec
from flywheel_operator.model.snapshot import Snapshot
from flywheel_operator.model.status import ModelRef
from tests.unit.build import digest, generation, generation_spec, record

USERS = {"argocd.argoproj.io/instance": "flywheel", "app.kubernetes.io/instance": "flywheel", "team": "chat"}
NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"

FULL_RUNTIME: dict[str, Any] = {
    "serviceAccountName": "trainer",
    "priorityClassName": "high",
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "imagePullSecrets": ["mine", "pull"],
    "secretEnv": ["hub"],
    "env": [{"name": "HF_HOME", "value": "/tmp/mine"}, {"name": "MODE", "value": "quick"}],
    "gpus": 1,
    "resources": {"requests": {"cpu": 4}, "limits": {"memory": "8Gi"}},
}

TEMPLATE: dict[str, Any] = {
    "labels": {"team": "chat", "app.kubernetes.io/managed-by": "me"},
    "annotations": {"cost-centre": "42"},
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "volumes": [
        {"name": "ca", "mountPath": "/etc/ca", "configMap": "ca"},
        {"name": "keys", "mountPath": "/var/keys", "secret": "keys"},
        {"name": "corpus", "mountPath": "/corpus", "claim": "corpus"},
        {"name": "cache", "mountPath": "/cache", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
    ],
    "runtimeClassName": "nvidia",
}


def owner(runtime: dict[str, Any] | None = None, name: str = "gen-1", lineage: str | None = "luna") -> StageOwner:
    metadata = Metadata(name=name, namespace="lab", uid="uid-1", labels=USERS, annotations=USERS)
    return StageOwner("Generation", metadata, lineage, Runtime.model_validate(runtime or {}), "trainer:1", ("pull",))


def spec(*uris: str, artifacts: str = "pvc://artifacts/runs") -> StageSpec:
    inputs = [
        Input(name=f"input-{i}", role=Role.SFT_DATA, kind="Data", uri=u, digest=digest(u)) for i, u in enumerate(uris)
    ]
    return SftSpec(owner="gen-1", group="luna", artifacts=artifacts, inputs=inputs)


def deployment(runtime: dict[str, Any] | None = None, uri: str = "pvc://artifacts/model", **serving: Any) -> Any:  # noqa: ANN401
    given = generation(spec=generation_spec(runtime=runtime or {}, serving=serving), labels=USERS, annotations=USERS)
    return server(given, ModelRef(uri=uri, digest=digest("model")), "trainer:1", 2, ("pull",), None)


def pods() -> Iterator[Any]:
    for runtime in ({}, FULL_RUNTIME, FULL_RUNTIME | {"gpus": 4}, {"nodes": 2, "podTemplate": TEMPLATE}):
        yield job(owner(runtime), spec("pvc://data/a", "pvc://artifacts/b"), 1)["spec"]["template"]["spec"]
        yield deployment(runtime)["spec"]["template"]["spec"]


def test_trackers_reach_the_stages_and_not_the_server() -> None:
    runtime = {"reportTo": ["WandB", "TensorBoard"], "secretEnv": ["wandb"]}
    pod = job(owner(runtime), spec(), 1)["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "FLYWHEEL_REPORT_TO", "value": "WandB,TensorBoard"} in pod["env"]
    assert pod["envFrom"] == [{"secretRef": {"name": "wandb"}}]
    served = deployment(runtime)["spec"]["template"]["spec"]["containers"]
    assert all(e["name"] != "FLYWHEEL_REPORT_TO" for container in served for e in container["env"])


@pytest.mark.parametrize("pod", list(pods()))
def test_every_pod_passes_pod_security_restricted(pod: dict[str, Any]) -> None:
    for key in ("hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"):
        assert key not in pod
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in context
        assert context["readOnlyRootFilesystem"] is True
        assert all("hostPort" not in port for port in container["ports"])
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "name"}
    assert all(set(volume) <= allowed for volume in pod["volumes"])
    mounted = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
    assert mounted == {v["name"] for v in pod["volumes"]}
    assert pod["automountServiceAccountToken"] is False


def test_a_job_runs_one_pod_once_and_fails_at_once_on_the_users_mistakes() -> None:
    built = job(owner(), spec(), 2)["spec"]
    assert built["backoffLimit"] == 0
    assert built["template"]["spec"]["restartPolicy"] == "Never"
    ignore, fail = built["podFailurePolicy"]["rules"]
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert fail["action"] == "FailJob"
    assert fail["onExitCodes"]["values"] == list(USER_MISTAKES) == list(range(64, 79))
    assert fail["onExitCodes"]["containerName"] == built["template"]["spec"]["containers"][0]["name"]
    assert built["ttlSecondsAfterFinished"] > 0


def test_with_a_queue_a_job_is_created_suspended_and_its_pods_do_not_carry_the_queue() -> None:
    queued = job(owner({"queueName": "gpu"}), spec(), 1)
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert "kueue.x-k8s.io/queue-name" not in queued["spec"]["template"]["metadata"]["labels"]
    assert job(owner(), spec(), 1)["spec"]["suspend"] is False


def test_claims_are_mounted_once_and_written_only_where_outputs_go() -> None:
    pod = job(owner(), spec("pvc://data/a", "pvc://artifacts/b", "pvc://data/c", "s3://b/k"), 1)["spec"]["template"][
        "spec"
    ]
    claims = [v for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert {v["persistentVolumeClaim"]["claimName"]: v["persistentVolumeClaim"]["readOnly"] for v in claims} == {
        "artifacts": False,
        "data": True,
    }
    mounts = {m["mountPath"]: m.get("readOnly", False) for m in pod["containers"][0]["volumeMounts"]}
    assert mounts == {
        "/tmp": False,
        "/mnt/claims/artifacts": False,
        "/mnt/claims/data": True,
        "/etc/flywheel": True,
    }
    remote = job(owner(), spec("pvc://data/a", artifacts="s3://bucket/runs"), 1)["spec"]["template"]["spec"]
    assert [v["persistentVolumeClaim"] for v in remote["volumes"] if "persistentVolumeClaim" in v] == [
        {"claimName": "data", "readOnly": True}
    ]
    assert volumes({}) == ([{"name": "tmp", "emptyDir": {}}], [{"name": "tmp", "mountPath": "/tmp"}])


def test_what_the_runtime_says_reaches_the_pod() -> None:
    pod = job(owner(FULL_RUNTIME), spec(), 1)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["serviceAccountName"] == "trainer"
    assert pod["priorityClassName"] == "high"
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert pod["imagePullSecrets"] == [{"name": "mine"}, {"name": "pull"}]
    assert container["envFrom"] == [{"secretRef": {"name": "hub"}}]
    assert {e["name"]: e["value"] for e in container["env"]} == {
        "HOME": "/tmp",
        "HF_HOME": "/tmp/mine",
        "MODE": "quick",
    }
    assert container["resources"] == {"requests": {"cpu": 4}, "limits": {"memory": "8Gi", "nvidia.com/gpu": 1}}
    assert "command" not in container


def test_several_gpus_share_memory() -> None:
    [container] = job(owner({"gpus": 4}), spec(), 1)["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    one = {"gpus": 4, "stages": [{"stage": "sft", "gpus": 0, "resources": {"limits": {"cpu": 1}}}]}
    [container] = job(owner(one), spec(), 1)["spec"]["template"]["spec"]["containers"]
    assert "command" not in container
    assert container["resources"] == {"limits": {"cpu": 1}}
    other = {"gpus": 2, "resources": {"limits": {"cpu": 2}}, "stages": [{"stage": "sft"}, {"stage": "rl", "gpus": 8}]}
    [container] = job(owner(other), spec(), 1)["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"cpu": 2, "nvidia.com/gpu": 2}}
    assert resources(Resources(), 0) == {}


def test_a_server_answers_before_it_is_ready_and_drains_before_it_goes() -> None:
    built = deployment(gpus=1, startupTimeoutSeconds=7)
    pod = built["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["startupProbe"]["exec"]["command"][1] == "probe"
    assert container["startupProbe"]["failureThreshold"] == 1
    assert built["spec"]["progressDeadlineSeconds"] > 7
    assert built["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "ownerReferences" not in built["metadata"], "a foreground deletion must not take it away"
    # The API server refuses a pause that is longer than the grace period.
    for grace in (0, 4, 3600):
        pod = deployment({"terminationGracePeriodSeconds": grace})["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > DRAIN_PAUSE_SECONDS
    claims = [v for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert [c["persistentVolumeClaim"] for c in claims] == [{"claimName": "artifacts", "readOnly": True}]
    assert len(deployment(uri="hf://owner/model")["spec"]["template"]["spec"]["volumes"]) == 1
    assert built["spec"]["selector"]["matchLabels"] == built["spec"]["template"]["metadata"]["labels"]


def beside(**limits: float) -> Beside:
    """A gateway whose configuration has these limits."""
    made = gateway(
        image="gateway:1",
        spec=GatewaySpec(),
        serves="gen-1",
        lineage="luna",
        artifacts="pvc://artifacts/runs",
        characters=[],
    )
    changed = made.config.limits.model_copy(update=limits)
    return replace(made, config=made.config.model_copy(update={"limits": changed}))


def guarded(**limits: float) -> tuple[Any, list[str], int]:
    """Of a pod with a gateway: the gateway's container, what the model server's preStop runs, the grace period."""
    model = ModelRef(uri="pvc://artifacts/model", digest=digest("model"))
    built = server(generation(), model, "trainer:1", 1, (), beside(**limits))["spec"]["template"]["spec"]
    containers = {container["name"]: container for container in built["containers"]}
    hook = containers["server"]["lifecycle"]["preStop"]["exec"]["command"]
    return containers["gateway"], hook, built["terminationGracePeriodSeconds"]


@pytest.mark.parametrize(("delay", "drain", "bound", "grace"), [(3, 30, 38, 90), (0.5, 100, 106, 146)])
def test_a_model_server_outlasts_the_gateway_beside_it(delay: float, drain: int, bound: int, grace: int) -> None:
    container, hook, granted = guarded(drain_delay_seconds=delay, drain_seconds=drain)
    assert container["lifecycle"]["preStop"] == {"sleep": {"seconds": DRAIN_PAUSE_SECONDS}}
    assert hook[-2:] == [str(METRICS_PORT), str(bound)]
    assert granted == grace


@pytest.mark.parametrize("bound", [1, 60])
def test_a_model_server_waits_until_the_gateway_has_gone_or_its_time_is_over(bound: int) -> None:
    _, (_, *hook), _ = guarded()
    with socket.create_server(("127.0.0.1", 0)) as metrics:
        command = [sys.executable, *hook[:-2], str(metrics.getsockname()[1]), str(bound)]
        before = time.monotonic()
        with subprocess.Popen(command) as waiting:
            metrics.accept()[0].close()
            if bound == 60:
                metrics.accept()[0].close()
                assert waiting.poll() is None
                metrics.close()
            assert waiting.wait(20) == 0
        assert bound == 60 or time.monotonic() - before >= bound


def test_vllm_is_told_the_parser_of_tool_calls() -> None:
    [plain] = deployment(gpus=1)["spec"]["template"]["spec"]["containers"]
    [told] = deployment(gpus=1, toolCallParser="hermes")["spec"]["template"]["spec"]["containers"]
    assert told["args"] == [*plain["args"], "--tool-call-parser", "hermes"]


def test_the_public_service_points_at_who_serves_and_after_retirement_at_nobody() -> None:
    pod_labels = deployment()["spec"]["template"]["metadata"]["labels"]
    service = public_service("luna", "lab", record("gen-1"))
    assert service["spec"]["selector"].items() <= pod_labels.items()
    other = public_service("luna", "lab", record("gen-2"))
    assert not other["spec"]["selector"].items() <= pod_labels.items()
    retired = public_service("luna", "lab", record(None))
    assert not retired["spec"]["selector"].items() <= pod_labels.items()
    assert "ownerReferences" not in service["metadata"]
    text = service["metadata"]["annotations"][ANNOTATION_PRODUCTION]
    assert ProductionRecord.model_validate_json(text) == record("gen-1")


def test_config_maps_are_immutable_and_hold_what_can_be_read_back() -> None:
    held = config_map(owner(), spec("pvc://data/a"))
    assert held["immutable"] is True
    assert SftSpec.model_validate_json(held["data"]["stage.json"]) == spec("pvc://data/a")
    given = generation()
    model = ModelRef(uri="pvc://models/a", digest=digest("a"))
    snapshot = Snapshot(spec=given.spec, parent=model, baseline=model, inputs=[], trainer_image="trainer:1")
    built = snapshot_config_map(given.metadata, "luna", "name", snapshot)
    assert built["immutable"] is True
    assert Snapshot.model_validate_json(built["data"]["snapshot.json"]) == snapshot


def test_nothing_of_the_users_labels_and_annotations_is_handed_on() -> None:
    given = generation(labels=USERS, annotations=USERS)
    model = ModelRef(uri="pvc://models/a", digest=digest("a"))
    snapshot = Snapshot(spec=given.spec, parent=model, baseline=model, inputs=[], trainer_image="trainer:1")
    children = [
        job(owner(), spec(), 1),
        config_map(owner(), spec()),
        deployment(),
        snapshot_config_map(given.metadata, "luna", "name", snapshot),
    ]
    for child in children:
        text = json.dumps(child)
        assert not any(f'"{key}"' in text for key in USERS)
        assert child["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "flywheel-operator"
    assert "characterflywheel.dev/lineage" not in labels("RewardModel", "rm-1", "stage")


_NAMES = st.from_regex(NAME, fullmatch=True).filter(lambda n: len(n) <= 63)


@given(_NAMES, st.sampled_from(Stage), st.integers(1, 10**6), st.sampled_from(["a", "b"]))
def test_names_fit_for_every_legal_owner(name: str, stage: Stage, attempt: int, inputs: str) -> None:
    metadata = Metadata(name=name, namespace="lab", uid="uid")
    names = [
        job_name(metadata, stage, attempt, digest(inputs)),
        config_map_name(metadata, stage, digest(inputs)),
        server_name(name),
        snapshot_name(name, "uid"),
    ]
    assert len(set(names)) == len(names)
    for found in names:
        assert len(found) <= 63
        assert found.strip("-") == found
        assert found == found.lower()


@given(_NAMES, _NAMES, st.integers(1, 50))
def test_names_of_different_attempts_stages_and_owners_differ(one: str, two: str, attempt: int) -> None:
    a = Metadata(name=one, namespace="lab", uid="uid-1")
    b = Metadata(name=two, namespace="lab", uid="uid-2")
    first = job_name(a, Stage.SFT, attempt, digest("x"))
    assert first != job_name(b, Stage.SFT, attempt, digest("x")), "an object made anew under a name has Jobs of its own"
    assert first != job_name(a, Stage.SFT, attempt + 1, digest("x"))
    assert first != job_name(a, Stage.DPO, attempt, digest("x"))
    assert first != job_name(a, Stage.SFT, attempt, digest("y"))
    assert first == job_name(a, Stage.SFT, attempt, digest("x"))
    assert one == two or server_name(one) != server_name(two)


def test_a_long_name_is_cut_but_never_ends_in_a_dash() -> None:
    assert bounded_name("a" * 53 + "-b", unique="x") == bounded_name("a" * 53, unique="x")
    assert len(server_name("g" * 63)) == 63


# ------------------------------------------------------------------ several nodes, and what a user adds to the pods


def test_a_stage_on_several_nodes_is_one_job_whose_pods_find_each_other_and_end_together() -> None:
    mine = owner({"nodes": 3, "queueName": "gpu"})
    built = job(mine, spec(), 1)
    name = built["metadata"]["name"]
    assert {key: built["spec"][key] for key in ("completionMode", "completions", "parallelism", "backoffLimit")} == {
        "completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimit": 0,
    }  # fmt: skip
    lost, mistake = built["spec"]["podFailurePolicy"]["rules"]
    assert (lost["action"], mistake["action"]) == ("FailJob", "FailJob")
    pod = built["spec"]["template"]["spec"]
    assert pod["subdomain"] == peers_name(name)
    told = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
    assert told["FLYWHEEL_NODES"] == "3"
    assert told["FLYWHEEL_MASTER_ADDRESS"] == f"{name}-0.{peers_name(name)}.lab.svc"
    service = peers(mine, spec(), name, "uid-job")
    assert service["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": "uid-job"}
    ]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}


def test_a_stage_that_cannot_share_its_work_has_one_pod() -> None:
    curate = CurateSpec(owner="gen-1", group="luna", artifacts="pvc://artifacts/runs")
    built = job(owner({"nodes": 3}), curate, 1)["spec"]
    assert "completions" not in built
    assert "subdomain" not in built["template"]["spec"]
    single = job(owner({"nodes": 3, "stages": [{"stage": "sft", "nodes": 1}]}), spec(), 1)["spec"]
    assert "completions" not in single


@given(
    name=st.text("abc-0", min_size=1, max_size=50).map(lambda s: f"0{s}0"[:50].rstrip("-")),
    stage=st.sampled_from(Stage),
)
def test_the_names_of_several_pods_are_dns_labels(name: str, stage: Stage) -> None:
    called = job_name(Metadata(name=name, namespace="lab", uid="u"), stage, 100, digest("x"))
    for label in (peers_name(called), f"{called}-{MAX_NODES - 1}"):
        assert len(label) <= 63
    assert re.match("^[a-z]([-a-z0-9]*[a-z0-9])?$", peers_name(called)), "a Service's name begins with a letter"


def test_what_a_user_adds_reaches_the_pods_of_that_stage_and_takes_nothing_of_ours() -> None:
    runtime = FULL_RUNTIME | {
        "podTemplate": {"labels": {"team": "all", "unit": "ml"}, "schedulerName": "gangs"},
        "stages": [{"stage": "sft", "serviceAccountName": "sft", "podTemplate": TEMPLATE}],
    }
    template = job(owner(runtime), spec(), 1)["spec"]["template"]
    pod = template["spec"]
    assert template["metadata"]["labels"]["team"] == "chat", "the stage's own counts"
    assert template["metadata"]["labels"]["unit"] == "ml"
    assert template["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "flywheel-operator"
    assert template["metadata"]["annotations"] == {"cost-centre": "42"}
    assert (pod["runtimeClassName"], pod["schedulerName"], pod["serviceAccountName"]) == ("nvidia", "gangs", "sft")
    assert pod["nodeSelector"] == {"gpu": "h100", "zone": "a"}
    assert [t["key"] for t in pod["tolerations"]] == ["gpu", "spot"]
    sources = {v["name"]: v for v in pod["volumes"]}
    assert sources["user-ca"]["configMap"] == {"name": "ca"}
    assert sources["user-keys"]["secret"] == {"secretName": "keys"}
    assert sources["user-corpus"]["persistentVolumeClaim"] == {"claimName": "corpus", "readOnly": True}
    assert sources["user-cache"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
    writable = {m["name"]: not m["readOnly"] for m in pod["containers"][0]["volumeMounts"] if "user-" in m["name"]}
    assert writable == {"user-ca": False, "user-keys": False, "user-corpus": False, "user-cache": True}
    plain = CurateSpec(owner="gen-1", group="luna", artifacts="pvc://artifacts/runs")
    other = job(owner(runtime), plain, 1)["spec"]["template"]
    assert other["metadata"]["labels"]["team"] == "all"
    assert "user-ca" not in {v["name"] for v in other["spec"]["volumes"]}
    assert job(owner({"podTemplate": {"volumes": [{"name": "x", "mountPath": "/x", "emptyDir": {}}]}}), spec(), 1)[
        "spec"
    ]["template"]["spec"]["volumes"][-1] == {"name": "user-x", "emptyDir": {}}
