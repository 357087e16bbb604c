"""Where a cluster keeps its things, and which addresses it takes: pure rules, no side effects."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster.errors import CannotRunError

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT = "characterflywheel"

MAX_NAME = 24
"""Cluster names become interface names, cgroups and folders: short ones stay readable everywhere."""

MAX_ROOT = 107 - len("/kubelet/pod-resources/kubelet.sock.new")
"""Longest state folder whose deepest unix socket still fits into the kernel's 108 bytes."""

SLOTS = 32
"""How many clusters can have addresses of their own at the same time."""

BENCHMARK_RANGE = IPv4Network("198.18.0.0/15")
"""RFC 2544: never routed, so neither a company's network nor a home's collides with it."""

NODE_RANGE = IPv4Network("192.0.2.0/24")
"""RFC 5737, for documentation: taken for the one interface of each node."""

FIRST_API_PORT = 16443
"""Port on 127.0.0.1 of the cluster in slot 0; the next slots follow."""


def cache_home(environment: Mapping[str, str]) -> Path:
    """Folder for what can be built again: binaries, base images."""
    home = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME", "/root")) / ".cache")
    return Path(home) / PROJECT


def state_home(environment: Mapping[str, str]) -> Path:
    """Folder for what belongs to clusters that exist; empty when none does."""
    home = environment.get("XDG_STATE_HOME") or str(Path(environment.get("HOME", "/root")) / ".local" / "state")
    return Path(home) / PROJECT


def check_name(name: str) -> str:
    """Return the name if it can be a cluster's.

    Raises:
        CannotRunError: it is not a short DNS label.
    """
    if len(name) > MAX_NAME or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name):
        raise CannotRunError(
            f"'{name}' cannot name a cluster: take at most {MAX_NAME} lower-case letters, digits and inner dashes, "
            "beginning with a letter."
        )
    return name


@dataclass(frozen=True)
class Addresses:
    """The addresses of one cluster; each slot has its own, so that a log line tells which cluster it is from."""

    slot: int

    def __post_init__(self) -> None:
        if not 0 <= self.slot < SLOTS:
            raise ValueError(f"slot {self.slot} is not between 0 and {SLOTS - 1}")

    @property
    def _block(self) -> IPv4Network:
        """A /20 of the benchmark range: its first quarter for Services, its second half for pods."""
        return IPv4Network((int(BENCHMARK_RANGE.network_address) + self.slot * 4096, 20))

    @property
    def services(self) -> IPv4Network:
        """Cluster IPs: 1,024 of them."""
        return IPv4Network((self._block.network_address, 22))

    @property
    def pods(self) -> IPv4Network:
        """Pod addresses: 2,048 of them."""
        return IPv4Network((int(self._block.network_address) + 2048, 21))

    @property
    def node(self) -> IPv4Address:
        """The node's only address; the API server listens on it."""
        return NODE_RANGE[10 + self.slot]

    @property
    def api_service(self) -> IPv4Address:
        """Cluster IP of the Service `kubernetes`: always the first one."""
        return self.services[1]

    @property
    def dns_service(self) -> IPv4Address:
        """Cluster IP of the cluster's DNS."""
        return self.services[10]

    @property
    def api_port(self) -> int:
        """Port on 127.0.0.1 that leads to the API server."""
        return FIRST_API_PORT + self.slot


@dataclass(frozen=True)
class Layout:
    """The folders of one cluster. Everything it leaves on the machine lies under `root`, less its cgroups."""

    name: str
    root: Path
    """Real folder of the state; short enough for unix sockets."""
    link: Path
    """Where a person looks for it: the root itself, or a link to it where that path was too long."""

    @classmethod
    def of(cls, name: str, environment: Mapping[str, str]) -> Layout:
        """Lay out the cluster of that name.

        Raises:
            CannotRunError: the name cannot be a cluster's.
        """
        check_name(name)
        link = state_home(environment) / "clusters" / name
        root = link
        if len(str(link)) > MAX_ROOT:
            digest = hashlib.sha256(str(link).encode()).hexdigest()[:12]
            root = Path("/var/tmp") / f"{PROJECT}-{digest}"  # survives a reboot, unlike /run and /tmp
        return cls(name=name, root=root, link=link)

    @property
    def cgroup(self) -> str:
        """Cgroup of every process of the cluster, below each controller's mount."""
        return f"{PROJECT}-{self.name}"

    @property
    def network(self) -> str:
        """Name of the CNI network; libcni files its results under it, outside our folder."""
        return f"{PROJECT}-{self.name}"

    @property
    def kubeconfig(self) -> Path:
        """For people and tests: works from anywhere on this machine."""
        return self.root / "kubeconfig"

    @property
    def namespace(self) -> Path:
        """The network namespace, bound to a file."""
        return self.root / "netns"

    @property
    def lock(self) -> Path:
        """Held while the cluster is brought up or down; beside the folder, so that it can outlive it."""
        return self.link.with_name(f".{self.name}.lock")

    @property
    def record(self) -> Path:
        """The slot, and each process with its start time."""
        return self.root / "cluster.json"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.root / "pki"

    @property
    def config(self) -> Path:
        """Rendered configuration of every server."""
        return self.root / "config"

    @property
    def logs(self) -> Path:
        """One file per server."""
        return self.root / "logs"

    @property
    def pod_logs(self) -> Path:
        """What containers print."""
        return self.root / "pods-log"

    @property
    def etcd(self) -> Path:
        """The cluster's memory: it survives that every process is killed."""
        return self.root / "etcd"

    @property
    def kubelet(self) -> Path:
        """The kubelet's root folder."""
        return self.root / "kubelet"

    @property
    def containerd(self) -> Path:
        """Images and snapshots: they survive a restart."""
        return self.root / "containerd"

    @property
    def run(self) -> Path:
        """What /run is to a machine: of no use after a restart."""
        return self.root / "run"

    @property
    def containerd_socket(self) -> Path:
        """Where containerd listens."""
        return self.run / "containerd.sock"

    @property
    def volumes(self) -> Path:
        """One folder per persistent volume."""
        return self.root / "volumes"

    def log(self, server: str) -> Path:
        """Return where a server writes."""
        return self.logs / f"{server}.log"
