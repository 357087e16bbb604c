"""An image of a single static binary, written without any image builder."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write(target: Path, *, image: str, binary: Path) -> None:
    """Write a docker-archive whose only file is the binary, which is also its entry point."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        member = tarfile.TarInfo(binary.name)
        member.mode, member.size = 0o755, binary.stat().st_size
        with binary.open("rb") as content:
            tar.addfile(member, content)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [f"/{binary.name}"], "User": "65532:65532"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(target, mode="w") as tar:
        for name, content_bytes in (
            ("config.json", config),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", manifest),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content_bytes)
            tar.addfile(member, io.BytesIO(content_bytes))
