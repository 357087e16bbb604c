"""A real API server and the pinned kubectl and helm for tests. A conftest.py imports the fixtures that it hands on."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = "flywheel-test"
GROUP = "characterflywheel.dev"

Object = dict[str, Any]


@dataclass(frozen=True)
class Kubectl:
    """kubectl against the test's API server, in a namespace."""

    program: Path
    kubeconfig: Path
    namespace: str = "default"

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs it, whatever the outcome."""
        command = [str(self.program), f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Runs it and answers what it prints; it must succeed."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Object:
        """What it prints as JSON."""
        return dict(json.loads(self(*arguments, "--output=json")))

    def apply(self, *objects: Object) -> None:
        """Server-side, as GitOps does."""
        self("apply", "--server-side", "--validate=strict", "--filename=-", stdin=yaml.safe_dump_all(objects))

    def refusal(self, *objects: Object) -> str:
        """What the server says to a dry run of `kubectl apply` with `objects`, which it must refuse."""
        arguments = ("apply", "--dry-run=server", "--validate=strict", "--filename=-")
        done = self.run(*arguments, stdin=yaml.safe_dump_all(objects))
        assert done.returncode != 0, f"accepted: {done.stdout}"
        return done.stderr

    def set_status(self, kind: str, name: str, status: Object) -> None:
        """Writes the status subresource, as the operator does."""
        self("patch", kind, name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster `flywheel-test`, not brought up; its tools are the pinned ones."""
    return Cluster(CLUSTER)


@pytest.fixture(scope="session")
def helm(cluster: Cluster) -> Path:
    """The pinned helm."""
    return cluster.tools.helm


@pytest.fixture(scope="session")
def kubectl_program(cluster: Cluster) -> Path:
    """The pinned kubectl."""
    return cluster.tools.kubectl


@pytest.fixture(scope="session")
def kubeconfig(cluster: Cluster) -> Path:
    """FLYWHEEL_TEST_KUBECONFIG, or the cluster, brought up and left running for the next time."""
    given = os.environ.get("FLYWHEEL_TEST_KUBECONFIG")
    if given:
        return Path(given)
    cluster.up()
    return cluster.kubeconfig


@pytest.fixture(scope="session")
def cluster_kubectl(kubectl_program: Path, kubeconfig: Path) -> Kubectl:
    """With the CRDs of this checkout in place."""
    kubectl = Kubectl(kubectl_program, kubeconfig)
    kubectl("apply", "--server-side", "--force-conflicts", f"--filename={ROOT / 'crds'}")
    names = [f"crd/{plural}.{GROUP}" for plural in ("generations", "rewardmodels")]
    kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
    return kubectl


@pytest.fixture
def namespace(cluster_kubectl: Kubectl) -> Iterator[str]:
    """A fresh namespace."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    cluster_kubectl("create", "namespace", name)
    yield name
    cluster_kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def kubectl(cluster_kubectl: Kubectl, namespace: str) -> Kubectl:
    """kubectl in the fresh namespace."""
    return replace(cluster_kubectl, namespace=namespace)
