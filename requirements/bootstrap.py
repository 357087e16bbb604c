"""Makes or refreshes `.venv` from the hashed requirements; quick when nothing changed. Needs only Python 3.11."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from variants import torch_variant, wheel_folders

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
VENV = REPOSITORY / ".venv"
MEMBERS = ("analysis", "contract", "gateway", "operator", "safety", "trainer-image")


def fingerprint(variant: str) -> str:
    """What the environment was made from: the interpreter, the pinned files and the members' metadata."""
    digest = hashlib.sha256(f"{sys.version}{variant}{VENV}".encode())
    for file in (HERE / "uv.txt", HERE / f"dev-{variant}.txt", *(REPOSITORY / m / "pyproject.toml" for m in MEMBERS)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def main() -> None:
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(
            f"the pinned requirements are for Python 3.11, this is {sys.version.split()[0]}: "
            "call make with PYTHON=/path/to/python3.11"
        )
    stamp = VENV / "flywheel-stamp"
    made = stamp.read_text() if stamp.exists() else ""
    # An environment that was made for the CPU stays so in a shell that does not name the wheel's folder.
    variant = "cpu" if made == fingerprint("cpu") and "TORCH_VARIANT" not in os.environ else torch_variant()
    wanted = fingerprint(variant)
    if made == wanted:
        return
    print(f"making .venv (torch for {variant}) from requirements/dev-{variant}.txt ...", flush=True)
    stamp.unlink(missing_ok=True)
    run = subprocess.check_call
    if not (VENV / "bin" / "python").exists():
        run([sys.executable, "-m", "venv", str(VENV)])
    run([str(VENV / "bin/python"), "-m", "pip", "install", "-q", "--require-hashes", "-r", str(HERE / "uv.txt")])
    uv = [str(VENV / "bin/uv"), "pip"]
    # uv has its own names for what pip reads from the environment.
    env = {**os.environ, "VIRTUAL_ENV": str(VENV), "UV_SYSTEM_CERTS": "1"}
    links = [word for folder in wheel_folders() for word in ("--find-links", str(folder))]
    files = [str(HERE / "uv.txt"), str(HERE / f"dev-{variant}.txt")]
    run([*uv, "sync", "-q", "--require-hashes", *(links if variant == "cpu" else []), *files], env=env)
    members = [word for m in MEMBERS for word in ("-e", str(REPOSITORY / m))]
    run([*uv, "install", "-q", "--no-deps", "--no-build-isolation", *members], env=env)
    stamp.write_text(wanted)


if __name__ == "__main__":
    main()
