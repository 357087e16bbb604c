"""Whom an event concerns. Pure: raw objects in, keys out."""

from dataclasses import dataclass
from typing import Any

from flywheel_operator.kube.resources import OWN, REWARD_MODEL, Key, Raw
from flywheel_operator.model.names import LABEL_LINEAGE, LABEL_OWNER, LABEL_OWNER_KIND


@dataclass(frozen=True, slots=True)
class _Known:
    """What we remember of one of our objects: whom it refers to, and what others look at in it."""

    lineage: str
    parent: str
    reward_models: frozenset[str]
    asked: tuple[Any, ...]
    """What people and other controllers write: all but the status."""
    fingerprint: tuple[Any, ...]


class Router:
    """Remembers how our objects refer to each other: one that waits for another is looked at when that changes."""

    def __init__(self) -> None:
        self._known: dict[Key, _Known] = {}

    def own(self, raw: Raw, *, deleted: bool = False) -> set[Key]:
        """Whom an event about one of our objects concerns: itself and, where it looks different to them, those that
        refer to it or share its lineage.

        A status that we wrote is no news to the object itself: the pass that wrote it said when to look again."""
        key = _key(raw)
        before = self._known.get(key)
        after = None if deleted else _known(raw)
        if after is None:
            self._known.pop(key, None)
        else:
            self._known[key] = after
        unasked = before is not None and after is not None and before.asked == after.asked
        concerned: set[Key] = set() if unasked else {key}
        if before is None or after is None or before.fingerprint != after.fingerprint:
            for known in (before, after):
                concerned |= self._dependents(key, known) if known else set()
        return concerned

    def child(self, raw: Raw) -> set[Key]:
        """Whom an event about something that we made concerns: its owner, or the whole lineage."""
        metadata = raw["metadata"]
        labels = metadata.get("labels") or {}
        kind, owner = labels.get(LABEL_OWNER_KIND), labels.get(LABEL_OWNER)
        if kind in OWN and owner:
            return {Key(kind, metadata["namespace"], owner)}
        if lineage := labels.get(LABEL_LINEAGE):
            return self._lineage(metadata["namespace"], lineage)
        return set()

    def lineage(self, key: Key) -> str:
        """The lineage of a Generation that we have seen; empty for what has none."""
        known = self._known.get(key)
        return known.lineage if known else ""

    def keep_only(self, keys: set[Key]) -> set[Key]:
        """Forgets all others, and says which those were."""
        gone = set(self._known) - keys
        for key in gone:
            del self._known[key]
        return gone

    def _dependents(self, key: Key, known: _Known) -> set[Key]:
        same = {k: v for k, v in self._known.items() if k.namespace == key.namespace and v.lineage}
        if key.kind == REWARD_MODEL.kind:
            return {k for k, v in same.items() if key.name in v.reward_models}
        return {k for k, v in same.items() if v.parent == key.name} | self._lineage(key.namespace, known.lineage)

    def _lineage(self, namespace: str, lineage: str) -> set[Key]:
        return {k for k, v in self._known.items() if k.namespace == namespace and v.lineage and v.lineage == lineage}


def _key(raw: Raw) -> Key:
    return Key(raw["kind"], raw["metadata"]["namespace"], raw["metadata"]["name"])


def _reward_references(spec: Raw) -> list[Raw]:
    judge = (spec.get("evaluation") or {}).get("pairwise")
    return [*(spec.get("rewards") or ()), *([judge] if judge else ())]


def _known(raw: Raw) -> _Known:
    spec, status, metadata = raw.get("spec") or {}, raw.get("status") or {}, raw["metadata"]
    serving: Raw = next((c for c in status.get("conditions") or () if c.get("type") == "Serving"), {})
    return _Known(
        lineage=spec.get("lineage", ""),
        parent=(spec.get("parent") or {}).get("generation") or "",
        reward_models=frozenset(r.get("rewardModel", "") for r in _reward_references(spec)),
        asked=(
            metadata.get("uid"),
            metadata.get("generation"),
            metadata.get("deletionTimestamp"),
            tuple(sorted((metadata.get("annotations") or {}).items())),
            tuple(metadata.get("finalizers") or ()),
        ),
        fingerprint=(
            metadata.get("uid"),
            metadata.get("generation"),
            bool(metadata.get("deletionTimestamp")),
            status.get("phase"),
            (status.get("verdict") or {}).get("result"),
            (status.get("candidate") or status.get("model") or {}).get("digest"),
            serving.get("status"),
            serving.get("reason"),
        ),
    )
