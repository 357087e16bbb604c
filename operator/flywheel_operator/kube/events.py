"""Kubernetes Events about our objects, deduplicated: the same thing said again is a count, not another Event."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from flywheel_operator.kube.client import Api
from flywheel_operator.kube.errors import AlreadyExistsError, KubeError, NotFoundError
from flywheel_operator.kube.resources import EVENT, Raw
from flywheel_operator.model.names import FIELD_MANAGER
from flywheel_operator.plan.actions import Event

REPEAT_SECONDS: Final = 60.0
"""The same Event is written again at most this often; what came in between is counted."""
REMEMBERED: Final = 4096
_NOTE_LIMIT: Final = 1024
_REASON_LIMIT: Final = 128
_NAME_LIMIT: Final = 200

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Said:
    """How often something was said, and when that was last written."""

    count: int
    written: float


class Recorder:
    """Writes Events. Their names follow from what they say, so they are found again after a restart."""

    def __init__(self, api: Api, instance: str, clock: Callable[[], float]) -> None:
        self._api = api
        self._instance = instance
        self._clock = clock
        self._said: OrderedDict[str, _Said] = OrderedDict()

    async def record(self, raw: Raw, event: Event, now: datetime) -> None:
        """Says `event` about the object `raw`. An Event that cannot be written is logged: no pass fails for it."""
        name = _name(raw, event)
        said = self._said.get(f"{raw['metadata']['namespace']}/{name}")
        if said is not None:
            said.count += 1
            if self._clock() - said.written < REPEAT_SECONDS:
                return
        try:
            await self._write(raw, event, now, name, said)
        except KubeError as error:
            _log.warning("event %s was not written: %s", event.reason, error)

    async def _write(self, raw: Raw, event: Event, now: datetime, name: str, said: _Said | None) -> None:
        namespace = raw["metadata"]["namespace"]
        if said is not None:
            try:
                await self._count(namespace, name, said.count, now)
                said.written = self._clock()
                return
            except NotFoundError:  # the API server forgets Events after a while
                pass
        try:
            await self._api.create(_manifest(raw, event, now, name, self._instance))
            self._remember(namespace, name, 1)
        except AlreadyExistsError:
            # An empty patch answers with the Event as it is, and takes no permission to read Events.
            known = await self._api.merge_patch(EVENT, namespace, name, {})
            count = int((known.get("series") or {}).get("count", 1)) + 1
            await self._count(namespace, name, count, now)
            self._remember(namespace, name, count)

    async def _count(self, namespace: str, name: str, count: int, now: datetime) -> None:
        series = {"count": max(2, count), "lastObservedTime": _micro_time(now)}
        await self._api.merge_patch(EVENT, namespace, name, {"series": series})

    def _remember(self, namespace: str, name: str, count: int) -> None:
        self._said[f"{namespace}/{name}"] = _Said(count, self._clock())
        while len(self._said) > REMEMBERED:
            self._said.popitem(last=False)


def _name(raw: Raw, event: Event) -> str:
    said = "\0".join((raw["metadata"]["uid"], event.type, event.reason, event.message))
    return f"{raw['metadata']['name'][:_NAME_LIMIT]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def _manifest(raw: Raw, event: Event, now: datetime, name: str, instance: str) -> Raw:
    metadata = raw["metadata"]
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "eventTime": _micro_time(now),
        "type": event.type,
        "reason": event.reason[:_REASON_LIMIT],
        "note": _cut(event.message),
        "action": "Reconcile",
        "reportingController": FIELD_MANAGER,
        "reportingInstance": instance[:_REASON_LIMIT],
        "regarding": {
            "apiVersion": raw["apiVersion"],
            "kind": raw["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
    }


def _cut(note: str) -> str:
    """The limit counts bytes."""
    if len(note.encode()) <= _NOTE_LIMIT:
        return note
    return note.encode()[: _NOTE_LIMIT - 3].decode(errors="ignore") + "…"


def _micro_time(now: datetime) -> str:
    return now.isoformat(timespec="microseconds")
