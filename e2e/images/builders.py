"""Two ways to build an image and to hand it on: buildah (as root on Debian), or an existing Docker."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from e2e.cluster import debian
from e2e.cluster.errors import CannotRunError, ClusterError
from e2e.cluster.layout import cache_home
from e2e.cluster.toolchain import elapsed, locked
from e2e.images import base, surroundings
from requirements.variants import torch_variant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from e2e.images.recipes import Recipe

    Say = Callable[[str], None]

_RUNC_BUSY: Final = "sealing memfd copy: Device or resource busy"


class Builder(Protocol):
    """Builds images and hands them on."""

    def build(self, recipe: Recipe) -> str:
        """Build an image unless it is there, and return its full name with the tag."""
        ...

    def save(self, image: str, target: Path) -> None:
        """Write a built image as a docker-archive."""
        ...

    def push(self, image: str, destination: str) -> None:
        """Push a built image to a registry under that full name."""
        ...


def choose(say: Say) -> Builder:
    """Return the builder that works here.

    Raises:
        CannotRunError: none does.
    """
    if debian.refusal() is None:
        return Buildah(say)
    if shutil.which("docker"):
        return Docker(say)
    raise CannotRunError("Building the images needs Docker, or root on Debian 12 (then buildah does it).")


class Buildah:
    """Builds with Debian's buildah in a storage of our own, so that the machine's is left alone."""

    def __init__(self, say: Say) -> None:
        """Prepare nothing yet."""
        self._say = say
        self.home = cache_home(os.environ) / "images"

    def build(self, recipe: Recipe) -> str:
        """Build an image unless it is there; layers are kept, so only what changed is run again.

        Raises:
            ClusterError: the build failed; the message ends with buildah's last lines.
        """
        debian.require(debian.IMAGES, self._say)
        with locked(self.home / ".lock"):
            base_image = os.environ.get("BASE_IMAGE") or self.base()
            arguments = {"BASE_IMAGE": base_image, "TORCH_VARIANT": torch_variant()}
            image = f"{recipe.repository}:{recipe.tag(arguments)}"
            if not self._has(image):
                self._build(recipe, image, arguments)
        return image

    def save(self, image: str, target: Path) -> None:
        """Write a built image as a docker-archive (all layers, uncompressed)."""
        target.unlink(missing_ok=True)
        self._run("push", "--quiet", image, f"docker-archive:{target}:{image}")

    def push(self, image: str, destination: str, *, inside: Path | None = None) -> None:
        """Push to a registry: only layers that it lacks. `inside` names a network namespace to do it in."""
        host = destination.partition("/")[0]
        loopback = host.startswith(("127.", "localhost", "[::1]"))
        verify = ["--tls-verify=false"] if loopback else []
        # zstd: a quarter quicker than gzip, at both ends (docs/cluster.md has the figures).
        format_ = ["--format=oci", "--compression-format=zstd"] if inside else []
        self._run("push", "--quiet", *verify, *format_, image, f"docker://{destination}", inside=inside)

    def images(self) -> list[str]:
        """List what was built."""
        names = self._run("images", "--format", "{{.Name}}:{{.Tag}}").splitlines()
        return sorted(name for name in names if "<none>" not in name)

    def _has(self, image: str) -> bool:
        return bool(self._run("images", "--quiet", "--filter", f"reference={image}").strip())

    def base(self) -> str:
        """Return the local base image, made if need be."""
        image = f"localhost/characterflywheel/base:{base.digest()}"
        if not self._has(image):
            self._say("making the base image from Debian packages (once; about a minute)")
            with tempfile.TemporaryDirectory(dir=self.home) as scratch:
                base.make(Path(scratch) / "base.tar")
                (Path(scratch) / "Dockerfile").write_text('FROM scratch\nADD base.tar /\nCMD ["python3"]\n')
                self._run("bud", "--quiet", "--isolation=chroot", "-t", image, scratch)
        return image

    def _build(self, recipe: Recipe, image: str, arguments: dict[str, str]) -> None:
        self._say(f"building {image}")
        began = time.monotonic()
        self._run("rm", "--all")  # what a build that was killed left behind; we hold the lock
        with tempfile.TemporaryDirectory(dir=self.home) as scratch:
            context = Path(scratch) / "context"
            context.mkdir()
            recipe.stage(context)
            options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
            options += [f"--volume={volume}" for volume in surroundings.mounts(Path(scratch), os.environ)]
            command = ["bud", "--isolation=chroot", "--layers", "--pull-never", *options]
            if "/" in arguments["BASE_IMAGE"] and not arguments["BASE_IMAGE"].startswith("localhost/"):
                command.remove("--pull-never")
            self._run(*command, "--file", str(recipe.dockerfile), "-t", image, str(context), show=True)
        self._say(f"built {image} in {elapsed(time.monotonic() - began)}")

    def _run(self, *arguments: str, inside: Path | None = None, show: bool = False) -> str:
        self.home.mkdir(parents=True, exist_ok=True)
        storage = [
            "--root",
            str(self.home / "storage"),
            "--runroot",
            str(self.home / "run"),
            "--storage-driver=overlay",
        ]
        enter = ["nsenter", f"--net={inside}", "--"] if inside else []
        command = [*enter, "buildah", *storage, *arguments]
        return _watched(command, self._say) if show else _checked(command)


class Docker:
    """Builds with the Docker that is there; the base image is pulled as the Dockerfile says."""

    def __init__(self, say: Say) -> None:
        """Prepare nothing yet."""
        self._say = say

    def build(self, recipe: Recipe) -> str:
        """Build an image unless it is there."""
        arguments = {"TORCH_VARIANT": os.environ.get("TORCH_VARIANT", "cuda")}
        if chosen := os.environ.get("BASE_IMAGE"):
            arguments["BASE_IMAGE"] = chosen
        image = f"{recipe.repository}:{recipe.tag(arguments)}"
        if _checked(["docker", "images", "--quiet", image]).strip():
            return image
        self._say(f"building {image}")
        with tempfile.TemporaryDirectory() as scratch:
            recipe.stage(Path(scratch))
            options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
            command = ["docker", "build", *options, "--file", str(recipe.dockerfile), "-t", image, scratch]
            _watched(command, self._say)
        return image

    def save(self, image: str, target: Path) -> None:
        """Write a built image as a docker-archive."""
        _checked(["docker", "save", "--output", str(target), image])

    def push(self, image: str, destination: str) -> None:
        """Push to a registry."""
        _checked(["docker", "tag", image, destination])
        _checked(["docker", "push", "--quiet", destination])


def _checked(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} failed: {done.stderr.strip()[-800:]}")
    return done.stdout


def _watched(command: Sequence[str], say: Say) -> str:
    """Run a long build, once more where runc could not start a step: it may when several builds run at once."""
    try:
        return _followed(command, say)
    except ClusterError as error:
        if _RUNC_BUSY not in str(error):
            raise
        say("  runc was busy; once more")
        return _followed(command, say)


def _followed(command: Sequence[str], say: Say) -> str:
    """Run a build: say each step as it begins, keep the rest for the case that it fails."""
    lines: list[str] = []
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as build:
        assert build.stdout is not None
        for line in build.stdout:
            lines.append(line.rstrip())
            if line.startswith("STEP "):
                say(f"  {line.strip()[:140]}")
    if build.returncode:
        raise ClusterError("the build failed:\n" + "\n".join(lines[-40:]))
    return "\n".join(lines)
