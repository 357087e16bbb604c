"""A cluster that is handed over: ours, treated as somebody else's, with a registry on loopback."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster import CannotRunError, Cluster, processes, registry, toolchain
from e2e.images import targets

pytestmark = [pytest.mark.cluster, pytest.mark.full]

NAME = "flywheel-foreign"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster, up before it is handed over."""
    made = Cluster(NAME)
    made.down()  # What a killed run left.
    made.up()
    yield made
    made.down()


@pytest.fixture(scope="module")
def prefix(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry of its own that has one name outside the cluster (where we push) and inside (where it pulls)."""
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    (folder / "registry.yml").write_text(registry.configuration(folder / "data", address))
    serve = cluster.command(str(registry.program(print)), "serve", str(folder / "registry.yml"))
    forwarder = str(toolchain.SOURCES.parent / "forwarder.py")
    forward = [sys.executable, "-I", forwarder, str(cluster.layout.namespace), f"{port}={address}"]
    with (folder / "log").open("w") as log:
        children = [subprocess.Popen(command, stdout=log, stderr=log) for command in (serve, forward)]
        time.sleep(1)
        yield f"{address}/team/flywheel"
        processes.kill(child.pid for child in children)
        for child in children:
            child.wait()


def test_images_come_through_the_registry(
    cluster: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    target = targets.choose("unused", {"CONTEXT": NAME, "REGISTRY": prefix})
    target.up()
    assert target.kubeconfig.stat().st_mode & 0o077 == 0
    refs = target.images(["operator"])
    assert refs["operator"].startswith(f"{prefix}/operator:")

    def kubectl(*arguments: str) -> str:
        command = [str(target.kubectl), f"--kubeconfig={target.kubeconfig}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    script = "import flywheel_operator; print('imported')"
    kubectl("run", "probe", f"--image={refs['operator']}", "--restart=Never", "--command", "--", "python", "-c", script)
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/probe", "--timeout=120s")
    assert kubectl("logs", "probe") == "imported\n"
    assert "Successfully pulled" in kubectl("get", "events", "--field-selector=involvedObject.name=probe")
    target.down()
    assert not target.kubeconfig.exists()
    assert cluster.status()["node"] == "Ready"  # it is not ours to take down


def test_an_unknown_context_gets_one_clear_sentence(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    with pytest.raises(CannotRunError, match="no usable context elsewhere"):
        targets.choose("unused", {"CONTEXT": "elsewhere", "REGISTRY": "127.0.0.1:1/x"}).up()
