"""The condition `Reconciled`: False while a pass over the object cannot be made, and why.

The planner's status is applied whole by our field manager; where no pass comes as far as a plan (the object does not
parse, a permission is missing), this one condition is all that can be written. It has a field manager of its own, so
that it neither takes the rest of status away nor is taken away by it, and the planner never sees it.
"""

from datetime import datetime
from typing import Final

from flywheel_operator.kube.client import Api
from flywheel_operator.kube.errors import KubeError
from flywheel_operator.kube.resources import Raw
from flywheel_operator.model.names import FIELD_MANAGER

RECONCILED: Final = "Reconciled"
_MANAGER: Final = f"{FIELD_MANAGER}-faults"
_MESSAGE_LIMIT: Final = 4096


def fault_of(raw: Raw) -> Raw | None:
    """The condition, where the object carries it."""
    conditions = (raw.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c.get("type") == RECONCILED), None)


def without_fault(raw: Raw) -> Raw:
    """`raw` as it is without the condition."""
    if fault_of(raw) is None:
        return raw
    kept = [c for c in raw["status"]["conditions"] if c.get("type") != RECONCILED]
    return raw | {"status": raw["status"] | {"conditions": kept}}


async def report(api: Api, raw: Raw, error: KubeError, now: datetime) -> bool:
    """Writes the condition; False where it says the same already, so that no write wakes us to write again."""
    old = fault_of(raw) or {}
    generation = raw["metadata"].get("generation", 0)
    new = {
        "type": RECONCILED,
        "status": "False",
        "reason": error.reason,
        "message": str(error)[:_MESSAGE_LIMIT],
        "observedGeneration": generation,
        "lastTransitionTime": old.get("lastTransitionTime") or now.isoformat(),
    }
    if new == old:
        return False
    await api.apply(_body(raw) | {"status": {"conditions": [new]}}, status=True, field_manager=_MANAGER)
    return True


async def clear(api: Api, raw: Raw) -> None:
    """Takes the condition away, where the object carries it."""
    if fault_of(raw) is not None:
        await api.apply(_body(raw) | {"status": {}}, status=True, field_manager=_MANAGER)


def _body(raw: Raw) -> Raw:
    metadata = raw["metadata"]
    return {
        "apiVersion": raw["apiVersion"],
        "kind": raw["kind"],
        "metadata": {key: metadata[key] for key in ("name", "namespace")},
    }
