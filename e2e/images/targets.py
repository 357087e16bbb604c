"""Where the demo and the tests run: our own cluster, or one that is handed over. One interface for both."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from e2e.cluster import CannotRunError, Cluster, ClusterError, registry, toolchain
from e2e.cluster.layout import cache_home, state_home
from e2e.images import builders, recipes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from e2e.cluster.toolchain import Say


class Target(Protocol):
    """A cluster to work on. After `up`, everything else may be used."""

    @property
    def kubeconfig(self) -> Path:
        """A file with this cluster as its current context: all that kubectl, helm and the tests need."""
        ...

    @property
    def context(self) -> str:
        """Name of that context."""
        ...

    @property
    def kubectl(self) -> Path:
        """A kubectl that fits the cluster."""
        ...

    @property
    def helm(self) -> Path:
        """Helm 3."""
        ...

    def up(self) -> None:
        """Make it usable; may be repeated."""
        ...

    def images(self, names: Iterable[str]) -> dict[str, str]:
        """Build images of the project and bring them into the cluster.

        Returns:
            For each name (such as `operator`) what a pod spec writes as `image:`.
        """
        ...

    def down(self) -> None:
        """Leave nothing of ours behind on this machine. A cluster that was handed over is not touched."""
        ...


def choose(name: str, environment: Mapping[str, str], say: Say = toolchain.say_to_stderr) -> Target:
    """Return the cluster that the environment asks for: `CONTEXT`, or else our own of that name."""
    if context := environment.get("CONTEXT"):
        return Foreign(context, environment.get("REGISTRY", ""), say)
    return Local(Cluster(name, say), say)


class Local:
    """Our own cluster on this machine."""

    def __init__(self, cluster: Cluster, say: Say) -> None:
        """Wrap a cluster that may be down."""
        self.cluster = cluster
        self._say = say

    @property
    def kubeconfig(self) -> Path:
        """The cluster's kubeconfig."""
        return self.cluster.kubeconfig

    @property
    def context(self) -> str:
        """The cluster's name."""
        return self.cluster.name

    @property
    def kubectl(self) -> Path:
        """Built together with the servers."""
        return self.cluster.tools.kubectl

    @property
    def helm(self) -> Path:
        """Built once, as the servers were."""
        return self.cluster.tools.helm

    def up(self) -> None:
        """Bring the cluster up."""
        self.cluster.up()

    def images(self, names: Iterable[str]) -> dict[str, str]:
        """Build, then load what the cluster does not have."""
        builder = builders.Buildah(self._say)
        images = {name: builder.build(_recipe(name)) for name in names}
        for image in images.values():
            load(self.cluster, image, builder, self._say)
        return images

    def down(self) -> None:
        """Take the cluster down."""
        self.cluster.down()


def load(cluster: Cluster, image: str, builder: builders.Buildah, say: Say) -> None:
    """Load a built image into our own cluster, under its own name: only the layers that it lacks."""
    if image in cluster.images():
        return
    say(f"loading {image}")
    cluster.run_registry()
    there = f"{registry.ADDRESS}/{image.partition('/')[2]}"
    builder.push(image, there, inside=cluster.layout.namespace)
    cluster.pull(there, image)


class Foreign:
    """A cluster of the user's kubeconfig: kind, k3d, a real one."""

    def __init__(self, context: str, registry_prefix: str, say: Say) -> None:
        """Name a context, and where its nodes pull images from (`host:port/prefix`; not needed for kind)."""
        self.context = context
        self.registry = registry_prefix.strip("/")
        self._say = say

    @property
    def kubeconfig(self) -> Path:
        """A copy of the one context, so that no tool has to be told which it is."""
        return state_home(os.environ) / "contexts" / f"{self.context.replace('/', '_')}.kubeconfig"

    @property
    def kubectl(self) -> Path:
        """The user's."""
        return _program("kubectl")

    @property
    def helm(self) -> Path:
        """The user's."""
        return _program("helm")

    @property
    def kind(self) -> str | None:
        """Name of the kind cluster, where it is one."""
        return self.context.removeprefix("kind-") if self.context.startswith("kind-") else None

    def up(self) -> None:
        """Check that the context is there and that images can reach it.

        Raises:
            CannotRunError: there is no such context, or no way to bring images into it.
        """
        if self.kind is None and not self.registry:
            raise CannotRunError(
                f"Context {self.context} is not kind's: set REGISTRY=host:port/prefix (its nodes pull images there)."
            )
        if self.kind is not None and not self.registry and shutil.which("kind") is None:
            raise CannotRunError(f"Context {self.context} is kind's, but the program kind is not on PATH.")
        view = ["config", "view", "--raw", "--minify", "--flatten", f"--context={self.context}"]
        done = subprocess.run([self.kubectl, *view], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRunError(f"Your kubeconfig has no usable context {self.context}: {done.stderr.strip()}")
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(done.stdout)

    def images(self, names: Iterable[str]) -> dict[str, str]:
        """Build, then push to the registry, or load into kind's nodes."""
        builder = builders.choose(self._say)
        return {name: self._deliver(builder, builder.build(_recipe(name))) for name in names}

    def down(self) -> None:
        """Forget the copied credentials."""
        self.kubeconfig.unlink(missing_ok=True)

    def _deliver(self, builder: builders.Builder, image: str) -> str:
        if self.registry:
            destination = f"{self.registry}/{image.rpartition('/')[2]}"
            self._say(f"pushing {destination}")
            builder.push(image, destination)
            return destination
        self._say(f"loading {image} into kind")
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "image.tar"
            builder.save(image, file)
            command = ["kind", "load", "image-archive", str(file), "--name", str(self.kind)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)} failed: {done.stderr.strip()[-400:]}")
        return image


def _recipe(name: str) -> recipes.Recipe:
    found = recipes.find()
    if name not in found:
        raise ClusterError(f"there is no image {name}; there are: {', '.join(found) or 'none'}")
    return found[name]


def _program(name: str) -> Path:
    """Return the one that was built for our own cluster, if it was, else the user's.

    Raises:
        CannotRunError: there is none.
    """
    built = sorted((cache_home(os.environ) / "bin").glob(f"*/{name}"))
    if on_path := shutil.which(name):
        built.append(Path(on_path))
    if not built:
        raise CannotRunError(f"The program {name} is not on PATH.")
    return built[0]
