"""The stand-in for `python:3.11-slim-bookworm` where no image can be pulled: Debian 12 with its own Python 3.11."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

from e2e.cluster.errors import ClusterError

SUITE = "bookworm"
PACKAGES = ("ca-certificates", "g++", "ninja-build", "python3", "python3-dev", "python3-venv")
"""With a compiler: torch and DeepSpeed build small extensions when they are first used."""

EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
HOOKS = (
    'ln -s python3 "$1/usr/bin/python"',  # the name that Docker's image gives it
    'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/log/*',
)
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
PASSED_ON = re.compile(r"Acquire::.*(Proxy|Check-Valid-Until|Check-Date|CaInfo|Retries)\b")


def digest() -> str:
    """Identity of the base: what it is made of, as far as it is decided here."""
    return hashlib.sha256(json.dumps([SUITE, PACKAGES, EXCLUDED, HOOKS]).encode()).hexdigest()[:16]


def make(target: Path) -> None:
    """Write the base as a tar file, from the Debian mirror that this machine uses (about a minute).

    Raises:
        ClusterError: mmdebstrap failed.
    """
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    options += [f"--customize-hook={hook}" for hook in HOOKS]
    settings = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=False).stdout
    options += [f"--aptopt={line}" for line in settings.splitlines() if PASSED_ON.match(line)]
    mirror = [str(file) for file in SOURCES if file.exists() and SUITE in file.read_text()][:1]
    command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", *options, SUITE, str(target)]
    done = subprocess.run([*command, *mirror], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"mmdebstrap failed: {done.stderr.strip()[-800:]}")
