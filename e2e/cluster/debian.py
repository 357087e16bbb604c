"""The Debian packages that a local cluster needs: installed only where missing, and said before."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster.errors import CannotRunError, ClusterError
from e2e.cluster.processes import PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CLUSTER: Mapping[str, str] = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "umount": "mount",
    "openssl": "openssl",
}
"""What a cluster runs: program -> package. `socat` serves port-forwarding in containerd."""

IMAGES: Mapping[str, str] = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}
"""What building images without Docker needs."""


def present(program: str) -> bool:
    """Say whether a program (by name, or by path) is installed."""
    return Path(program).exists() if program.startswith("/") else shutil.which(program, path=PATH) is not None


def missing(programs: Mapping[str, str], is_present: Callable[[str], bool] = present) -> list[str]:
    """List the packages to install, each once, in a stable order."""
    return sorted({package for program, package in programs.items() if not is_present(program)})


def refusal() -> str | None:
    """Say in one sentence why this machine cannot run a local cluster; None when it can."""
    if os.geteuid():
        who = "you are not root"
    elif not Path("/etc/debian_version").exists() or shutil.which("apt-get") is None:
        who = "it is not Debian"
    else:
        return None
    return (
        f"This machine cannot run the local cluster ({who}): run as root on Debian 12, "
        "or hand over a cluster with CONTEXT=<context of your kubeconfig>."
    )


def require(programs: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Install what is missing.

    `--no-remove`: a machine that has Docker's own containerd keeps it, and apt refuses instead of swapping it.

    Raises:
        CannotRunError: not root, or not Debian.
        ClusterError: apt failed.
    """
    if reason := refusal():
        raise CannotRunError(reason)
    wanted = missing(programs)
    if not wanted:
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends", "--no-remove", *wanted]
    say(f"installing Debian packages: {' '.join(install)}")
    if not _apt(install):
        say("once more, after apt-get update")
        if not (_apt(["apt-get", "update"]) and _apt(install)):
            raise ClusterError(f"could not install {', '.join(wanted)}: see the output of apt above")


def _apt(command: Sequence[str]) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        [*command, "-qq"], env=environment, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode == 0
