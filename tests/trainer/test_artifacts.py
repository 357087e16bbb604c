"""Artefacts: digests, links that leave their root, and the manifest that comes last, in a claim and in a bucket."""

import contextlib
import shutil
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from flywheel_contract.base import digest_of
from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.manifest import Manifest
from flywheel_contract.stages import Stage
from flywheel_trainer.artifacts import Store, digest_folder, size_of, write_atomically
from flywheel_trainer.checkpoints import last_complete
from flywheel_trainer.errors import ConfigError, DataError, OutsideRootError

MANIFEST = Manifest(
    stage=Stage.SFT, owner="g", group="l", inputs_digest=digest_of("x"), inputs=[], seed=0, outputs={}
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "claims" / "lab").mkdir(parents=True)
    return Store(tmp_path / "claims", tmp_path / "cache", lambda _scheme: fsspec.filesystem("memory"))


def test_a_digest_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x").write_text("1")
        (tmp_path / name / "y").write_text("2")
    (tmp_path / "b" / ".hidden").write_text("not part of it")
    assert digest_folder(tmp_path / "a") == digest_folder(tmp_path / "b")
    assert size_of(tmp_path / "b") == 2
    (tmp_path / "b" / "y").rename(tmp_path / "b" / "z")
    assert digest_folder(tmp_path / "a") != digest_folder(tmp_path / "b")
    # sha256sum of the file.
    assert digest_folder(tmp_path / "a" / "y").startswith("sha256:d4735e3a265e16ee")
    with pytest.raises(FileNotFoundError):
        digest_folder(tmp_path / "nothing")


def test_links_may_not_leave_the_claim(store: Store, tmp_path: Path) -> None:
    claim = tmp_path / "claims" / "lab"
    (tmp_path / "secret").write_text("s")
    (claim / "blobs").mkdir()
    (claim / "blobs" / "x").write_text("x")
    (claim / "model").mkdir()
    (claim / "model" / "x").symlink_to("../blobs/x")
    assert store.local("pvc://lab/model") == claim / "model"
    (claim / "model" / "bad").symlink_to(tmp_path / "secret")
    with pytest.raises(OutsideRootError, match="bad is a link that leaves"):
        store.local("pvc://lab/model")
    (claim / "out").symlink_to("../..")
    for uri in ("pvc://lab/out/secret", "pvc://lab/../x"):
        with pytest.raises(OutsideRootError) as refused:
            store.local(uri)
        assert refused.value.exit_code == ExitCode.PERMISSION


def test_a_claim_that_is_not_mounted_is_said(store: Store) -> None:
    with pytest.raises(ConfigError, match="claim other is not mounted"):
        store.local("pvc://other/x")


@pytest.mark.parametrize("uri", ["pvc://lab/artifacts/l/g/sft/1", "s3://bucket/artifacts/l/g/sft/1"])
def test_outputs_first_manifest_last(store: Store, uri: str) -> None:
    work = store.work(uri)
    (work / "out" / "model").mkdir(parents=True)
    (work / "out" / "model" / "weights").write_text("w")
    assert store.read_manifest(uri) is None
    store.publish(uri, {"model": work / "out" / "model"}, MANIFEST)
    store.drop_work(uri, work)
    assert store.read_manifest(uri) == MANIFEST
    assert (store.local(f"{uri}/model") / "weights").read_text() == "w"
    assert store.exists(f"{uri}/manifest.json")
    assert not store.exists(f"{uri}/.work")
    # Another attempt whose manifest was lost puts its own outputs in place of the old ones.
    work = store.work(uri)
    (work / "model").mkdir()
    (work / "model" / "other").write_text("o")
    store.publish(uri, {"model": work / "model"}, MANIFEST)
    fresh = Store(store.claims_root, store.claims_root / "fresh", lambda _scheme: fsspec.filesystem("memory"))
    assert [p.name for p in fresh.local(f"{uri}/model").iterdir()] == ["other"]


def test_checkpoints_of_remote_stages_survive_the_machine(store: Store, tmp_path: Path) -> None:
    uri = "gs://bucket/artifacts/l/g/sft/2"
    work = store.work(uri)
    (work / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (work / "checkpoints" / "checkpoint-1" / "state").write_text("1")
    store.save_work(uri, work, "checkpoints")
    elsewhere = Store(tmp_path / "claims", tmp_path / "other-cache", lambda _scheme: fsspec.filesystem("memory"))
    assert (elsewhere.work(uri) / "checkpoints" / "checkpoint-1" / "state").read_text() == "1"


class Cut(MemoryFileSystem):  # type: ignore[misc] -- fsspec has no types
    """Storage that is gone after `left` uploads: the machine was killed."""

    cachable = False
    left = 0

    def put_file(self, lpath: str, rpath: str, **options: object) -> None:
        if not self.left:
            raise ConnectionError("killed")
        self.left -= 1
        super().put_file(lpath, rpath, **options)


def test_a_machine_that_dies_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    uri = "s3://bucket/artifacts/l/g/sft/3"

    def checkpoint(step: int) -> list[str]:
        """In the order in which they are sent: what goes with each checkpoint, the model, what makes it count."""
        return ["metrics.jsonl", "screening.json", f"checkpoint-{step}/model", f"checkpoint-{step}/trainer_state.json"]

    remote = Cut()
    for uploads in range(5):
        store = Store(tmp_path / "claims", tmp_path / f"{uploads}", lambda _scheme: remote)
        for step in (1, 2):
            work = store.work(uri)
            shutil.rmtree(work / "checkpoints", ignore_errors=True)
            for name in checkpoint(step):
                file = work / "checkpoints" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f'{{"global_step": {step}, "max_steps": 2}}', encoding="utf-8")
            remote.left = 4 if step == 1 else uploads
            with contextlib.nullcontext() if remote.left == 4 else pytest.raises(ConnectionError):
                store.save_work(uri, work, "checkpoints")
        after = Store(tmp_path / "claims", tmp_path / f"after-{uploads}", lambda _scheme: remote)
        folder = after.work(uri) / "checkpoints"
        found = last_complete(folder)
        assert found is not None
        assert found.step == (2 if uploads == 4 else 1)
        assert {p.name for p in folder.iterdir() if p.is_file()} == {"metrics.jsonl", "screening.json"}
        after.drop_work(uri, after.work(uri))


class Slow(MemoryFileSystem):  # type: ignore[misc] -- fsspec has no types
    """Storage whose downloads wait for a second one for a moment: two at once would meet."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.downloads = 0
        self._meeting = threading.Barrier(2)

    def get(self, *arguments: object, **options: object) -> None:
        self.downloads += 1
        with contextlib.suppress(threading.BrokenBarrierError):
            self._meeting.wait(0.5)
        super().get(*arguments, **options)


@pytest.mark.parametrize("what", ["input", "work"])
def test_the_processes_of_a_node_download_once(tmp_path: Path, what: str) -> None:
    remote = Slow()
    remote.pipe_file("/bucket/once/.work/model/weights", b"w")
    folders = []

    def fetch() -> None:
        store = Store(tmp_path / "claims", tmp_path / "cache", lambda _scheme: remote)
        uri = "s3://bucket/once"
        folders.append(store.work(uri) if what == "work" else store.local(f"{uri}/.work"))

    processes = [threading.Thread(target=fetch) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [(folder / "model" / "weights").read_text() for folder in folders] == ["w", "w", "w"]
    assert remote.downloads == 1


def test_a_manifest_that_cannot_be_read_is_none(store: Store, tmp_path: Path) -> None:
    (tmp_path / "claims" / "lab" / "manifest.json").write_text('{"stage": "sft"')
    assert store.read_manifest("pvc://lab") is None
    assert store.read_manifest("hf://owner/name") is None


def test_what_is_not_there_remotely_is_said(store: Store) -> None:
    with pytest.raises(DataError, match="does not exist"):
        store.local("s3://bucket/nothing")
    with pytest.raises(ConfigError, match="read only"):
        store.work("hf://owner/name")

    def without_driver(scheme: str) -> None:
        raise ImportError(f"install {scheme}fs")

    with pytest.raises(ConfigError, match="install s3fs"):
        Store(store.claims_root, filesystem=without_driver).local("s3://bucket/x")


def test_an_atomic_write_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "deep" / "x", "1")
    write_atomically(tmp_path / "deep" / "x", "2")
    assert [(p.name, p.read_text()) for p in (tmp_path / "deep").iterdir()] == [("x", "2")]
