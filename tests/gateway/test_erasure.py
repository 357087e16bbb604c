"""Erasure and retention: whose rows go, what stays, and the receipt."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flywheel_contract.online import ErasureReceipt, LogTable
from flywheel_gateway.erasure import erase, expire
from flywheel_gateway.segments import Segment, segment_files
from flywheel_gateway.stores import BucketStore, FolderStore
from tests.gateway.lab import KEYS, Lab, routed
from tests.gateway.test_log import Bucket

DAY = "2026-03-02"
NOW = datetime(2026, 3, 9, tzinfo=UTC)
ANNA, BEN = KEYS.hash_user("anna"), KEYS.hash_user("ben")


def fill(root: Path, table: LogTable, name: str, *rows: dict[str, Any] | bytes) -> Segment:
    """An open segment with these rows."""
    segment = Segment(root, table, DAY, name)
    for row in rows:
        segment.append(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n", 1)
    return segment


def log(root: Path) -> None:
    """A small log of two users."""
    for user in (ANNA, BEN):
        fill(root, LogTable.EXPOSURES, f"w-{user[:4]}", {"user_id": user}).finish()
    fill(root, LogTable.EVENTS, "w-0", {"user_id": ANNA}, {"user_id": BEN}, {"user_id": ANNA}).finish()
    # Ben's text names Anna's hash: it is still his.
    fill(root, LogTable.TURNS, "w-0", {"user": BEN, "messages": [ANNA]}, {"user": ANNA}).finish()


def everything(root: Path) -> bytes:
    """All rows."""
    return b"".join(path.read_bytes() for path in segment_files(root))


def test_all_rows_of_a_user_go_and_a_receipt_stays(tmp_path: Path) -> None:
    log(tmp_path)
    receipt, name = erase(FolderStore(tmp_path), ANNA, NOW)
    assert receipt.rows == {"exposures": 1, "events": 2, "turns": 1}
    assert len(receipt.files) == 3
    rows = [json.loads(line) for line in everything(tmp_path).splitlines()]
    assert [row.get("user_id") or row.get("user") for row in rows] == [BEN, BEN, BEN]
    assert rows[2]["messages"] == [ANNA]
    assert ErasureReceipt.model_validate_json((tmp_path / name).read_bytes()) == receipt
    assert not list(tmp_path.rglob("*.tmp"))

    again, other = erase(FolderStore(tmp_path), ANNA, NOW)
    assert (again.rows, again.files) == ({"exposures": 0, "events": 0, "turns": 0}, [])
    assert other != name


def test_a_line_that_cannot_be_read_and_names_the_user_goes(tmp_path: Path) -> None:
    fill(tmp_path, LogTable.EVENTS, "w-0", b'{"user_id": "' + ANNA.encode() + b"\n", b"half\n").finish()
    receipt, _ = erase(FolderStore(tmp_path), ANNA, NOW)
    assert receipt.unreadable_lines == 1
    assert everything(tmp_path) == b"half\n"


def test_an_open_segment_is_waited_for(tmp_path: Path) -> None:
    segment = fill(tmp_path, LogTable.EVENTS, "w-0", {"user_id": ANNA}, {"user_id": BEN})
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            segment.finish()

    receipt, _ = erase(FolderStore(tmp_path), ANNA, NOW, pause=pause)
    assert len(waited) == 2
    assert (receipt.rows["events"], receipt.open_segments) == (1, [])
    assert ANNA.encode() not in everything(tmp_path)


def test_a_segment_that_stays_open_is_named(tmp_path: Path) -> None:
    segment = fill(tmp_path, LogTable.EVENTS, "w-0", {"user_id": ANNA})
    receipt, _ = erase(FolderStore(tmp_path), ANNA, NOW, wait=0)
    assert receipt.open_segments == [f"events/date={DAY}/_w-0.jsonl"]
    segment.finish()


def test_what_a_killed_gateway_left_open_is_erased_too(tmp_path: Path) -> None:
    left = tmp_path / "events" / f"date={DAY}" / "_dead-0.jsonl"
    left.parent.mkdir(parents=True)
    left.write_bytes(json.dumps({"user_id": ANNA}).encode() + b"\nhalf")
    os.utime(left, (1000, 1000))
    receipt, _ = erase(FolderStore(tmp_path), ANNA, NOW, pause=lambda _: None)
    assert receipt.rows["events"] == 1
    assert everything(tmp_path) == b""


def test_in_a_bucket_it_looks_twice(tmp_path: Path) -> None:
    bucket = Bucket()
    store = BucketStore(bucket, "b/luna/traffic")
    row = json.dumps({"user_id": ANNA}).encode() + b"\n"
    store.write(f"events/date={DAY}/w-0.jsonl", row + b'{"user_id": "x"}\n')
    receipt, name = erase(
        store, ANNA, NOW, pause=lambda _: store.write(f"events/date={DAY}/late-0.jsonl", row)
    )  # fmt: skip
    assert receipt.rows["events"] == 2
    assert list(store.names()) == [f"events/date={DAY}/w-0.jsonl"]
    assert ErasureReceipt.model_validate_json(store.read(name)) == receipt


def test_plain_ids_with_quotes_are_found(tmp_path: Path) -> None:
    user = 'Zoë "the" \\ one'
    fill(tmp_path, LogTable.EVENTS, "w-0", json.dumps({"user_id": user}, ensure_ascii=False).encode() + b"\n").finish()
    receipt, _ = erase(FolderStore(tmp_path), user, NOW)
    assert receipt.rows["events"] == 1


async def test_of_a_live_gateway(lab: Lab) -> None:
    for user in ("anna", "ben", "anna"):
        await lab.chat(headers=routed(user))
    await lab.rows("turns")
    lab.services.writer.close()
    receipt, _ = erase(FolderStore(lab.store), ANNA, NOW)
    assert receipt.rows == {"exposures": 1, "events": 2, "turns": 2}
    assert ANNA.encode() not in everything(lab.store)
    assert everything(lab.store).count(b"\n") == 3


def test_turns_whose_time_is_over_go(tmp_path: Path) -> None:
    over, kept = (NOW - timedelta(seconds=1)).isoformat(), (NOW + timedelta(days=1)).isoformat()
    fill(
        tmp_path, LogTable.TURNS, "w-0",
        {"user": "a", "retain_until": over}, {"user": "b", "retain_until": kept}, {"user": "c"},
        b'{"retain_until" broken\n',
    ).finish()  # fmt: skip
    removed = expire(FolderStore(tmp_path), NOW)
    assert removed.rows["turns"] == 1
    assert everything(tmp_path).count(b"\n") == 3
    assert expire(FolderStore(tmp_path), NOW).files == []


@pytest.mark.parametrize("table", list(LogTable))
def test_an_empty_log_has_nothing_to_erase(tmp_path: Path, table: LogTable) -> None:
    receipt, _ = erase(FolderStore(tmp_path), ANNA, NOW)
    assert receipt.rows[table.value] == 0
