"""Starting servers that outlive us, and ending exactly these."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster import cgroups

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@cache
def boot() -> str:
    """Identity of this boot of the machine: pids and start times mean nothing across it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Process:
    """A process, told from a later one of the same pid by when it was started (in ticks since that boot)."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Look a living process up; None when there is none, or only a zombie."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]), boot())

    @property
    def alive(self) -> bool:
        """Say whether this very process still runs."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)  # reap it, where it is our own child
        return Process.of(self.pid) == self


def start(
    name: str,
    command: Sequence[str],
    *,
    group: str,
    log: Path,
    namespace: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start a server in the background: own session, own cgroup, in that network namespace, output to its log.

    Whatever an earlier, unrecorded start left in the server's cgroup is killed first.
    """
    joins = cgroups.server(group, name)
    kill({int(pid) for pid in joins.read_text().split()})
    if namespace is not None:
        # Not `ip netns exec`: it mounts a fresh /sys, which hides the cgroups from the kubelet.
        command = ["nsenter", f"--net={namespace}", "--", *command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            # The shell joins the cgroup before it becomes the server, so that no child can escape.
            ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(joins), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={"PATH": PATH, **(environment or {})},
            start_new_session=True,
        )
    found = Process.of(child.pid)
    child.returncode = 0  # it is meant to outlive us: no ResourceWarning when this object goes
    return found or Process(child.pid, -1, boot())


def kill(pids: Iterable[int], *, patience: float = 10.0) -> None:
    """Kill processes and wait until they are gone (zombies count as gone)."""
    processes = [process for process in map(Process.of, pids) if process is not None]
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + patience
    while any(process.alive for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)


def kill_group(group: str) -> None:
    """Kill whatever runs in the cluster's cgroup, until nothing more is forked into it."""
    for _ in range(20):
        pids = cgroups.members(group) - {os.getpid()}
        if not any(Process.of(pid) for pid in pids):
            return
        kill(pids)
