"""`Plan`: what a pass wants done. Data only; the kube room carries it out, in the order of the fields."""

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from flywheel_operator.model.production import ProductionRecord

Manifest = dict[str, Any]
StatusT = TypeVar("StatusT")


@dataclass(frozen=True, slots=True)
class Ref:
    """An object to delete."""

    api_version: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event about the object, deduplicated by the recorder."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class SwitchProduction:
    """Point the lineage's Service elsewhere, by compare-and-swap.

    `service` is the whole object, its annotation carrying `record`. `resource_version` is the version that the decision
    was taken on; None means that the Service must not exist yet. Where either does not hold, nothing is written and the
    pass starts anew.
    """

    service: Manifest
    record: ProductionRecord
    resource_version: str | None


@dataclass(frozen=True, slots=True)
class Plan(Generic[StatusT]):
    """One pass's intentions, carried out in this order; the first error ends the pass and the next one looks again.

    A pass that is cut off anywhere leaves a state from which the next one goes on: names are deterministic, `create`
    skips what exists, and status is written before anything that it has taken note of is deleted.
    """

    status: StatusT
    add_finalizer: str | None = None
    create: tuple[Manifest, ...] = ()
    """Created where absent, never changed (immutable ConfigMaps). Jobs come after the switch: a quota or a policy may
    refuse them for long, and nothing else is to wait for that."""
    apply: tuple[Manifest, ...] = ()
    """Applied server-side with our field manager (Deployments)."""
    switch: SwitchProduction | None = None
    # Here the Jobs are created, then the status is written, if it changed.
    delete: tuple[Ref, ...] = ()
    """Deleted; absent is fine."""
    remove_finalizer: str | None = None
    events: tuple[Event, ...] = ()
    wake: tuple[str, ...] = ()
    """Names of Generations in the namespace that should look again."""
    requeue_after: float | None = None
    """Seconds until the next look, where nothing is watched that would cause one."""
