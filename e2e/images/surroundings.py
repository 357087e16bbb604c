"""What a build needs of this machine and must not leave in the image or the Dockerfile: certificates, index, wheels."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from requirements.variants import wheel_folders

if TYPE_CHECKING:
    from collections.abc import Mapping

WHEELS = "/mnt/wheels"
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
PASSED_ON = ("index-url", "extra-index-url", "trusted-host", "proxy")


def pip_settings() -> dict[str, str]:
    """Read pip's settings on this machine, from its files and from the environment (which wins)."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    return parse_pip_settings(listed.stdout)


def parse_pip_settings(listed: str) -> dict[str, str]:
    """Read the output of `pip config list`."""
    settings: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        if found := re.fullmatch(r"(?:global|install|:env:)\.([\w-]+)='(.*)'", line):
            settings[found[1]] = found[2]
    return settings


def pip_conf(settings: Mapping[str, str], *, wheels: int) -> str:
    """Render the pip.conf that is mounted during a build, for that many mounted folders of wheels."""
    lines = ["[global]", "timeout = 180", f"cert = {AUTHORITIES}"]
    for name in PASSED_ON:
        if value := settings.get(name):
            lines.append(f"{name} = " + value.replace("\\n", "\n    "))
    if wheels:
        lines += ["find-links ="] + [f"    {WHEELS}/{number}" for number in range(wheels)]
    return "\n".join(lines) + "\n"


def authorities(environment: Mapping[str, str], settings: Mapping[str, str]) -> Path | None:
    """Find the file of certificate authorities that this machine's clients are told to trust, if any."""
    named = (
        settings.get("cert"),
        *(environment.get(name) for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")),
    )
    return next((Path(name) for name in named if name and Path(name).is_file()), None)


def mounts(scratch: Path, environment: Mapping[str, str]) -> list[str]:
    """Return the volumes (`here:there:ro`) of a build. They are there while it runs, and in no layer."""
    settings = pip_settings()
    folders = [folder.resolve() for folder in wheel_folders()]
    (scratch / "pip.conf").write_text(pip_conf(settings, wheels=len(folders)))
    volumes = [f"{scratch / 'pip.conf'}:/etc/pip.conf:ro"]
    volumes += [f"{folder}:{WHEELS}/{number}:ro" for number, folder in enumerate(folders)]
    if trusted := authorities(environment, settings):
        volumes.append(f"{trusted.resolve()}:{AUTHORITIES}:ro")
    return volumes
