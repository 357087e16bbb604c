"""Which torch build this machine takes: the CPU wheel where one is offered, else the CUDA build from PyPI.

The CUDA build runs on a CPU as well; it is only four times the size. `TORCH_VARIANT=cpu|cuda` decides it by hand.
"""

import os
import sys
from pathlib import Path

VARIANTS = ("cpu", "cuda")


def wheel_folders() -> list[Path]:
    """The local folders that `PIP_FIND_LINKS` names (it may also name pages, which are left to pip)."""
    return [Path(link) for link in os.environ.get("PIP_FIND_LINKS", "").split() if Path(link).is_dir()]


def torch_variant() -> str:
    """`cpu` or `cuda`.

    Raises:
        SystemExit: `TORCH_VARIANT` is neither.
    """
    asked = os.environ.get("TORCH_VARIANT")
    if asked:
        if asked not in VARIANTS:
            raise SystemExit(f"TORCH_VARIANT is {asked!r}; set it to one of: {', '.join(VARIANTS)}")
        return asked
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    offered = any(any(folder.glob(f"torch-*+cpu-{tag}-*.whl")) for folder in wheel_folders())
    return "cpu" if offered else "cuda"
