"""Compiles the hashed requirements files from the pyproject files (`make requirements`; asks the package index).

Two torch builds cannot stand in one hashed file, so there is one of each kind for cpu and for cuda. The cpu files
need the CPU wheel at hand: `PIP_FIND_LINKS` names its folder, or a page such as https://download.pytorch.org/whl/cpu.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
MEMBERS = (
    "flywheel-analysis", "flywheel-contract", "flywheel-gateway", "flywheel-operator", "flywheel-safety",
    "flywheel-trainer",
)  # fmt: skip
CPU_TORCH = "torch==2.13.0+cpu"


def compile_file(out: str, *source: str) -> None:
    """Resolves `source` (arguments of `uv pip compile`) into requirements/`out`; existing pins stay where they fit."""
    members = [word for m in MEMBERS for word in ("--no-emit-package", m)]
    options = ["--generate-hashes", "--python-version", "3.11", "--no-header", "--no-annotate", "-q"]
    uv = str(REPOSITORY / ".venv/bin/uv") if (REPOSITORY / ".venv/bin/uv").exists() else "uv"
    subprocess.check_call(
        [uv, "pip", "compile", *options, *members, *source, "-o", str(HERE / out)],
        cwd=REPOSITORY,
        env={**os.environ, "UV_SYSTEM_CERTS": "1"},
    )


def main() -> None:
    compile_file("uv.txt", "requirements/uv.in")
    compile_file("demo.txt", "--no-deps", "requirements/demo.in")
    compile_file("dev-cuda.txt", "pyproject.toml", "--group", "dev")
    # The others are constrained by the first, so that every environment runs the same versions.
    same = ("--constraint", "requirements/dev-cuda.txt")
    compile_file("analysis.txt", "analysis/pyproject.toml", "--extra", "postgres", *same)
    compile_file("gateway.txt", "gateway/pyproject.toml", *same)
    compile_file("operator.txt", "operator/pyproject.toml", *same)
    compile_file("trainer-cuda.txt", "trainer-image/pyproject.toml", *same)
    with tempfile.TemporaryDirectory() as folder:
        override = Path(folder, "override.txt")
        override.write_text(CPU_TORCH + "\n")
        versions = Path(folder, "versions.txt")
        lines = (HERE / "dev-cuda.txt").read_text().splitlines()
        pins = [line.split(" ")[0] for line in lines if "==" in line and not line.startswith(("torch==", " "))]
        versions.write_text("\n".join(pins) + "\n")
        links = [word for link in os.environ.get("PIP_FIND_LINKS", "").split() for word in ("--find-links", link)]
        cpu = ("--override", str(override), "--constraint", str(versions), *links)
        compile_file("dev-cpu.txt", "pyproject.toml", "--group", "dev", *cpu)
        compile_file("trainer-cpu.txt", "trainer-image/pyproject.toml", *cpu)


if __name__ == "__main__":
    sys.exit(main())
