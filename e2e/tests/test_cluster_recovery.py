"""`up` and `down` hold after anything: each test breaks a cluster in another way."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster import Cluster, cgroups, leftovers, mounts
from e2e.cluster.api import Api
from e2e.cluster.processes import Process
from e2e.cluster.record import Record

pytestmark = pytest.mark.cluster

NAME = "flywheel-crash"
OTHER = "flywheel-crash-2"
MARKER = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "marker", "namespace": "default"},
    "data": {"key": "value"},
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """One cluster for all tests that only break it; it goes at the end."""
    made = Cluster(NAME)
    made.down()  # What a killed run left.
    yield made
    made.down()


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """A cluster with something in it that must not get lost, and with a pod that runs."""
    shared.up()
    Api.of(shared.kubeconfig).apply(MARKER)
    dns_runs(shared)
    return shared


def whole(cluster: Cluster) -> None:
    """Check that the cluster works again, and is the same one."""
    status = cluster.status()
    assert (status["api"], status["node"]) == ("ready", "Ready")
    assert "dead" not in status["servers"].values()
    marker = Api.of(cluster.kubeconfig).get("/api/v1/namespaces/default/configmaps/marker")
    assert marker is not None
    assert marker["data"] == MARKER["data"]
    dns_runs(cluster)


def dns_runs(cluster: Cluster) -> None:
    """Wait until the cluster runs a pod and a Service has its address."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        slices = Api.of(cluster.kubeconfig).get("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices")
        endpoints = [endpoint for item in (slices or {})["items"] for endpoint in item["endpoints"] or []]
        if any(endpoint["conditions"]["ready"] for endpoint in endpoints):
            return
        time.sleep(0.5)
    pytest.fail("CoreDNS has no ready endpoint")


def kill_everything(cluster: Cluster) -> None:
    """SIGKILL every process of the cluster, containers and their shims among them."""
    for pid in cgroups.members(cluster.layout.cgroup):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)


def traces(name: str) -> list[str]:
    """List whatever is left of a cluster on this machine."""
    layout = Cluster(name).layout
    found = [str(path) for path in (layout.root, layout.link, layout.lock) if path.exists()]
    found += [str(place) for place in mounts.below(layout.root)]
    found += [str(place / layout.cgroup) for place in cgroups.hierarchies() if (place / layout.cgroup).exists()]
    for file in leftovers.CNI_RESULTS.glob("*"):
        with contextlib.suppress(OSError):
            found += [str(file)] if f"{layout.root}/" in file.read_text(errors="replace") else []
    for link in leftovers.CONTAINER_LOGS.glob("*"):
        found += [str(link)] if f"{layout.root}/" in str(link.readlink()) else []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(layout.root) in file.read_bytes().decode(errors="replace").replace("\0", " "):
                found.append(str(file))
    return found


def test_up_is_idempotent_and_down_leaves_nothing(cluster: Cluster) -> None:
    before = Record.load(cluster.layout.record)
    began = time.monotonic()
    cluster.up()
    assert time.monotonic() - began < 10
    assert Record.load(cluster.layout.record) == before
    whole(cluster)
    cluster.down()
    assert traces(NAME) == []
    cluster.down()
    assert traces(NAME) == []


def test_every_process_killed(cluster: Cluster) -> None:
    kill_everything(cluster)
    began = time.monotonic()
    cluster.up()
    assert time.monotonic() - began < 20
    whole(cluster)


@pytest.mark.full
@pytest.mark.parametrize("server", ["etcd", "kube-apiserver", "containerd", "kubelet", "forwarder"])
def test_one_server_killed(cluster: Cluster, server: str) -> None:
    record = Record.load(cluster.layout.record)
    assert record is not None
    os.kill(record.processes[server].pid, signal.SIGKILL)
    time.sleep(0.3)
    cluster.up()
    whole(cluster)


def test_every_process_killed_and_run_wiped(cluster: Cluster) -> None:
    kill_everything(cluster)
    leftovers_of_run = (leftovers.SHIM_SOCKETS, Path("/run/netns"))
    for folder in leftovers_of_run:  # not all of /run: other clusters and programs live there
        mounts.undo(folder)
        shutil.rmtree(folder, ignore_errors=True)
    mounts.undo(cluster.layout.run)
    shutil.rmtree(cluster.layout.run)
    cluster.up()
    whole(cluster)


@pytest.mark.full
def test_own_run_folder_wiped_under_a_living_cluster(cluster: Cluster) -> None:
    shutil.rmtree(cluster.layout.run, ignore_errors=True)
    cluster.up()
    whole(cluster)


@pytest.mark.full
def test_the_namespace_is_gone(cluster: Cluster) -> None:
    mounts.undo(cluster.layout.namespace)
    cluster.up()
    whole(cluster)


@pytest.mark.full
def test_a_stale_socket(cluster: Cluster) -> None:
    record = Record.load(cluster.layout.record)
    assert record is not None
    os.kill(record.processes["containerd"].pid, signal.SIGKILL)
    time.sleep(0.3)
    assert cluster.layout.containerd_socket.is_socket()
    cluster.up()
    whole(cluster)


@pytest.mark.full
def test_the_record_is_lost(cluster: Cluster) -> None:
    """Also when a lower slot has become free meanwhile: certificates and etcd hold the old addresses."""
    cluster.layout.record.unlink()
    cluster.up()
    whole(cluster)
    cluster.layout.record.write_text("{")
    cluster.down()
    assert traces(NAME) == []


def test_down_after_every_process_was_killed(cluster: Cluster) -> None:
    kill_everything(cluster)
    cluster.down()
    assert traces(NAME) == []


@pytest.mark.full
@pytest.mark.parametrize("moment", [0.3, 0.8, 1.5, 2.5])
def test_up_killed_half_way(moment: float) -> None:
    cluster = Cluster(NAME)
    try:
        with subprocess.Popen([sys.executable, "-m", "e2e.cluster", "up", "--name", NAME]) as half:
            time.sleep(moment)
            half.kill()
        cluster.up()
        Api.of(cluster.kubeconfig).apply(MARKER)
        whole(cluster)
        with subprocess.Popen([sys.executable, "-m", "e2e.cluster", "down", "--name", NAME]) as half:
            time.sleep(moment / 8)
            half.kill()
    finally:
        cluster.down()
    assert traces(NAME) == []


def test_a_second_cluster_beside(cluster: Cluster) -> None:
    other = Cluster(OTHER)
    try:
        other.up()
        Api.of(other.kubeconfig).apply(MARKER)
        whole(other)
        first, second = Record.load(cluster.layout.record), Record.load(other.layout.record)
        assert first is not None
        assert second is not None
        assert first.slot != second.slot
        kill_everything(other)
        whole(cluster)
        other.up()
        whole(other)
    finally:
        other.down()
    assert traces(OTHER) == []
    whole(cluster)
    assert all(Process.of(process.pid) == process for process in first.processes.values())


@pytest.mark.full
def test_a_state_folder_too_long_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ("long" * 15)))
    cluster = Cluster("flywheel-long")
    assert cluster.layout.root != cluster.layout.link
    try:
        cluster.up()
        Api.of(cluster.kubeconfig).apply(MARKER)
        whole(cluster)
    finally:
        cluster.down()
    assert traces("flywheel-long") == []
