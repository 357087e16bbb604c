"""Brings up the world once for all cluster tests, and answers questions about what is in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e import tiny_data, tiny_model
from e2e.images.targets import Target
from e2e.installation import IMAGES, Loader, claim_manifest, install, namespace_manifest, remove_namespace
from e2e.kubectl import Kubectl, Manifest
from e2e.world.manifests import CLAIM

TERMINAL = ("Completed", "Failed", "Aborted")


@dataclass(frozen=True)
class World:
    """An operator that watches one namespace, and a claim with model and data."""

    target: Target
    kubectl: Kubectl
    loader: Loader
    images: dict[str, str]

    def status(self, name: str) -> Manifest:
        """The status of a Generation."""
        found = self.kubectl.get("gen", name)
        return {} if found is None else dict(found.get("status", {}))

    def ended(self, name: str, seconds: float = 420) -> Manifest:
        """Waits until a Generation is in a terminal phase and answers its status."""
        found = self.kubectl.wait("gen", name, lambda o: o.get("status", {}).get("phase") in TERMINAL, seconds)
        return dict(found["status"])

    def phase(self, name: str, wanted: str, seconds: float = 300) -> Manifest:
        """Waits until a Generation is in a phase and answers its status."""
        found = self.kubectl.wait("gen", name, lambda o: o.get("status", {}).get("phase") == wanted, seconds)
        return dict(found["status"])

    def serves(self, name: str, seconds: float = 120) -> Manifest:
        """Waits until a Generation is in production."""
        found = self.kubectl.wait("gen", name, lambda o: serving(o.get("status", {})) == "Production", seconds)
        return dict(found["status"])

    def events(self, name: str) -> list[str]:
        """Reasons and messages of the Events about an object."""
        return [
            f"{e['reason']}: {e.get('message') or e.get('note')}"
            for e in self.kubectl.list("events")
            if e["involvedObject"]["name"] == name
        ]

    def restart_operator(self) -> None:
        """Kills the operator's pod without grace, as a node failure does."""
        self.kubectl("delete", "pod", "-l", "app.kubernetes.io/name=flywheel", "--grace-period=0", "--force")


def serving(status: Manifest) -> str | None:
    """The reason of the condition Serving."""
    return next((c["reason"] for c in status.get("conditions", []) if c["type"] == "Serving"), None)


def stage(status: Manifest, name: str) -> Manifest:
    """One stage of a status."""
    return next((s for s in status.get("stages", []) if s["name"] == name), {})


def message(status: Manifest, condition: str) -> str:
    """What a condition of a status says; empty where it is not there."""
    return next((c["message"] for c in status.get("conditions", []) if c["type"] == condition), "")


def bring_up(target: Target, namespace: str, scratch: Path, **values: Any) -> World:  # noqa: ANN401 -- Helm values
    """Cluster, images, namespace, claim with model and data, operator."""
    target.up()
    images = target.images(IMAGES)
    kubectl = Kubectl(target.kubectl, target.kubeconfig, namespace)
    # A run that was killed took nothing down: its objects would be taken for this run's.
    remove_namespace(kubectl, namespace)
    kubectl.apply(namespace_manifest(namespace))
    kubectl.apply(claim_manifest(CLAIM, "4Gi"))
    loader = Loader(kubectl, CLAIM, images["trainer"])
    loader.up()
    tiny_model.build(scratch / "model")
    for origin in tiny_data.ORIGINS:
        seed = tiny_data.ORIGINS.index(origin)
        rows = tiny_data.traffic(240, seed, origin, users=60)
        tiny_data.write(scratch / "data" / f"traffic-{origin.lower()}.jsonl", rows)
        pairs = tiny_data.preferences(240, seed, origin, users=60)
        tiny_data.write(scratch / "data" / f"preferences-{origin.lower()}.jsonl", pairs)
    for folder in ("model", "data"):
        loader.put(scratch / folder, folder)
    install(target, namespace, images, **values)
    return World(target, kubectl, loader, images)
