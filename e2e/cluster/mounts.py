"""Finding and undoing mounts below a folder."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def below(folder: Path) -> list[Path]:
    """List the mount points at or below a folder, the latest first (the order in which to undo them)."""
    prefix = f"{folder}/"
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4])
        if place == str(folder) or place.startswith(prefix):
            found.append(Path(place))
    return found[::-1]


def undo(folder: Path) -> None:
    """Unmount everything at or below a folder; what is busy is detached, and goes when its last user has."""
    for _ in range(10):
        left = below(folder)
        if not left:
            return
        for place in left:
            plain = subprocess.run(["umount", str(place)], capture_output=True, check=False)
            if plain.returncode:
                subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)
