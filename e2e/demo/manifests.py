"""The demo's manifests: the YAML files beside this module, and the one thing that is decided while it runs."""

from pathlib import Path
from typing import Any

import yaml

from e2e.demo.objects import Turn
from e2e.kubectl import Manifest
from flywheel_operator.model.status import GenerationStatus

FOLDER = Path(__file__).parent
REWARD_MODEL = "reward-model.yaml"
GENERATIONS = ("generation-1.yaml", "generation-2.yaml")


def load(file: str) -> Manifest:
    """A manifest as it stands in its file."""
    found: Manifest = yaml.safe_load((FOLDER / file).read_text(encoding="utf-8"))
    return found


def name_of(file: str) -> str:
    """The object's name."""
    return str(load(file)["metadata"]["name"])


def with_parent(manifest: Manifest, earlier: Turn | None) -> Manifest:
    """A Generation trained from `earlier` if that was promoted, for then it is what serves; else as the file says."""
    if earlier is None or not earlier.promoted:
        return manifest
    return {**manifest, "spec": {**manifest["spec"], "parent": {"generation": earlier.name}}}


def parent_of(turn: Turn) -> str:
    """In a word, what a Generation was trained from."""
    status = turn.status
    if not isinstance(status, GenerationStatus) or status.resolved is None:
        return ""
    parent: Any = status.resolved.parent
    return parent.generation or parent.model or ""
