"""Where inputs are read from and outputs are left: URIs become local folders, and local folders become artefacts.

An artefact exists when its manifest does: outputs are put in place first, `manifest.json` is written last, at once.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import fsspec
from pydantic import ValidationError

from flywheel_contract import paths
from flywheel_contract.base import Digest
from flywheel_contract.manifest import MANIFEST_NAME, Manifest
from flywheel_contract.uris import Location, UriError, join_uri, parse_uri
from flywheel_trainer import checkpoints
from flywheel_trainer.errors import ConfigError, DataError, ModelError, OutsideRootError, StageError

WORK_NAME: Final = ".work"
"""The folder of checkpoints and unfinished outputs, below a stage's own."""

HUB_FILES: Final = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.jsonl", "*.parquet")
"""What is taken from the Hugging Face Hub: weights that cannot run code, tokenizers, data."""

_CHUNK: Final = 1 << 20
_LOCAL_SCHEMES: Final = ("pvc", "file")


def _files(path: Path) -> Iterator[Path]:
    """The files below a folder in the order of their relative names; hidden ones do not belong to an artefact."""
    found = (p for p in path.rglob("*") if p.is_file())
    visible = (p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts))
    yield from sorted(visible, key=lambda p: p.relative_to(path).as_posix())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_folder(path: Path) -> Digest:
    """The digest of a folder: SHA-256 over `<SHA-256 of the content>  <relative name>` lines, sorted by name.

    A single file's is the SHA-256 of its content. Hidden files do not count.

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    if path.is_file():
        return f"sha256:{_sha256(path)}"
    if not path.is_dir():
        raise FileNotFoundError(path)
    lines = "".join(f"{_sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in _files(path))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all visible files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in _files(path))


def write_atomically(path: Path, text: str) -> None:
    """Writes `path` so that a reader sees the whole text or no file, also after a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Store:
    """Reads and leaves artefacts by URI. Claims are mounted below `claims_root`; remote ones are copied to `cache`."""

    def __init__(
        self,
        claims_root: Path | None = None,
        cache: Path | None = None,
        filesystem: Callable[[str], Any] = fsspec.filesystem,
    ) -> None:
        """`filesystem` gives the fsspec filesystem of a scheme."""
        self.claims_root = claims_root or Path(os.environ.get("FLYWHEEL_CLAIMS_ROOT", paths.CLAIMS_ROOT))
        self._cache = cache or Path(os.environ.get("FLYWHEEL_CACHE", Path(tempfile.gettempdir()) / "flywheel-cache"))
        self._filesystem = filesystem

    def local(self, uri: str) -> Path:
        """The local path of what `uri` names; remote things are downloaded once. It need not exist where it is local.

        Raises:
            OutsideRootError: the URI, or a link in it or below it, leaves its root.
            ConfigError: the scheme's driver is not installed, or the claim is not mounted.
            DataError: a remote object does not exist.
        """
        location = self._parse(uri)
        if location.scheme in _LOCAL_SCHEMES:
            path = self._place(location)
            _refuse_links_out(path, self._root(location), uri)
            return path
        if location.scheme == "hf":
            return self._from_hub(location)
        target = self._cached(location)
        with _alone(target):
            if not target.exists():
                self._download(location, target)
        return target

    def exists(self, uri: str) -> bool:
        """Whether there is anything at `uri` (not for hf://, whose absence `local` tells)."""
        location = self._parse(uri)
        if location.scheme in _LOCAL_SCHEMES:
            return self._place(location).exists()
        return bool(self._remote(location.scheme).exists(f"{location.root}/{location.path}"))

    def read_manifest(self, uri: str) -> Manifest | None:
        """The manifest in the stage's folder `uri`, or None where there is none, or none that this version can read."""
        text = self._read_text(join_uri(uri, MANIFEST_NAME))
        if text is None:
            return None
        try:
            return Manifest.model_validate_json(text)
        except ValidationError:
            return None

    def manifests(self, uri: str) -> Iterator[tuple[str, Manifest | None]]:
        """The stages' folders below `uri` with their manifests, in the order of their names; None: it is unreadable."""
        location = self._parse(uri)
        if location.scheme in _LOCAL_SCHEMES:
            root = self._place(location)
            names = [p.relative_to(root).as_posix() for p in root.rglob(MANIFEST_NAME)]
        else:
            prefix = f"{location.root}/{location.path}".rstrip("/") + "/"
            names = [str(name).lstrip("/").removeprefix(prefix) for name in self._remote(location.scheme).find(prefix)]
        for name in sorted(names):
            *parts, file = name.split("/")
            if file == MANIFEST_NAME and not any(part.startswith(".") for part in parts):
                folder = join_uri(uri, *parts)
                yield folder, self.read_manifest(folder)

    def work(self, uri: str) -> Path:
        """The work folder of the stage whose outputs go to `uri`; for remote artefacts, a copy of the remote one."""
        location = self._parse(join_uri(uri, WORK_NAME))
        if location.scheme == "hf":
            raise ConfigError(f"artifacts {uri}: the Hugging Face Hub is read only; name a pvc://, s3:// or gs:// URI")
        if location.scheme in _LOCAL_SCHEMES:
            path = self._place(location)
            _refuse_links_out(path, self._root(location), uri)
        else:
            path = self._cached(location)
            with _alone(path):
                if not path.exists() and self._remote(location.scheme).exists(f"{location.root}/{location.path}"):
                    self._download(location, path)
                path.mkdir(exist_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def save_work(self, uri: str, work: Path, name: str) -> None:
        """Makes folder `name` of the work folder survive this machine. Does nothing where it already does."""
        location = self._parse(join_uri(uri, WORK_NAME, name))
        if location.scheme not in _LOCAL_SCHEMES:
            self._replace_remote(location, work / name)

    def publish(self, uri: str, outputs: dict[str, Path], manifest: Manifest) -> None:
        """Puts `outputs` (name -> finished folder) and then the manifest below the stage's folder `uri`."""
        for name, folder in outputs.items():
            location = self._parse(join_uri(uri, name))
            if location.scheme in _LOCAL_SCHEMES:
                _move(folder, self._place(location))
            else:
                self._replace_remote(location, folder)
        text = manifest.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n"
        location = self._parse(join_uri(uri, MANIFEST_NAME))
        if location.scheme in _LOCAL_SCHEMES:
            write_atomically(self._place(location), text)
        else:
            self._remote(location.scheme).pipe_file(f"{location.root}/{location.path}", text.encode())

    def drop_work(self, uri: str, work: Path) -> None:
        """Removes the work folder, here and in remote storage."""
        shutil.rmtree(work)
        location = self._parse(join_uri(uri, WORK_NAME))
        if location.scheme not in _LOCAL_SCHEMES:
            remote = self._remote(location.scheme)
            if remote.exists(f"{location.root}/{location.path}"):
                remote.rm(f"{location.root}/{location.path}", recursive=True)

    def _parse(self, uri: str) -> Location:
        try:
            return parse_uri(uri)
        except UriError as error:
            raise OutsideRootError(str(error)) from error

    def _root(self, location: Location) -> Path:
        return self.claims_root / location.root if location.scheme == "pvc" else Path("/")

    def _place(self, location: Location) -> Path:
        root = self._root(location)
        if not root.is_dir():
            raise ConfigError(f"claim {location.root} is not mounted at {root}: check that it exists")
        return root / location.path

    def _cached(self, location: Location) -> Path:
        return self._cache / hashlib.sha256(str(location).encode()).hexdigest()[:16] / (location.path or "root")

    def _remote(self, scheme: str) -> Any:  # noqa: ANN401 -- fsspec has no types
        try:
            return self._filesystem(scheme)
        except ImportError as error:
            raise ConfigError(f"{scheme}:// URIs need a driver that this image lacks: {error}") from error

    def _read_text(self, uri: str) -> str | None:
        location = self._parse(uri)
        try:
            if location.scheme == "hf":
                return None
            if location.scheme in _LOCAL_SCHEMES:
                return self._place(location).read_text(encoding="utf-8")
            return str(self._remote(location.scheme).cat_file(f"{location.root}/{location.path}").decode())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _download(self, location: Location, target: Path) -> None:
        partial = target.with_name(target.name + ".partial")
        if partial.is_dir():
            shutil.rmtree(partial)
        remote = self._remote(location.scheme)
        source = f"{location.root}/{location.path}"
        if not remote.exists(source):
            raise DataError(f"{location} does not exist")
        # Without the trailing slash fsspec would put the folder itself below an existing target.
        if remote.isdir(source):
            remote.get(source + "/", str(partial), recursive=True)
        else:
            remote.get_file(source, str(partial))
        partial.rename(target)

    def _replace_remote(self, location: Location, folder: Path) -> None:
        """What is new goes up before what is old goes: an upload that is cut short leaves the last checkpoint whole."""
        remote = self._remote(location.scheme)
        target = f"{location.root}/{location.path}"
        before = {str(name).strip("/") for name in remote.find(target)} if remote.exists(target) else set()
        files = {f"{target}/{p.relative_to(folder).as_posix()}": p for p in folder.rglob("*") if p.is_file()}
        for name in sorted(files, key=lambda name: (checkpoints.vouches(files[name]), name.count("/"), name)):
            remote.makedirs(name.rpartition("/")[0], exist_ok=True)
            remote.put_file(str(files[name]), name)
        for name in sorted(before - files.keys()):
            remote.rm_file(name)

    def _from_hub(self, location: Location) -> Path:
        # Not at the top: most stages read no hf:// URI, and a re-run that finds its manifest must be quick.
        from huggingface_hub import snapshot_download  # noqa: PLC0415
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

        name, _, revision = location.root.partition("@")
        try:
            folder = snapshot_download(name, revision=revision or None, allow_patterns=list(HUB_FILES))
        except LocalEntryNotFoundError as error:
            raise StageError(f"{location}: the Hugging Face Hub cannot be reached: {error}") from error
        except HfHubHTTPError as error:
            raise ModelError(f"{location}: the Hugging Face Hub refuses it: {error}") from error
        return Path(folder) / location.path


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """The processes of a node share the cache: one of them downloads, the others find what it has left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refuse_links_out(path: Path, root: Path, uri: str) -> None:
    """A link may point elsewhere inside its claim (as Hugging Face's cache does), never out of it."""
    inside = root.resolve()
    links = [path, *(p for p in path.rglob("*") if p.is_symlink())] if path.is_dir() else [path]
    for link in links:
        if not link.resolve().is_relative_to(inside):
            raise OutsideRootError(f"{uri}: {link} is a link that leaves {inside}; put the files themselves there")


def _move(source: Path, target: Path) -> None:
    """Renames `source` to `target`; what an attempt left there without a manifest is removed first."""
    if source == target:
        return
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
