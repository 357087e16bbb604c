"""Removing what a cluster leaves outside its folder, and what stops its folder from being removed."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster import cgroups, mounts, network, processes

if TYPE_CHECKING:
    from e2e.cluster.layout import Layout
    from e2e.cluster.record import Record

CNI_RESULTS = Path("/var/lib/cni/results")
CONTAINER_LOGS = Path("/var/log/containers")
SHIM_SOCKETS = Path("/run/containerd/s")


def stop(layout: Layout, record: Record | None) -> None:
    """End every process of the cluster, undo its mounts, forget what a reboot would forget."""
    processes.kill_group(layout.cgroup)
    if record is not None:  # a server that could not join its cgroup, say
        processes.kill(process.pid for process in record.processes.values() if process.alive)
    _remove_shim_sockets(layout)
    network.destroy(layout)
    mounts.undo(layout.root)
    shutil.rmtree(layout.run, ignore_errors=True)
    _remove_strays(layout)


def erase(layout: Layout, record: Record | None) -> None:
    """Remove the cluster's cgroup and folder; it must be stopped."""
    if record is not None:
        # What kubectl remembers of an API at this address would mislead it about the next one there.
        remembered = Path.home() / ".kube" / "cache" / "discovery" / f"127.0.0.1_{record.api_port}"
        shutil.rmtree(remembered, ignore_errors=True)
    cgroups.remove(layout.cgroup)
    if layout.root.exists():
        shutil.rmtree(layout.root)
    if layout.link.is_symlink():
        layout.link.unlink()


def _remove_shim_sockets(layout: Layout) -> None:
    """Each shim listens below /run/containerd, wherever containerd's state is; a killed one leaves its socket."""
    for file in layout.run.glob("containerd/io.containerd.runtime.v2.task/*/*/address"):
        socket = Path(file.read_text().removeprefix("unix://"))
        if socket.parent == SHIM_SOCKETS:
            socket.unlink(missing_ok=True)
    _remove_empty(SHIM_SOCKETS, SHIM_SOCKETS.parent)


def _remove_strays(layout: Layout) -> None:
    """libcni keeps results, and the kubelet keeps links to logs, in folders that cannot be chosen."""
    ours = f"{layout.root}/"  # each result names the pod's namespace, which lies in our folder
    for file in CNI_RESULTS.glob("*"):
        with contextlib.suppress(OSError):  # another cluster removes its own at the same time
            if ours in file.read_text(errors="replace"):
                file.unlink(missing_ok=True)
    for link in CONTAINER_LOGS.glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(ours):
            link.unlink(missing_ok=True)
    _remove_empty(CNI_RESULTS, CNI_RESULTS.parent, CONTAINER_LOGS)


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # missing, or somebody else's things are in it
            folder.rmdir()
