"""The whole operator as a process, allowed just what the chart's Role allows it, against a real API server."""

# ruff: noqa: ANN401 -- fixtures that are functions

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic import TypeAdapter

from flywheel_contract.manifest import MANIFEST_NAME, Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_result import Reason, StageResult
from flywheel_contract.stage_spec import StageSpec, stage_uri
from flywheel_contract.stages import Stage
from flywheel_contract.uris import join_uri
from flywheel_operator.watch.leader import RETRY_SECONDS
from tests.operator.kube_objects import Raw, generation_raw, reward_model_raw

pytestmark = pytest.mark.apiserver

RULES = [
    (["characterflywheel.dev"], ["abtests", "generations", "rewardmodels"], ["get", "list", "watch", "patch"]),
    (["characterflywheel.dev"], ["abtests/status", "generations/status", "rewardmodels/status"], ["patch"]),
    (
        ["characterflywheel.dev"],
        ["abtests/finalizers", "generations/finalizers", "rewardmodels/finalizers"],
        ["update"],
    ),
    (["batch"], ["jobs"], ["get", "list", "watch", "create", "delete"]),
    ([""], ["pods"], ["list", "watch"]),
    ([""], ["configmaps"], ["get", "list", "watch", "create", "delete"]),
    (["apps"], ["deployments"], ["get", "list", "watch", "create", "patch", "delete"]),
    ([""], ["services"], ["get", "list", "watch", "create", "update", "patch", "delete"]),
    ([""], ["secrets"], ["create"]),
    (["policy"], ["poddisruptionbudgets"], ["get", "create", "patch"]),
    (["characterflywheel.dev"], ["abtests"], ["create"]),
    (["events.k8s.io"], ["events"], ["create", "patch"]),
    (["kueue.x-k8s.io"], ["workloads"], ["list"]),
    (["ray.io"], ["rayclusters"], ["get", "list", "create", "delete"]),
    ([""], ["namespaces"], ["get"]),
    (["coordination.k8s.io"], ["leases"], ["get", "create", "update"]),
]
"""A Role and nothing else: no list of namespaces, no CRDs, no reading of Secrets."""


class Process:
    """The operator."""

    def __init__(self, kubeconfig: str, namespace: str, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        images = [f"--{what}-image=none.invalid/{what}" for what in ("trainer", "gateway", "router", "analysis")]
        arguments = [*images, f"--namespace={namespace}", f"--port={self.port}"]
        with log.open("w") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "flywheel_operator", *arguments],
                env={"KUBECONFIG": kubeconfig, "PATH": "/usr/bin:/bin"},
                stderr=stderr,
            )

    def page(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def leads(self) -> bool:
        return '"leading": true' in self.page("/readyz")[1]

    def lines(self) -> list[Raw]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(30)


def until(what: Callable[[], Any], seconds: float = 20) -> float:
    """Waits until `what` is true; says how long that took."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < seconds, "it did not come true"
        time.sleep(0.02)
    return time.monotonic() - started


class Wire:
    """A wire between the operator and the API server, which can be cut."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut = True
        while self._open:
            end = self._open.pop()
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def mend(self) -> None:
        self._cut = False

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                near, _ = self._listener.accept()
                if self._cut:
                    near.close()
                    continue
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def role_kubeconfig(kubectl: Any, namespace: str, tmp_path: Path) -> str:
    """The kubeconfig of a service account with the Role."""
    kubectl("create", "serviceaccount", "operator")
    rules = [{"apiGroups": groups, "resources": names, "verbs": verbs} for groups, names, verbs in RULES]
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    kubectl.apply(rbac | {"kind": "Role", "metadata": {"name": "operator"}, "rules": rules})
    kubectl("create", "rolebinding", "operator", "--role=operator", f"--serviceaccount={namespace}:operator")
    return str(kubectl.kubeconfig_with(kubectl("create", "token", "operator").strip(), tmp_path))


@pytest.fixture
def start(role_kubeconfig: str, namespace: str, tmp_path: Path) -> Iterator[Callable[[], Process]]:
    started: list[Process] = []

    def begin() -> Process:
        started.append(Process(role_kubeconfig, namespace, tmp_path / f"operator-{len(started)}.log"))
        return started[-1]

    yield begin
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait()


@pytest.fixture
def wire(role_kubeconfig: str) -> Iterator[Wire]:
    """The kubeconfig leads over it."""
    path = Path(role_kubeconfig)
    content = yaml.safe_load(path.read_text())
    cluster = content["clusters"][0]["cluster"]
    server = urlsplit(cluster["server"])
    wire = Wire((str(server.hostname), server.port or 443))
    cluster["server"] = f"https://127.0.0.1:{wire.port}"
    path.write_text(yaml.safe_dump(content))
    yield wire
    wire.close()


def status_of(kubectl: Any, kind: str, name: str) -> Raw:
    return dict(kubectl.json("get", kind, name).get("status", {}))


def waits_for(kubectl: Any, name: str) -> str:
    conditions = status_of(kubectl, "gen", name).get("conditions", [])
    return " ".join(c["message"] for c in conditions if c["status"] == "False")


def test_the_operator_with_a_role_only(start: Callable[[], Process], kubectl: Any) -> None:
    kubectl.apply(generation_raw("before", parent={"generation": "no-such"}))
    operator = start()
    until(operator.leads)
    assert operator.page("/healthz")[0] == 200

    # A parent that does not exist: Pending, with the reason in words; another reason when it comes.
    until(lambda: status_of(kubectl, "gen", "before").get("phase") == "Pending")
    assert "no-such" in waits_for(kubectl, "before")
    before = waits_for(kubectl, "before")
    kubectl.apply(generation_raw("no-such", parent={"generation": "elsewhere"}))
    seconds = until(lambda: waits_for(kubectl, "before") != before)
    assert seconds < 10  # woken, not polled
    described = kubectl("describe", "gen", "before")
    assert "Events:" in described
    assert "no-such" in described.split("Events:")[1]

    # A reward model starts at once: a ConfigMap and a Job of its first stage.
    kubectl.apply(reward_model_raw())
    until(lambda: kubectl.json("get", "jobs")["items"])
    (job,) = kubectl.json("get", "jobs")["items"]
    assert job["metadata"]["ownerReferences"][0]["name"] == "rm1"
    until(lambda: status_of(kubectl, "rm", "rm1").get("phase") == "Queued")
    # The scheduler's words reach status without anybody polling for them... no node takes what no image is there for.
    until(lambda: any(s.get("message") for s in status_of(kubectl, "rm", "rm1")["stages"]))

    # kopf left no trace on the objects, and nothing was forbidden.
    for raw in (kubectl.json("get", "gen", "before"), kubectl.json("get", "rm", "rm1"), job):
        assert "kopf" not in json.dumps(raw["metadata"] | {"managedFields": None})
    assert [line for line in operator.lines() if line["level"] in ("warning", "error")] == []
    about = [line for line in operator.lines() if line.get("name") == "rm1"]
    assert about
    assert all(line["kind"] == "RewardModel" for line in about)
    _, metrics = operator.page("/metrics")
    assert 'flywheel_reconcile_total{kind="Generation",result="changed"}' in metrics
    assert "flywheel_leader 1.0" in metrics
    assert operator.end() == 0
    assert kubectl.json("get", "lease", "flywheel-operator")["spec"]["holderIdentity"] == ""


def test_restarts(start: Callable[[], Process], kubectl: Any) -> None:
    first = start()
    until(first.leads)
    kubectl.apply(reward_model_raw())
    until(lambda: kubectl.json("get", "jobs")["items"])
    (job,) = kubectl.json("get", "jobs")["items"]

    # A standby replica is ready, and takes over as soon as the leader is told to stop.
    second = start()
    until(lambda: second.page("/readyz")[0] == 200)
    assert not second.leads()
    assert first.end() == 0
    assert until(second.leads) < RETRY_SECONDS + 2

    # What comes while nobody works is found by the next one, who begins at once after an orderly end...
    assert second.end() == 0
    kubectl.apply(reward_model_raw("rm2"))
    third = start()
    until(lambda: len(kubectl.json("get", "jobs")["items"]) == 2)
    # ... and who does nothing twice.
    assert job["metadata"]["uid"] in {j["metadata"]["uid"] for j in kubectl.json("get", "jobs")["items"]}

    # Killed, it leaves the lease behind; who lost it to a thief says so and exits, for a restart.
    patch = '{"spec":{"holderIdentity":"thief"}}'
    kubectl("patch", "lease", "flywheel-operator", "--type=merge", "-p", patch)
    assert third.popen.wait(30) == 1
    assert any("lost the lease" in line["message"] for line in third.lines())


def test_who_may_not_work_is_not_ready_and_says_why(start: Callable[[], Process], kubectl: Any) -> None:
    kubectl("delete", "rolebinding", "operator")
    operator = start()
    until(lambda: operator.page("/healthz")[0] == 200)
    time.sleep(1)
    assert operator.page("/readyz")[0] == 503
    assert operator.end() == 0


def test_rights_that_are_missing_are_said_on_the_object(start: Callable[[], Process], kubectl: Any) -> None:
    kubectl(
        "patch",
        "role",
        "operator",
        "--type=json",
        "-p",
        '[{"op":"replace","path":"/rules/3/verbs","value":["get","list","watch"]}]',
    )
    operator = start()
    until(operator.leads)
    kubectl.apply(reward_model_raw())

    def reconciled() -> Raw:
        conditions = status_of(kubectl, "rm", "rm1").get("conditions", [])
        return next((c for c in conditions if c["type"] == "Reconciled"), {})

    until(reconciled)
    assert (reconciled()["status"], reconciled()["reason"]) == ("False", "Forbidden")
    assert 'cannot create resource "jobs"' in reconciled()["message"]
    assert kubectl.json("get", "jobs")["items"] == []
    assert operator.end() == 0


def test_an_outage(start: Callable[[], Process], kubectl: Any, wire: Wire) -> None:
    operator = start()
    until(operator.leads)
    # A short one: connections break and none can be made. The leader stays, and the watch goes on where it was.
    wire.cut()
    time.sleep(2.5)
    wire.mend()
    kubectl.apply(reward_model_raw())
    assert until(lambda: status_of(kubectl, "rm", "rm1")) < 10
    assert operator.leads()
    # A long one: the lease cannot be held, and another replica may lead. Not one write more.
    wire.cut()
    assert operator.popen.wait(30) == 1
    assert any("lost the lease" in line["message"] for line in operator.lines())


DIGEST = "sha256:" + "1" * 64


def finish(kubectl: Any, stage: str, result: StageResult, code: int = 0) -> None:
    """Plays the kubelet: the stage's pod ends with `result`; the Job controller does the rest."""

    def pod() -> Raw | None:
        found = kubectl.json("get", "pods", "-l", f"characterflywheel.dev/stage={stage}")["items"]
        return next((p for p in found if p["status"]["phase"] == "Pending"), None)

    until(pod)
    name = (pod() or {})["metadata"]["name"]
    reason = "Error" if code else "Completed"
    ended = {"exitCode": code, "reason": reason, "message": result.to_termination_message()}
    container = {"name": "stage", "state": {"terminated": ended}, "image": "i", "imageID": "", "ready": False}
    status = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container | {"restartCount": 0}]}
    kubectl.set_status("pod", name, status)


def stage_spec(kubectl: Any, stage: str) -> Raw:
    """The StageSpec that the stage's ConfigMap holds."""

    def found() -> list[Raw]:
        return list(kubectl.json("get", "configmaps", "-l", f"characterflywheel.dev/stage={stage}")["items"])

    until(found)
    return dict(json.loads(found()[0]["data"]["stage.json"]))


def test_a_reward_model_from_its_creation_to_ready(start: Callable[[], Process], kubectl: Any) -> None:
    operator = start()
    until(operator.leads)
    kubectl.apply(reward_model_raw())
    digests = {i["name"]: DIGEST for i in stage_spec(kubectl, "resolve")["inputs"]}
    finish(kubectl, "resolve", StageResult(stage=Stage.RESOLVE, reason=Reason.SUCCEEDED, outputs=digests))
    spec = stage_spec(kubectl, "reward-model")
    # Killed between two stages; the next one goes on.
    operator.end(signal.SIGKILL)
    kubectl("patch", "lease", "flywheel-operator", "--type=merge", "-p", '{"spec":{"holderIdentity":""}}')
    operator = start()
    measured = Measurement(value=0.8, low=0.7, high=0.9, n=200)
    trained = StageResult(
        stage=Stage.REWARD_MODEL,
        reason=Reason.SUCCEEDED,
        manifest_uri=join_uri(stage_uri(TypeAdapter(StageSpec).validate_python(spec)), MANIFEST_NAME),
        manifest_digest=DIGEST,
        outputs={"model": DIGEST},
        metrics={
            Metric.REWARD_ACCURACY: measured,
            Metric.REWARD_ACCURACY_INTERNAL: measured,
            Metric.REWARD_ACCURACY_USER: measured,
            Metric.ACCURACY_OVER_SURFACE: Measurement(value=0.2, low=0.1, high=0.3, n=200),
            Metric.SHUFFLED_LABEL_ACCURACY: Measurement(value=0.5, low=0.49, high=0.51, n=200),
        },
    )
    finish(kubectl, "reward-model", trained)
    until(lambda: status_of(kubectl, "rm", "rm1").get("phase") == "Ready", 40)
    status = status_of(kubectl, "rm", "rm1")
    assert status["model"]["digest"] == DIGEST
    assert {g["verdict"] for g in status["gates"]} == {"Passed"}
    assert {s["attempts"] for s in status["stages"]} == {1}
    assert 'flywheel_reward_model_phase{name="rm1"' in operator.page("/metrics")[1]


def test_the_users_mistake_fails_at_once_in_the_trainers_own_words(start: Callable[[], Process], kubectl: Any) -> None:
    operator = start()
    until(operator.leads)
    kubectl.apply(reward_model_raw())
    stage_spec(kubectl, "resolve")
    sentence = "pvc://data/pairs.jsonl, line 7: no JSON"
    finish(kubectl, "resolve", StageResult(stage=Stage.RESOLVE, reason=Reason.INVALID_DATA, message=sentence), 65)
    until(lambda: status_of(kubectl, "rm", "rm1").get("phase") == "Failed", 40)
    assert sentence in json.dumps(status_of(kubectl, "rm", "rm1")["conditions"])
    assert len(kubectl.json("get", "jobs")["items"]) == 1
