"""The local cluster does what the project's own tests and the demo need of a Kubernetes."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e import installation
from e2e.cluster import Cluster
from e2e.images import builders, recipes, targets
from e2e.kubectl import Kubectl as BoundKubectl

pytestmark = pytest.mark.cluster

NAME = "flywheel-probe"
DOCKERFILE = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY probe /probe\nUSER 65532:65532\n"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}

Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of this module's own."""
    made = Cluster(NAME)
    made.down()  # What a killed run left.
    made.up()
    yield made
    made.down()


@pytest.fixture(scope="module")
def kubectl(cluster: Cluster) -> Kubectl:
    """Runs kubectl from outside the cluster's namespace, with the ordinary kubeconfig."""

    def run(*arguments: str, manifest: Any = None, fails: bool = False) -> str:  # noqa: ANN401  any object of the API
        done = subprocess.run(
            [cluster.tools.kubectl, f"--kubeconfig={cluster.kubeconfig}", *arguments],
            input=json.dumps(manifest) if manifest else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert bool(done.returncode) == fails, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture(scope="module")
def image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with a shell and Python, built and loaded as the project's own are."""
    root = tmp_path_factory.mktemp("probe")
    (root / "probe").write_text("first")
    (root / "probe-image").mkdir()
    (root / "probe-image" / "Dockerfile").write_text(DOCKERFILE)
    builder = builders.Buildah(print)
    recipe = recipes.find(root)["probe"]
    built = builder.build(recipe)
    targets.load(cluster, built, builder, print)
    return built


@pytest.fixture(scope="module")
def pod(kubectl: Kubectl, image: str) -> str:
    """A restricted pod with a claim, which serves its files by HTTP."""
    kubectl("create", "namespace", "probe")
    kubectl("label", "namespace", "probe", "pod-security.kubernetes.io/enforce=restricted")
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": "probe"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    script = "echo started; echo kept > /data/file; exec python3 -m http.server 8080 --directory /data"
    server = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "server", "namespace": "probe", "labels": {"app": "server"}},
        "spec": {
            "securityContext": {"fsGroup": 65532},
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "server",
                    "image": image,
                    "command": ["sh", "-c", script],
                    "securityContext": RESTRICTED,
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    "readinessProbe": {"httpGet": {"path": "/file", "port": 8080}, "periodSeconds": 1},
                }
            ],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
        },
    }
    kubectl("apply", "--server-side", "-f", "-", manifest=claim)
    kubectl("apply", "--server-side", "-f", "-", manifest=server)
    kubectl("-n", "probe", "expose", "pod", "server", "--name=web", "--port=80", "--target-port=8080")
    kubectl("-n", "probe", "wait", "--for=condition=Ready", "pod/server", "--timeout=90s")
    return "server"


def test_the_version_is_the_real_one(kubectl: Kubectl) -> None:
    assert json.loads(kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"] == "v1.34.4"


def test_logs_exec_and_copy(kubectl: Kubectl, pod: str, tmp_path: Path) -> None:
    assert "started" in kubectl("-n", "probe", "logs", pod)
    assert kubectl("-n", "probe", "exec", pod, "--", "cat", "/data/file") == "kept\n"
    kubectl("-n", "probe", "cp", f"{pod}:/data/file", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "kept\n"


def test_a_non_root_pod_writes_to_its_claim_by_fs_group(kubectl: Kubectl, pod: str) -> None:
    assert kubectl("-n", "probe", "exec", pod, "--", "stat", "-c", "%u:%g", "/data/file").strip() == "65532:65532"


def test_services_and_names_work_from_pods(kubectl: Kubectl, pod: str) -> None:
    for url in ("http://web.probe.svc.cluster.local/file", "http://web/file"):
        fetch = f"import urllib.request as r; print(r.urlopen('{url}', timeout=10).read().decode())"
        patient = f'for i in 1 2 3 4 5; do python3 -c "{fetch}" && exit; sleep 1; done; exit 1'
        assert "kept" in kubectl("-n", "probe", "exec", pod, "--", "sh", "-c", patient)


def test_port_forward(cluster: Cluster, kubectl: Kubectl, pod: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(cluster.tools.kubectl), f"--kubeconfig={cluster.kubeconfig}", "-n", "probe", "port-forward", pod]
    with subprocess.Popen([*command, f"{port}:8080"], stdout=subprocess.PIPE, text=True) as forward:
        assert forward.stdout is not None
        assert "Forwarding" in forward.stdout.readline()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET /file HTTP/1.0\r\n\r\n")
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
        forward.terminate()
    assert answer.endswith(b"kept\n")


def test_nothing_outside_can_be_reached_from_a_pod(kubectl: Kubectl, pod: str) -> None:
    attempt = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=3)"
    assert "Error" in kubectl("-n", "probe", "exec", pod, "--", "python3", "-c", attempt, fails=True)


def test_pod_security_refuses_a_privileged_pod(kubectl: Kubectl, pod: str, image: str) -> None:
    said = kubectl("-n", "probe", "run", "bad", f"--image={image}", "--privileged", fails=True)
    assert "violates PodSecurity" in said


def test_cel_rules_of_crds_are_enforced(kubectl: Kubectl) -> None:
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {"low": {"type": "integer"}, "high": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.low <= self.high", "message": "low is above high"}],
            }
        },
    }
    names = {"kind": "Range", "plural": "ranges", "singular": "range"}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "ranges.probe.dev"},
        "spec": {"group": "probe.dev", "scope": "Cluster", "names": names, "versions": [version]},
    }
    kubectl("apply", "-f", "-", manifest=definition)
    kubectl("wait", "--for=condition=Established", "crd/ranges.probe.dev", "--timeout=30s")
    bad = {"apiVersion": "probe.dev/v1", "kind": "Range", "metadata": {"name": "r"}, "spec": {"low": 2, "high": 1}}
    assert "low is above high" in kubectl("apply", "--server-side", "-f", "-", manifest=bad, fails=True)


def test_a_job_ends_with_its_exit_code_and_message(kubectl: Kubectl, pod: str, image: str) -> None:
    container = {
        "name": "job",
        "image": image,
        "command": ["sh", "-c", "echo words > /dev/termination-log; exit 65"],
        "securityContext": RESTRICTED,
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "job", "namespace": "probe"},
        "spec": {"backoffLimit": 0, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }
    kubectl("apply", "-f", "-", manifest=job)
    kubectl("-n", "probe", "wait", "--for=condition=Failed", "job/job", "--timeout=60s")
    pods = json.loads(kubectl("-n", "probe", "get", "pods", "-l", "job-name=job", "-o", "json"))
    ended = pods["items"][0]["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["message"]) == (65, "words\n")


def test_what_a_killed_run_left_is_removed(cluster: Cluster, image: str) -> None:
    """A stage's pod has ten minutes for its checkpoint; a run that finds it does not wait for them."""
    bound = BoundKubectl(Path(cluster.tools.kubectl), Path(cluster.kubeconfig), "left-behind")
    bound.apply(installation.namespace_manifest(bound.namespace))
    container = {"name": "stage", "image": image, "command": ["sleep", "infinity"], "securityContext": RESTRICTED}
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 600, "containers": [container]}
    bound.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "stage"},
            "spec": {"template": {"metadata": {"labels": {"app": "stage"}}, "spec": pod}},
        }
    )
    bound.wait("job", "stage", lambda job: job.get("status", {}).get("ready") == 1, 90)
    for _ in ("what is there goes", "what is not there is fine"):
        installation.remove_namespace(bound, bound.namespace)
        assert bound.get("namespace", bound.namespace) is None


def test_a_changed_image_is_loaded_beside_the_old_one(cluster: Cluster, image: str, tmp_path: Path) -> None:
    (tmp_path / "probe").write_text(str(time.time()))
    (tmp_path / "probe-image").mkdir()
    (tmp_path / "probe-image" / "Dockerfile").write_text(DOCKERFILE)
    builder = builders.Buildah(print)
    changed = builder.build(recipes.find(tmp_path)["probe"])
    began = time.monotonic()
    targets.load(cluster, changed, builder, print)
    assert time.monotonic() - began < 10
    assert {image, changed} <= cluster.images()


def test_a_deleted_claim_takes_its_folder_along(cluster: Cluster, kubectl: Kubectl, pod: str) -> None:
    (volume,) = cluster.layout.volumes.iterdir()
    assert (volume / "file").read_text() == "kept\n"
    kubectl("delete", "namespace", "probe", "--timeout=90s")
    deadline = time.monotonic() + 30
    while volume.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not volume.exists()
