"""The cluster itself: up, down, and what one wants to know of it."""

from __future__ import annotations

import os
import subprocess
import time
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from e2e.cluster import (
    addons,
    archive,
    cgroups,
    configs,
    debian,
    leftovers,
    network,
    processes,
    registry,
    servers,
    toolchain,
)
from e2e.cluster.api import Api
from e2e.cluster.errors import CannotRunError, ClusterError
from e2e.cluster.layout import Addresses, Layout
from e2e.cluster.record import Record, addresses_for, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from e2e.cluster.servers import Server

Json = dict[str, Any]

BASE_IMAGES = {configs.PAUSE_IMAGE: "pause", configs.COREDNS_IMAGE: "coredns"}
PATIENCE = 120.0
"""Seconds for the API, and again for the node: generous, since other work may keep both cores busy."""


class Cluster:
    """A real single-node Kubernetes on this machine, in a network namespace of its own.

    `up` and `down` may be repeated at will, and after any crash. What exists is read from the machine each
    time; nothing is kept in this object.
    """

    def __init__(self, name: str = "flywheel", say: Callable[[str], None] = toolchain.say_to_stderr) -> None:
        """Name a cluster; nothing happens yet.

        Raises:
            CannotRunError: the name cannot be a cluster's.
        """
        self.name = name
        self.layout = Layout.of(name, os.environ)
        self._say = say

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig for use from outside the cluster's network namespace; there while the cluster is up."""
        return self.layout.kubeconfig

    @property
    def logs(self) -> Path:
        """Folder with one log per server."""
        return self.layout.logs

    @cached_property
    def tools(self) -> toolchain.Tools:
        """The programs that were built for the cluster: `.kubectl` and `.helm` among them. Built if need be."""
        return toolchain.ensure(self._say)

    def up(self) -> None:
        """Bring the cluster up, or whatever of it is missing; return when its node is Ready.

        Raises:
            CannotRunError: this machine cannot, or the build tools cannot be had.
            ClusterError: something did not start; the message names the log.
        """
        debian.require(debian.CLUSTER, self._say)
        tools = self.tools
        began = time.monotonic()
        with toolchain.locked(self.layout.lock):
            self._claim()
            record, addresses = addresses_for(self.layout)
            if self._mend(record, addresses, tools):
                self._say(f"cluster {self.name} is up already")
                return
            leftovers.stop(self.layout, record)
            record.processes = {}
            record.api_port = free_port(record.api_port)
            record.save(self.layout.record)
            cgroups.create(self.layout.cgroup)
            network.create(self.layout, addresses)
            servers.make_certificates(self.layout, addresses)
            servers.write_configuration(self.layout, addresses, record.api_port)
            all_servers = servers.everything(self.layout, addresses, tools, record.api_port)
            self._start_in_order(all_servers, record, addresses)
        self._say(f"cluster {self.name} is up after {time.monotonic() - began:.0f} s")

    def down(self) -> None:
        """Remove the cluster with everything it keeps. Quietly does nothing where there is none.

        Raises:
            CannotRunError: not root.
            ClusterError: something could not be removed.
        """
        if os.geteuid():
            raise CannotRunError("Taking a cluster down needs root, as bringing it up did.")
        with toolchain.locked(self.layout.lock):
            record = Record.load(self.layout.record)
            leftovers.stop(self.layout, record)
            leftovers.erase(self.layout, record)
            self.layout.lock.unlink(missing_ok=True)

    def status(self) -> Json:
        """Tell how the cluster is: whether it exists, each server, the API and the node."""
        record = Record.load(self.layout.record)
        if record is None:
            return {"name": self.name, "exists": False}
        return {
            "name": self.name,
            "exists": True,
            "kubeconfig": str(self.kubeconfig),
            "logs": str(self.layout.logs),
            "servers": {name: process.pid if process.alive else "dead" for name, process in record.processes.items()},
            "api": "ready" if self._api_ready() else "does not answer",
            "node": "Ready" if self._api_ready() and self._node_ready() else "not Ready",
        }

    def ctr(self, *arguments: str) -> str:
        """Run containerd's own client on the cluster's images and return what it prints.

        Raises:
            ClusterError: it failed.
        """
        client = ["ctr", "--address", str(self.layout.containerd_socket), "--namespace", "k8s.io"]
        # Inside, since it is the client that talks to a registry.
        done = subprocess.run(self.command(*client, *arguments), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"ctr {' '.join(arguments)} failed: {done.stderr.strip()[-400:]}")
        return done.stdout

    def images(self) -> set[str]:
        """List the names of the images that pods can use."""
        return {line for line in self.ctr("images", "list", "--quiet").splitlines() if not line.startswith("sha256:")}

    def load_archive(self, file: Path) -> None:
        """Load an image archive, as Docker or the OCI write it."""
        self.ctr("images", "import", str(file))

    def run_registry(self) -> None:
        """Start the registry inside the cluster (`registry.ADDRESS` there), unless it runs.

        Raises:
            ClusterError: the cluster is down, or the registry does not answer.
        """
        binary = registry.program(self._say)
        with toolchain.locked(self.layout.lock):
            record = Record.load(self.layout.record)
            if record is None:
                raise ClusterError(f"cluster {self.name} is down")
            process = record.processes.get("registry")
            if process is None or not process.alive:
                self._start([registry.server(self.layout, binary)], record)
        self._wait_for("the registry", self._registry_answers, "registry")

    def pull(self, source: str, image: str) -> None:
        """Have containerd pull an image from the registry inside, and call it by another name.

        Raises:
            ClusterError: it failed.
        """
        self.ctr("images", "pull", "--plain-http", source)
        self.ctr("images", "tag", "--force", source, image)
        self.ctr("images", "rm", source)

    def command(self, *arguments: str) -> list[str]:
        """Return a command line that runs inside the cluster's network namespace."""
        return ["nsenter", f"--net={self.layout.namespace}", "--", *arguments]

    # What up() is made of.

    def _claim(self) -> None:
        self.layout.root.mkdir(parents=True, exist_ok=True, mode=0o755)
        if self.layout.link != self.layout.root and not self.layout.link.is_symlink():
            self.layout.link.symlink_to(self.layout.root)

    def _mend(self, record: Record, addresses: Addresses, tools: toolchain.Tools) -> bool:
        """Start single servers that are missing, where pods still run; False when only a fresh start helps.

        The pods hang on the namespace and on containerd: while these are whole, the rest can be started again
        without harming them.
        """
        keeper = record.processes.get("containerd")
        whole = keeper is not None and keeper.alive and self.layout.containerd_socket.is_socket()
        if not (whole and network.intact(self.layout, addresses)):
            return False
        all_servers = servers.everything(self.layout, addresses, tools, record.api_port)
        gone = [s for s in all_servers if s.name not in record.processes or not record.processes[s.name].alive]
        if gone:
            self._say(f"starting again: {', '.join(server.name for server in gone)}")
        try:
            self._start_in_order(gone, record, addresses)
        except ClusterError as error:
            self._say(f"{error}; starting afresh")
            return False
        return True

    def _start(self, wanted: list[Server], record: Record) -> None:
        for server in wanted:
            record.processes[server.name] = processes.start(
                server.name,
                server.command,
                group=self.layout.cgroup,
                log=self.layout.log(server.name),
                namespace=self.layout.namespace if server.inside else None,
                environment=server.environment,
            )
            record.save(self.layout.record)

    def _start_in_order(self, wanted: Sequence[Server], record: Record, addresses: Addresses) -> None:
        """Start servers, wait for the API between those it needs and those that need it, and for the node at the end.

        Raises:
            ClusterError: something did not become ready in time, or ended.
        """
        self._start([server for server in wanted if server.name in servers.BEFORE_API], record)
        self._load_base_images()
        self._wait_for("the API server", self._api_ready, "kube-apiserver")
        since = time.time() if any(server.name == "kubelet" for server in wanted) else 0.0
        # Not before: the controller-manager gives up when it may not read its own configuration yet.
        self._start([server for server in wanted if server.name not in servers.BEFORE_API], record)
        api = Api.of(self.kubeconfig)
        for manifest in [*addons.storage(), *addons.dns(addresses)]:
            self._wait_for("the API server", partial(self._applied, api, manifest), "kube-apiserver")
        self._wait_for("the node", lambda: self._node_ready(since), "kubelet")
        for name, process in record.processes.items():
            if not process.alive and name != "registry":  # that one is started when an image is loaded
                raise ClusterError(f"{name} ended; its last words: {self._last_words(name)}")

    def _load_base_images(self) -> None:
        self._wait_for("containerd", self._containerd_answers, "containerd")
        there = self.images()
        for image, program in BASE_IMAGES.items():
            if image not in there:
                file = self.layout.run / f"{program}.tar"
                archive.write(file, image=image, binary=self.tools.images / program)
                self.load_archive(file)
                file.unlink()

    @staticmethod
    def _applied(api: Api, manifest: Json) -> bool:
        try:
            api.apply(manifest)
        except OSError:  # it was busy for ten seconds: no reason to start everything afresh
            return False
        return True

    def _api_ready(self) -> bool:
        return self.kubeconfig.exists() and Api.of(self.kubeconfig).ready()

    def _containerd_answers(self) -> bool:
        if not self.layout.containerd_socket.is_socket():
            return False
        try:
            self.ctr("version")
        except ClusterError:
            return False
        return True

    def _registry_answers(self) -> bool:
        probe = f"exec 3<>/dev/tcp/{registry.ADDRESS.replace(':', '/')}"
        return subprocess.run(self.command("bash", "-c", probe), capture_output=True, check=False).returncode == 0

    def _node_ready(self, since: float = 0.0) -> bool:
        """Say whether the kubelet has called its node ready since then (in seconds of the epoch).

        Before it reports, the API still serves what it said before it was killed.
        """
        try:
            node = Api.of(self.kubeconfig).get(f"/api/v1/nodes/{self.name}")
        except (OSError, ClusterError):
            return False
        for condition in (node or {}).get("status", {}).get("conditions", []):
            if condition["type"] == "Ready" and condition["status"] == "True":
                return datetime.fromisoformat(condition["lastHeartbeatTime"]).timestamp() >= int(since)
        return False

    def _wait_for(self, what: str, there: Callable[[], bool], server: str, patience: float = PATIENCE) -> None:
        deadline = time.monotonic() + patience
        while not there():
            record = Record.load(self.layout.record)
            process = record.processes.get(server) if record else None
            if process is not None and not process.alive:
                raise ClusterError(f"{server} ended; its last words: {self._last_words(server)}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{what} is not ready after {patience:.0f} s: see {self.layout.log(server)}")
            time.sleep(0.2)

    def _last_words(self, server: str) -> str:
        log = self.layout.log(server)
        lines = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        return " | ".join(lines)[-800:] + f" (all of it: {log})"
