"""The cluster's cgroups: they tell which processes are the cluster's, whatever else was lost.

A process cannot leave its cgroup by forking, and the kernel keeps the list: so `down` finds every process
that `up` or a container has started, also after a crash before their pids were written down, and finds no
other.
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import cache
from pathlib import Path

from e2e.cluster.errors import ClusterError

PODS = "pods"
SERVERS = "servers"


@cache
def hierarchies() -> tuple[Path, ...]:
    """Mount points of all controllers (cgroup v1), then that of cgroup v2, as far as they are mounted."""
    first, second = [], []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, place = after.split()[0], Path(before.split()[4])
        if kind == "cgroup":
            first.append(place)
        elif kind == "cgroup2":
            second.append(place)
    # A hybrid machine has both; runc then also makes an empty group in the second.
    return (*sorted(set(first)), *second[:1])


def unified() -> bool:
    """Say whether this machine has cgroup v2 only."""
    return len(hierarchies()) == 1 and (hierarchies()[0] / "cgroup.controllers").exists()


def _tracking() -> Path:
    """The hierarchy in which servers are put; one suffices to find them."""
    found = hierarchies()
    if not found:
        raise ClusterError("no cgroup hierarchy is mounted under /sys/fs/cgroup: the kubelet needs one")
    return next((place for place in found if place.name == "pids"), found[0])


def create(group: str) -> None:
    """Make the cluster's cgroup in every hierarchy, with a child for its pods."""
    for place in hierarchies():
        (place / group / PODS).mkdir(parents=True, exist_ok=True)
    if unified():
        root = hierarchies()[0]
        available = (root / "cgroup.controllers").read_text().split()
        wanted = [name for name in ("cpu", "cpuset", "memory", "pids", "io", "hugetlb") if name in available]
        for parent in (root, root / group, root / group / PODS):
            (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))


def server(group: str, name: str) -> Path:
    """Return the file to which a server writes its pid to join its cgroup, made if need be."""
    folder = _tracking() / group / SERVERS / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "cgroup.procs"


def _tree(top: Path) -> list[Path]:
    """List a cgroup and all below it, the deepest first; os.walk passes over what goes away meanwhile."""
    return [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]


def members(group: str) -> set[int]:
    """List the pids in a cgroup and all its children, in every hierarchy."""
    pids: set[int] = set()
    for place in hierarchies():
        for folder in _tree(place / group):
            with contextlib.suppress(OSError):  # the cgroup went away meanwhile
                pids.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
    return pids


def remove(group: str) -> None:
    """Remove the emptied cgroup from every hierarchy.

    Raises:
        ClusterError: one is still in use after ten seconds.
    """
    deadline = time.monotonic() + 10
    while True:
        left = [place / group for place in hierarchies() if (place / group).exists()]
        for top in left:
            for folder in _tree(top):
                with contextlib.suppress(OSError):  # busy until the kernel has reaped its last process
                    folder.rmdir()
        left = [top for top in left if top.exists()]
        if not left:
            return
        if time.monotonic() > deadline:
            raise ClusterError(f"cgroup {left[0]} is still in use")
        time.sleep(0.05)
