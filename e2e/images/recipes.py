"""What an image is made of: its Dockerfile, the files that go in, and the tag that follows from both. No side effects.

The tag is a hash of the content. So an image that is there already is the right one (pull policy IfNotPresent),
nothing unchanged is built or loaded again, and two versions can be in one cluster at the same time.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster.errors import ClusterError
from e2e.cluster.layout import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
NEVER = (".*", "__pycache__", "*.pyc", "*.egg-info")
"""What lies about in a working tree and is no part of any image."""


@dataclass(frozen=True)
class Recipe:
    """One image of the project."""

    name: str
    """Short name, such as `operator`."""
    dockerfile: Path
    context: Path
    """Build context: the repository's root."""

    @property
    def repository(self) -> str:
        """Full name without a tag. With the host, since containerd and buildah complete a short one differently."""
        return f"docker.io/{PROJECT}/{self.name}"

    def text(self) -> str:
        """Return the Dockerfile."""
        return self.dockerfile.read_text()

    def files(self) -> list[Path]:
        """List the files that go in, relative to the context.

        Raises:
            ClusterError: the Dockerfile copies something that does not exist.
        """
        found: set[Path] = set()
        for source in copied(self.text()):
            matches = list(self.context.glob(source.strip("/"))) if source.strip("/.") else [self.context]
            if not matches:
                raise ClusterError(f"{self.dockerfile} copies {source}, which is not in {self.context}")
            for match in matches:
                found.update(_walk(match, self.context))
        return sorted(found)

    def tag(self, arguments: Mapping[str, str]) -> str:
        """Return the tag for these build arguments (only those count that the Dockerfile declares)."""
        used = {name: arguments[name] for name in declared(self.text()) if name in arguments}
        digest = hashlib.sha256(json.dumps([self.text(), used], sort_keys=True).encode())
        for file in self.files():
            full = self.context / file
            executable = bool(full.stat().st_mode & 0o100)
            digest.update(f"\0{file}\0{executable}\0".encode() + hashlib.sha256(full.read_bytes()).digest())
        return digest.hexdigest()[:16]

    def stage(self, folder: Path) -> None:
        """Copy exactly the files that the tag speaks for into an empty folder, whatever the umask here was."""
        for file in self.files():
            source, target = self.context / file, folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
        for made in (p for p in folder.rglob("*") if p.is_dir()):
            made.chmod(0o755)


def find(root: Path = ROOT) -> dict[str, Recipe]:
    """Find the images: each top folder with a Dockerfile is one, named like it (less `-image`)."""
    recipes = (
        Recipe(file.parent.name.removesuffix("-image"), file, root) for file in sorted(root.glob("*/Dockerfile"))
    )
    return {recipe.name: recipe for recipe in recipes}


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction (in capitals) with the rest of its line, continuation lines joined."""
    pending = ""
    for line in dockerfile.splitlines():
        if line.strip().startswith("#") or (not line.strip() and not pending):
            continue
        pending += line.rstrip()
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        word, _, rest = pending.strip().partition(" ")
        pending = ""
        yield word.upper(), rest.strip()


def declared(dockerfile: str) -> list[str]:
    """List the build arguments that a Dockerfile declares."""
    return [rest.partition("=")[0].strip() for word, rest in instructions(dockerfile) if word == "ARG"]


def copied(dockerfile: str) -> list[str]:
    """List what a Dockerfile takes from its context: the sources of COPY and ADD, and of bind mounts."""
    sources: list[str] = []
    for word, rest in instructions(dockerfile):
        if word in ("COPY", "ADD"):
            flags, words = _flags(rest)
            if not any(flag.startswith("--from") for flag in flags):
                sources += words[:-1]
        elif word == "RUN":
            for flag in _flags(rest)[0]:
                options = dict(part.partition("=")[::2] for part in flag.removeprefix("--mount=").split(","))
                if flag.startswith("--mount=") and options.get("type") == "bind" and "from" not in options:
                    sources.append(options.get("source") or options.get("src") or ".")
    return sources


def _flags(rest: str) -> tuple[list[str], list[str]]:
    flags = []
    while rest.startswith("--"):
        flag, _, rest = rest.partition(" ")
        flags.append(flag)
        rest = rest.strip()
    return flags, json.loads(rest) if rest.startswith("[") else shlex.split(rest, posix=True) if flags else rest.split()


def _walk(place: Path, root: Path) -> Iterator[Path]:
    relative = place.relative_to(root)
    if relative.name and any(fnmatch.fnmatch(relative.name, pattern) for pattern in NEVER):
        return
    if place.is_dir():
        for child in place.iterdir():
            yield from _walk(child, root)
    elif place.is_file():
        yield relative
