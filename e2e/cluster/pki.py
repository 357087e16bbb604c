"""The cluster's own certificates, made by openssl: one authority, and a certificate per party."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from e2e.cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from e2e.cluster.layout import Addresses

DAYS = "3650"


@dataclass(frozen=True)
class Party:
    """Who a certificate is for: the name and group that Kubernetes reads, and the hosts it may serve as."""

    file: str
    name: str
    group: str = ""
    hosts: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """Subject in openssl's notation."""
        return (f"/O={self.group}" if self.group else "") + f"/CN={self.name}"


def parties(node: str, addresses: Addresses) -> list[Party]:
    """List every certificate that a cluster with this node needs."""
    service = "kubernetes.default.svc"
    return [
        Party(
            "apiserver",
            "kube-apiserver",
            hosts=(
                "IP:127.0.0.1",
                f"IP:{addresses.node}",
                f"IP:{addresses.api_service}",
                "DNS:localhost",
                "DNS:kubernetes",
                "DNS:kubernetes.default",
                f"DNS:{service}",
                f"DNS:{service}.cluster.local",
            ),
        ),
        Party("kubelet", f"system:node:{node}", hosts=(f"IP:{addresses.node}", f"DNS:{node}")),
        Party("apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters"),
        Party("front-proxy", "front-proxy"),
        Party("admin", "admin", "system:masters"),
        Party("kubelet-client", f"system:node:{node}", "system:nodes"),
        Party("kube-controller-manager", "system:kube-controller-manager"),
        Party("kube-scheduler", "system:kube-scheduler"),
        Party("kube-proxy", "system:kube-proxy"),
        Party("local-provisioner", "local-provisioner", "system:masters"),
    ]


def create(folder: Path, wanted: Sequence[Party]) -> None:
    """Make what is missing. A file named `complete` is written last, so a crash half-way starts afresh.

    Raises:
        ClusterError: openssl failed.
    """
    complete = folder / "complete"
    if complete.exists():
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # The machine's own openssl.cnf may add extensions of its own.
    (folder / "openssl.cnf").write_text("[req]\ndistinguished_name = subject\n[subject]\n")
    _openssl(folder, "genrsa", "-out", "service-accounts.key", "2048")
    authority = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    _openssl(folder, *_request("ca", "/CN=characterflywheel"), *authority)
    for party in wanted:
        extensions = [
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature,keyEncipherment",
            "extendedKeyUsage=" + ("serverAuth" if party.hosts else "clientAuth"),
        ]
        if party.hosts:
            extensions.append("subjectAltName=" + ",".join(party.hosts))
        added = [part for extension in extensions for part in ("-addext", extension)]
        _openssl(folder, *_request(party.file, party.subject), "-CA", "ca.crt", "-CAkey", "ca.key", *added)
    complete.write_text("")


def _request(file: str, subject: str) -> list[str]:
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{file}.key"]
    out = ["-out", f"{file}.crt", "-days", DAYS, "-subj", subject]
    return ["req", "-x509", "-new", "-config", "openssl.cnf", *key, *out]


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"openssl {arguments[0]} failed: {done.stderr.strip()[-400:]}")
