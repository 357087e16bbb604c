"""The log on its way to the disk: segments, a store that is away, what killed writers left, buckets."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_contract.gateway_config import LogSettings
from flywheel_contract.online import LogTable
from flywheel_gateway.errors import ConfigError
from flywheel_gateway.log_writer import LogWriter
from flywheel_gateway.segments import Segment, adopt, segment_files
from flywheel_gateway.shipping import Shipper
from flywheel_gateway.stores import BucketStore, FolderStore, open_store

DAY = "2026-03-02"


def settings(**changes: float) -> LogSettings:
    """Quick settings."""
    return LogSettings.model_validate({"store": "file:///unused", "flushSeconds": 0.05, **changes})


def names(root: Path) -> list[str]:
    """All segments below `root`."""
    return [path.relative_to(root).as_posix() for path in segment_files(root)]


def until(true: object, seconds: float = 10) -> None:
    """Waits for a condition of a thread."""
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.005)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[LogWriter]:
    """A writer below tmp_path/log."""
    found = LogWriter(tmp_path / "log", settings(), "w")
    found.start()
    yield found
    found.close()


def test_rows_stand_in_an_open_segment_at_once_and_in_a_finished_one_at_the_end(
    tmp_path: Path, writer: LogWriter
) -> None:
    root = tmp_path / "log"
    for number in range(100):
        assert writer.put(LogTable.EVENTS, DAY, b"%d\n" % number)
    until(lambda: writer.written[LogTable.EVENTS] == 100)
    assert names(root) == [f"events/date={DAY}/_w-0.jsonl"]
    assert writer.queued_bytes == 0
    assert writer.lag() == 0
    writer.close()
    assert names(root) == [f"events/date={DAY}/w-0.jsonl"]
    assert (root / names(root)[0]).read_text() == "".join(f"{i}\n" for i in range(100))


def test_each_day_and_table_has_a_segment_of_its_own(tmp_path: Path, writer: LogWriter) -> None:
    for table, day in [(LogTable.EVENTS, DAY), (LogTable.TURNS, DAY), (LogTable.EVENTS, "2026-03-03")]:
        writer.put(table, day, b"{}\n")
    writer.close()
    assert {name.rsplit("/", 1)[0] for name in names(tmp_path / "log")} == {
        f"events/date={DAY}",
        f"turns/date={DAY}",
        "events/date=2026-03-03",
    }


@pytest.mark.parametrize("limit", [{"rotateSeconds": 1}, {"rotateBytes": 1024}])
def test_a_segment_is_finished_by_time_and_by_size(tmp_path: Path, limit: dict[str, float]) -> None:
    writer = LogWriter(tmp_path, settings(**limit), "w")
    writer.start()
    writer.put(LogTable.EVENTS, DAY, b"x" * 2000 + b"\n")
    until(lambda: names(tmp_path) == [f"events/date={DAY}/w-0.jsonl"])
    writer.put(LogTable.EVENTS, DAY, b"y\n")
    writer.close()
    assert names(tmp_path) == [f"events/date={DAY}/w-0.jsonl", f"events/date={DAY}/w-1.jsonl"]


def test_a_store_that_is_away_is_waited_for_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "log"
    root.write_text("not a folder")  # like a claim that went away
    writer = LogWriter(root, settings(), "w")
    writer.start()
    writer.put(LogTable.EVENTS, DAY, b"one\n")
    until(lambda: "cannot be written to" in caplog.text)
    writer.put(LogTable.EVENTS, DAY, b"two\n")
    assert writer.lag() > 0
    root.unlink()
    until(lambda: writer.written[LogTable.EVENTS] == 2)
    writer.close()
    assert (root / f"events/date={DAY}/w-0.jsonl").read_text() == "one\ntwo\n"
    assert "can be written to again" in caplog.text
    assert sum(writer.lost.values()) == 0


def test_rows_beyond_the_queue_are_lost_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "log"
    root.write_text("not a folder")
    writer = LogWriter(root, settings(queueBytes=1024), "w")
    writer.start()
    taken = [writer.put(LogTable.TURNS, DAY, b"x" * 99 + b"\n") for _ in range(15)]
    assert taken == [True] * 10 + [False] * 5
    assert writer.lost[LogTable.TURNS] == 5
    writer.close(seconds=0.5)
    assert writer.lost[LogTable.TURNS] == 15
    assert "10 rows are lost" in caplog.text
    root.unlink()  # so that the thread can end
    until(lambda: not writer.alive)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seam is the kernel's write: it takes a part, then says that there is no room."""
    segment = Segment(tmp_path, LogTable.EVENTS, DAY, "w-0")
    segment.append(b"whole\n", 1)
    real = os.write
    room = [4, 0]

    def full(descriptor: int, data: memoryview) -> int:
        left = room.pop(0)
        if left == 0:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:left])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        segment.append(b"second line\n", 1)
    monkeypatch.undo()
    segment.append(b"third\n", 1)
    assert segment.finish() == 0
    assert segment.final.read_bytes() == b"whole\nthird\n"


def break_descriptor(path: Path) -> None:
    """Makes our descriptor of a file fail for ever, as ESTALE does: the file itself is well."""
    (descriptor,) = [
        int(link.name)
        for link in Path("/proc/self/fd").iterdir()
        if link.is_symlink() and os.readlink(link) == str(path)
    ]
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor)
    os.close(full)


def test_a_descriptor_that_fails_for_ever_costs_no_row_and_holds_up_no_other_table(
    tmp_path: Path, writer: LogWriter, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "log"
    writer.put(LogTable.EVENTS, DAY, b"one\n")
    until(lambda: writer.written[LogTable.EVENTS] == 1)
    path = root / f"events/date={DAY}/_w-0.jsonl"
    # The last write before the failure arrived in part, and cannot be taken back through the descriptor.
    with path.open("ab") as file:
        file.write(b"two\nth")
    break_descriptor(path)
    for line in (b"two\n", b"three\n"):
        writer.put(LogTable.EVENTS, DAY, line)
    for table, day in [(LogTable.TURNS, DAY), (LogTable.EVENTS, "2026-03-03")]:
        writer.put(table, day, b"{}\n")
    until(lambda: sum(writer.written.values()) == 5)
    until(lambda: "can be written to again" in caplog.text)
    writer.put(LogTable.EVENTS, DAY, b"four\n")
    writer.close()
    assert not writer.alive
    assert not any(name.rsplit("/", 1)[1].startswith("_") for name in names(root))
    events = [(root / name).read_text() for name in names(root) if name.startswith(f"events/date={DAY}")]
    assert "".join(events) == "one\ntwo\nthree\nfour\n"
    assert (sum(writer.lost.values()), writer.queued_bytes) == (0, 0)


def test_a_segment_whose_descriptor_fails_at_the_end_is_finished_by_its_name(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, settings(flushSeconds=60), "w")
    writer.start()
    writer.put(LogTable.EVENTS, DAY, b"one\n")
    until(lambda: writer.written[LogTable.EVENTS] == 1)
    writer.put(LogTable.EVENTS, DAY, b"two\n")  # its sync is not due
    until(lambda: writer.written[LogTable.EVENTS] == 2)
    break_descriptor(tmp_path / f"events/date={DAY}/_w-0.jsonl")
    writer.close(seconds=5)
    assert not writer.alive
    assert (tmp_path / f"events/date={DAY}/w-0.jsonl").read_text() == "one\ntwo\n"
    assert sum(writer.lost.values()) == 0


def test_what_was_given_up_is_mended_once_and_what_is_gone_is_counted(tmp_path: Path) -> None:
    short, empty, taken, removed = (Segment(tmp_path, LogTable.EVENTS, DAY, name) for name in "setr")
    for segment in (short, taken, removed):
        segment.append(b"one\n", 1)
        segment.append(b"two\n", 1)
    os.truncate(short.open_path, 5)  # the store never got what was not synced
    empty.open_path.write_bytes(b"not ours\n")
    taken.open_path.rename(taken.final)
    removed.open_path.unlink()
    for segment in (short, empty, taken, removed):
        segment.give_up()
    assert [segment.mend() for segment in (short, empty, taken, removed)] == [1, 0, 0, 2]
    assert {path.name: path.read_text() for path in segment_files(tmp_path)} == {
        "s.jsonl": "one\n",
        "t.jsonl": "one\ntwo\n",
    }


def test_a_segment_that_somebody_removed_is_counted(tmp_path: Path, writer: LogWriter) -> None:
    writer.put(LogTable.EVENTS, DAY, b"x\n")
    until(lambda: names(tmp_path / "log"))
    until(lambda: writer.written[LogTable.EVENTS] == 1)
    (tmp_path / "log" / names(tmp_path / "log")[0]).unlink()
    writer.close()
    assert writer.lost[LogTable.EVENTS] == 1


@given(st.lists(st.binary(max_size=40)), st.binary(max_size=200_000).map(lambda b: b.replace(b"\n", b"")))
def test_what_a_killed_writer_left_is_cut_to_its_last_line(lines: list[bytes], tail: bytes) -> None:
    import tempfile  # noqa: PLC0415 -- hypothesis runs many examples within one test

    whole = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = root / "turns" / f"date={DAY}" / "_dead-0.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(whole + tail)
        adopted = adopt(root, time.time() + 1)
        if whole:
            assert [p.name for p in adopted] == ["dead-0.jsonl"]
            assert adopted[0].read_bytes() == whole
        else:
            assert adopted == list(path.parent.iterdir()) == []


def test_only_what_is_old_and_not_ours_is_adopted(tmp_path: Path) -> None:
    mine, old, young = (Segment(tmp_path, LogTable.EVENTS, DAY, name) for name in ("mine", "old", "young"))
    for segment in (mine, old, young):
        segment.append(b"x\n", 1)
        segment.sync()
    for segment in (mine, old):
        os.utime(segment.open_path, (1000, 1000))
    assert adopt(tmp_path, 2000, {mine.open_path}) == [old.final]
    assert mine.open_path.exists()
    assert young.open_path.exists()
    # Its writer was only slow: it goes on into the renamed file, and its own end is none.
    old.append(b"y\n", 1)
    assert old.finish() == 0
    assert old.final.read_bytes() == b"x\ny\n"
    for segment in (mine, young):
        segment.finish()


def test_a_writer_adopts_what_is_left_when_it_starts(tmp_path: Path) -> None:
    left = tmp_path / "events" / f"date={DAY}" / "_dead-0.jsonl"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x\nha")
    os.utime(left, (1000, 1000))
    writer = LogWriter(tmp_path, settings(), "w")
    writer.start()
    until(lambda: names(tmp_path) == [f"events/date={DAY}/dead-0.jsonl"])
    writer.close()


class Bucket:
    """fsspec's memory filesystem, which can be away."""

    def __init__(self) -> None:
        self.filesystem = fsspec.filesystem("memory", skip_instance_cache=True)
        self.filesystem.store.clear()
        self.filesystem.pseudo_dirs[:] = [""]
        self.away = False

    def put_file(self, *arguments: str) -> None:
        """Uploads, unless it is away."""
        if self.away:
            raise ConnectionError("the bucket is away")
        self.filesystem.put_file(*arguments)

    def __getattr__(self, name: str) -> object:
        return getattr(self.filesystem, name)


def test_segments_go_to_the_bucket_and_only_then_from_the_spool(tmp_path: Path) -> None:
    bucket = Bucket()
    bucket.away = True
    store = BucketStore(bucket, "b/luna/traffic")
    left = tmp_path / "turns" / f"date={DAY}" / "_before-0.jsonl"  # of an earlier process in this pod
    left.parent.mkdir(parents=True)
    left.write_bytes(b'{"a":1}\nha')
    shipper = Shipper(tmp_path, store, retry_seconds=0.05)
    writer = LogWriter(tmp_path, settings(), "w", alone=True, finished=shipper.wake)
    writer.start()
    shipper.start()
    writer.put(LogTable.EVENTS, DAY, b"{}\n")
    until(lambda: shipper.failures >= 2)
    assert shipper.waiting() == 1
    bucket.away = False
    until(lambda: shipper.shipped == 1)
    writer.close()
    shipper.close()
    assert names(tmp_path) == []
    assert list(store.names()) == [f"events/date={DAY}/w-0.jsonl", f"turns/date={DAY}/before-0.jsonl"]
    assert store.read(f"turns/date={DAY}/before-0.jsonl") == b'{"a":1}\n'


def test_what_the_bucket_did_not_take_stays_for_the_next_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = Bucket()
    bucket.away = True
    segment = Segment(tmp_path, LogTable.EVENTS, DAY, "w-0")
    segment.append(b"x\n", 1)
    segment.finish()
    shipper = Shipper(tmp_path, BucketStore(bucket, "b/t"), retry_seconds=0.05)
    shipper.start()
    until(lambda: shipper.failures > 0)
    shipper.close(seconds=0.3)
    assert "1 segments stay in the spool" in caplog.text
    bucket.away = False
    until(lambda: shipper.waiting() == 0)


def test_an_upload_that_arrived_in_part_is_no_upload(tmp_path: Path) -> None:
    class Short(Bucket):
        def put_file(self, local: str, remote: str) -> None:  # type: ignore[override]
            self.filesystem.pipe_file(remote, Path(local).read_bytes()[:-1])

    file = tmp_path / "x"
    file.write_bytes(b"abc")
    with pytest.raises(OSError, match="2 of 3 bytes"):
        BucketStore(Short(), "b/t").upload(file, "x")


def test_where_a_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_CLAIMS_ROOT", str(tmp_path))
    (tmp_path / "runs").mkdir()
    store = open_store("pvc://runs/luna/traffic")
    assert isinstance(store, FolderStore)
    assert store.root == tmp_path / "runs/luna/traffic"
    assert isinstance(open_store("s3://b/x", lambda _: Bucket()), BucketStore)

    def missing(_: str) -> None:
        raise ImportError

    for uri, words in [
        ("pvc://away/x", "is not mounted"),
        ("hf://a/b", "name a pvc"),
        ("ftp://x", "start it with"),
        ("s3://b/../x", "leaves its root"),
    ]:
        with pytest.raises(ConfigError, match=words):
            open_store(uri, missing)
    with pytest.raises(ConfigError, match="lacks gcsfs"):
        open_store("gs://b/x", missing)


def test_rows_are_json(tmp_path: Path, writer: LogWriter) -> None:
    writer.put(LogTable.EVENTS, DAY, json.dumps({"a": "\u2028"}).encode() + b"\n")
    writer.close()
    assert json.loads((tmp_path / "log" / names(tmp_path / "log")[0]).read_bytes()) == {"a": "\u2028"}
