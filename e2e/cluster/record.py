"""What is written down about a cluster: its slot, its port, and each process with its start time."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from e2e.cluster.errors import CannotRunError
from e2e.cluster.layout import SLOTS, Addresses, state_home
from e2e.cluster.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


@dataclass
class Record:
    """The state of one cluster, as far as files tell."""

    slot: int
    api_port: int
    processes: dict[str, Process] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        """Write it in one step: a crash leaves the old one or the new one."""
        scratch = file.with_suffix(".new")
        scratch.write_text(json.dumps(asdict(self), indent=1))
        scratch.rename(file)

    @classmethod
    def load(cls, file: Path) -> Record | None:
        """Read it; None when there is none, or none that can be read (its processes are found by their cgroup)."""
        try:
            content = json.loads(file.read_text())
            processes = {name: Process(**fields) for name, fields in content["processes"].items()}
            return cls(int(content["slot"]), int(content["api_port"]), processes)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def free_slot(taken: Iterable[int]) -> int:
    """Return the lowest slot that no other cluster has.

    Raises:
        CannotRunError: all are taken.
    """
    used = set(taken)
    for slot in range(SLOTS):
        if slot not in used:
            return slot
    raise CannotRunError(f"{SLOTS} clusters exist already: take one down first.")


def taken_slots(environment: Mapping[str, str], but: str) -> set[int]:
    """List the slots of all clusters but one."""
    folders = (state_home(environment) / "clusters").glob("*/cluster.json")
    records = (Record.load(file) for file in folders if file.parent.name != but)
    return {record.slot for record in records if record is not None}


def free_port(wanted: int) -> int:
    """Return the wanted port of 127.0.0.1 if it can be bound, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise CannotRunError("no port of 127.0.0.1 is free.")


def addresses_for(name: str, record: Record | None) -> tuple[Record, Addresses]:
    """Return the record to go on with, and its addresses: the old ones where there are any."""
    if record is None:
        slot = free_slot(taken_slots(os.environ, name))
        record = Record(slot, Addresses(slot).api_port)
    return record, Addresses(record.slot)
