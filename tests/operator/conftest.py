"""A real API server for the tests of the rooms that talk to one."""

import json
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from flywheel_operator.kube.client import Api, connect
from flywheel_operator.kube.resources import NAMESPACE, Raw

ROOT = Path(__file__).parents[2]
CLUSTER = "flywheel-test"


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """FLYWHEEL_TEST_KUBECONFIG, or the cluster `flywheel-test`, which is left running for the next time."""
    given = os.environ.get("FLYWHEEL_TEST_KUBECONFIG")
    if given:
        return given
    from e2e.cluster import Cluster  # noqa: PLC0415 -- only where there is no other cluster

    cluster = Cluster(CLUSTER)
    cluster.up()
    return str(cluster.kubeconfig)


@dataclass
class Kubectl:
    """kubectl, for what a person or a chart would do."""

    program: str
    kubeconfig: str
    namespace: str = "default"

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        command = [self.program, f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *manifests: Raw) -> None:
        self("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def json(self, *arguments: str) -> Raw:
        return dict(json.loads(self(*arguments, "-o", "json")))

    def kubeconfig_with(self, token: str, folder: Path) -> str:
        """A kubeconfig for whoever holds `token`."""
        content = yaml.safe_load(Path(self.kubeconfig).read_text())
        content["users"][0]["user"] = {"token": token}
        path = folder / f"kubeconfig-{uuid.uuid4().hex[:8]}"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    def set_status(self, kind: str, name: str, status: Raw) -> None:
        """Writes the status subresource, as controllers and kubelets do."""
        self("patch", kind, name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))


@pytest.fixture(scope="session")
def cluster_kubectl(kubeconfig: str) -> Kubectl:
    """With our CRDs installed."""
    if os.environ.get("FLYWHEEL_TEST_KUBECONFIG"):
        kubectl = Kubectl("kubectl", kubeconfig)
    else:
        from e2e.cluster import Cluster  # noqa: PLC0415 -- only where there is no other cluster

        kubectl = Kubectl(str(Cluster(CLUSTER).tools.kubectl), kubeconfig)
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/generations.characterflywheel.dev")
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/rewardmodels.characterflywheel.dev")
    return kubectl


@pytest.fixture
def kubectl(cluster_kubectl: Kubectl, namespace: str) -> Kubectl:
    """kubectl in the fresh namespace."""
    return Kubectl(cluster_kubectl.program, cluster_kubectl.kubeconfig, namespace)


@pytest.fixture
async def api(cluster_kubectl: Kubectl) -> AsyncIterator[Api]:
    """Our own client, with all rights."""
    async with connect(cluster_kubectl.kubeconfig) as client:
        yield Api(client)


@pytest.fixture
async def namespace(api: Api) -> AsyncIterator[str]:
    """A fresh namespace."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    await api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    await api.delete(NAMESPACE, None, name)
