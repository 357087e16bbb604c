"""The servers of a cluster, in the order in which they start."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from e2e.cluster import configs, pki

if TYPE_CHECKING:
    from collections.abc import Mapping

    from e2e.cluster.layout import Addresses, Layout
    from e2e.cluster.toolchain import Tools


@dataclass(frozen=True)
class Server:
    """One background process of the cluster."""

    name: str
    command: tuple[str, ...]
    inside: bool = True
    """In the cluster's network namespace (all but the forwarder)."""
    environment: Mapping[str, str] = field(default_factory=dict)


def everything(layout: Layout, addresses: Addresses, tools: Tools, api_port: int) -> tuple[Server, ...]:
    """List every server: first what the API needs, then what needs the API."""

    def kubernetes(name: str, arguments: list[str]) -> Server:
        return Server(name, (tools.server(name), *arguments))

    forwarder = str(Path(__file__).with_name("forwarder.py"))
    door = f"{api_port}={addresses.node}:{configs.API_PORT}"
    return (
        kubernetes("etcd", configs.etcd_arguments(layout)),
        Server("containerd", ("containerd", "--config", str(layout.config / "containerd.toml"))),
        kubernetes("kube-apiserver", configs.apiserver_arguments(layout, addresses)),
        Server("forwarder", (sys.executable, "-I", forwarder, str(layout.namespace), door), inside=False),
        kubernetes("kube-controller-manager", configs.controller_manager_arguments(layout, addresses)),
        kubernetes("kube-scheduler", configs.scheduler_arguments(layout)),
        kubernetes("kubelet", configs.kubelet_arguments(layout, addresses)),
        kubernetes("kube-proxy", [f"--config={layout.config / 'kube-proxy.json'}"]),
        kubernetes("local-provisioner", configs.provisioner_arguments(layout)),
    )


BEFORE_API = ("etcd", "containerd", "kube-apiserver", "forwarder")
"""What is started at once; the others would only log that the API is not there yet."""


def write_configuration(layout: Layout, addresses: Addresses, api_port: int) -> None:
    """Write every configuration file and kubeconfig (certificates must be there)."""
    for folder in (
        layout.config / "cni",
        layout.logs,
        layout.pod_logs,
        layout.kubelet,
        layout.volumes,
        layout.run / "volume-plugins",
    ):
        folder.mkdir(parents=True, exist_ok=True)
    layout.volumes.chmod(0o755)
    (layout.config / "containerd.toml").write_text(configs.containerd(layout))
    (layout.config / "resolv.conf").write_text("")
    for name, content in (
        ("cni/10-bridge.conflist", configs.cni(layout, addresses)),
        ("kubelet.json", configs.kubelet(layout, addresses)),
        ("kube-proxy.json", configs.kube_proxy(layout, addresses)),
    ):
        (layout.config / name).write_text(json.dumps(content, indent=1))
    inside = f"https://{addresses.node}:{configs.API_PORT}"
    parties = {
        "kubelet": "kubelet-client",
        **{name: name for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy", "local-provisioner")},
    }
    for server, party in parties.items():
        _write_kubeconfig(layout, layout.config / f"{server}.kubeconfig", inside, party)
    _write_kubeconfig(layout, layout.kubeconfig, f"https://127.0.0.1:{api_port}", "admin")


def make_certificates(layout: Layout, addresses: Addresses) -> None:
    """Make the cluster's certificates, unless they are there."""
    pki.create(layout.pki, pki.parties(layout.name, addresses))


def _write_kubeconfig(layout: Layout, target: Path, server: str, party: str) -> None:
    content = configs.kubeconfig(
        name=layout.name,
        server=server,
        ca=(layout.pki / "ca.crt").read_bytes(),
        certificate=(layout.pki / f"{party}.crt").read_bytes(),
        key=(layout.pki / f"{party}.key").read_bytes(),
    )
    target.touch(mode=0o600)
    target.write_text(yaml.safe_dump(content, sort_keys=False))
