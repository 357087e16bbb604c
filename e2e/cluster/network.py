"""The cluster's network namespace: one interface, no way out."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from e2e.cluster import mounts
from e2e.cluster.errors import ClusterError

if TYPE_CHECKING:
    from e2e.cluster.layout import Addresses, Layout

INTERFACE = "node0"
PEER = "node1"


def create(layout: Layout, addresses: Addresses) -> None:
    """Make the namespace and the node's interface.

    The interface is one end of a veth pair whose both ends are inside (a dummy device is not in every
    kernel): packets for the default route go nowhere.

    Raises:
        ClusterError: the kernel refused.
    """
    destroy(layout)
    layout.namespace.touch()
    _run("unshare", f"--net={layout.namespace}", "true")
    gateway = addresses.node.packed[:3] + b"\x01"
    commands = [
        "link set lo up",
        f"link add {INTERFACE} type veth peer name {PEER}",
        f"address add {addresses.node}/24 dev {INTERFACE}",
        f"link set {INTERFACE} up",
        f"link set {PEER} up",
        f"route add default via {'.'.join(map(str, gateway))} dev {INTERFACE}",
    ]
    inside = ("nsenter", f"--net={layout.namespace}", "--")
    _run(*inside, "ip", "-batch", "-", text="\n".join(commands) + "\n")
    _run(*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


def intact(layout: Layout, addresses: Addresses) -> bool:
    """Say whether the namespace is there with the node's address."""
    if layout.namespace not in mounts.below(layout.namespace):
        return False
    shown = subprocess.run(
        ["nsenter", f"--net={layout.namespace}", "--", "ip", "-brief", "address", "show", "dev", INTERFACE],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{addresses.node}/24" in shown.stdout


def destroy(layout: Layout) -> None:
    """Remove the namespace; its interfaces and firewall rules go with it."""
    mounts.undo(layout.namespace)
    layout.namespace.unlink(missing_ok=True)


def _run(*command: str, text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} failed: {done.stderr.strip()}")
