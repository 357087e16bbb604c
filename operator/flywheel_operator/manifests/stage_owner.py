"""Whose stage it is, for everything that is made for a stage."""

from dataclasses import dataclass

from flywheel_operator.model.objects import Metadata
from flywheel_operator.model.runtime import RaySpec, Runtime


@dataclass(frozen=True, slots=True)
class StageOwner:
    """Whose stage it is and how its pods run."""

    kind: str
    metadata: Metadata
    lineage: str | None
    runtime: Runtime
    image: str
    pull_secrets: tuple[str, ...] = ()
    ray: RaySpec | None = None
    """The Ray cluster that curation shall have."""
