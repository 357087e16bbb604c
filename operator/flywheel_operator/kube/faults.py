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
    """The condition, where it says that something is wrong."""
    condition = _condition(raw)
    return condition if condition is not None and condition.get("status") == "False" else None


def without_fault(raw: Raw) -> Raw:
    """`raw` as it is without the condition."""
    if _condition(raw) is None:
        return raw
    kept = [c for c in raw["status"]["conditions"] if c.get("type") != RECONCILED]
    return raw | {"status": raw["status"] | {"conditions": kept}}


async def report(api: Api, raw: Raw, error: KubeError, now: datetime) -> bool:
    """Writes the condition; False where it says the same already, so that no write wakes us to write again."""
    return await _write(api, raw, "False", error.reason, str(error)[:_MESSAGE_LIMIT], now)


async def clear(api: Api, raw: Raw, now: datetime) -> None:
    """Says that all is well again, where the condition says otherwise."""
    if fault_of(raw) is not None:
        await _write(api, raw, "True", RECONCILED, "The last pass succeeded.", now)


def _condition(raw: Raw) -> Raw | None:
    conditions = (raw.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c.get("type") == RECONCILED), None)


async def _write(api: Api, raw: Raw, status: str, reason: str, message: str, now: datetime) -> bool:
    old, metadata = _condition(raw) or {}, raw["metadata"]
    same = old.get("status") == status
    new = {
        "type": RECONCILED,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": metadata.get("generation", 0),
        "lastTransitionTime": old["lastTransitionTime"] if same else now.isoformat(),
    }
    if new == old:
        return False
    body = {
        "apiVersion": raw["apiVersion"],
        "kind": raw["kind"],
        "metadata": {key: metadata[key] for key in ("name", "namespace")},
        "status": {"conditions": [new]},
    }
    await api.apply(body, status=True, field_manager=_MANAGER)
    return True
