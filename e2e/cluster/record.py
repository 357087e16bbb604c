"""What is written down about a cluster: its slot, its port, and each process with its start time."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from e2e.cluster.errors import CannotRunError
from e2e.cluster.layout import SLOTS, Addresses
from e2e.cluster.processes import Process
from e2e.cluster.toolchain import locked

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from e2e.cluster.layout import Layout


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


def slot_of(folder: Path) -> int | None:
    """Read a cluster's slot. It has a file of its own: certificates and etcd hold its addresses, whatever gets lost."""
    try:
        return int((folder / "slot").read_text())
    except (OSError, ValueError):
        record = Record.load(folder / "cluster.json")
        return None if record is None else record.slot


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


def addresses_for(layout: Layout) -> tuple[Record, Addresses]:
    """Return the record to go on with, and the cluster's addresses: its old ones, or else ones that no other has."""
    clusters = layout.link.parent
    choosing = clusters / ".slots.lock"
    with locked(choosing):  # two clusters may be brought up at once
        slot = slot_of(layout.root)
        if slot is None:
            slot = free_slot(taken for taken in map(slot_of, clusters.iterdir()) if taken is not None)
        scratch = layout.root / "slot.new"
        scratch.write_text(f"{slot}\n")
        scratch.rename(layout.root / "slot")
        choosing.unlink()
    addresses = Addresses(slot)
    record = Record.load(layout.record)
    return (Record(slot, addresses.api_port) if record is None else record), addresses
