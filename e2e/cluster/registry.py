"""The registry inside a cluster, through which images are loaded: of a changed image, only new layers travel."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster.errors import ClusterError
from e2e.cluster.layout import cache_home
from e2e.cluster.servers import Server
from e2e.cluster.toolchain import locked

if TYPE_CHECKING:
    from e2e.cluster.layout import Layout
    from e2e.cluster.toolchain import Say

PACKAGE = "docker-registry"
ADDRESS = "127.0.0.1:5000"
"""Loopback of the cluster's own namespace: containerd is in there, too, and speaks plain HTTP to loopback."""


def program(say: Say) -> Path:
    """Return Debian's registry, unpacked into the cache.

    Unpacked, not installed: on a machine with systemd, installing it would start it on every interface.

    Raises:
        ClusterError: apt could not fetch it.
    """
    home = cache_home(os.environ) / "docker-registry"
    binary = home / "usr" / "bin" / PACKAGE
    with locked(home.with_name(".docker-registry.lock")):
        if not binary.exists():
            say(f"fetching the Debian package {PACKAGE} (it is not installed, only unpacked into {home})")
            with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
                Path(scratch).chmod(0o755)
                _run("apt-get", "download", "-qq", PACKAGE, where=scratch)
                (package,) = Path(scratch).glob("*.deb")
                unpacked = Path(scratch) / "unpacked"
                _run("dpkg-deb", "-x", str(package), str(unpacked), where=scratch)
                unpacked.rename(home)
    return binary


def configuration(data: Path, address: str = ADDRESS) -> str:
    """Render the registry's configuration (YAML, of which JSON is a part)."""
    return json.dumps(
        {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(data)}, "delete": {"enabled": True}},
            "http": {"addr": address},
        }
    )


def server(layout: Layout, binary: Path) -> Server:
    """Return the registry as a server of the cluster. Its blobs lie in the cache: the next cluster needs them, too."""
    file = layout.config / "registry.yml"
    file.write_text(configuration(cache_home(os.environ) / "registry"))
    return Server("registry", (str(binary), "serve", str(file)))


def _run(*command: str, where: str) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} failed: {done.stderr.strip()[-400:]}")
