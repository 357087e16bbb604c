"""Files by path or artefact URI: which there are to read, and how a report is left."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fsspec

from flywheel_analysis.errors import DataError, SourceUnavailableError, SpecError
from flywheel_contract import paths
from flywheel_contract.base import Digest
from flywheel_contract.uris import SCHEMES, Location, UriError, parse_uri

_REMOTE: Final = ("s3", "gs")
_PARQUET: Final = (".parquet", ".pq")
_JSON: Final = tuple(name + packed for name in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst"))
_MAGIC: Final = b"PAR1"
"""What a Parquet file begins with."""

FileSystems = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Found:
    """Files of one kind with something in them, as DuckDB names them. `missing` says that there is no such place."""

    place: str
    parquet: tuple[str, ...] = ()
    json: tuple[str, ...] = ()
    missing: bool = False
    filesystem: Any = None

    @property
    def protocols(self) -> tuple[str, ...]:
        """The names that the file system goes by."""
        names = getattr(self.filesystem, "protocol", ())
        return (names,) if isinstance(names, str) else tuple(names)


class Store:
    """Reads and writes below paths, claims and buckets."""

    def __init__(self, claims_root: Path | None = None, filesystem: FileSystems = fsspec.filesystem) -> None:
        """`filesystem` gives the fsspec filesystem of a scheme."""
        self._claims_root = claims_root or Path(os.environ.get("FLYWHEEL_CLAIMS_ROOT", paths.CLAIMS_ROOT))
        self._filesystem = filesystem

    def find(self, place: str) -> Found:
        """The Parquet and JSON lines files at `place`, a file or a folder with all below it.

        Names that begin with `_` or `.` are still being written, or are no data; empty files hold no rows.

        Raises:
            DataError: a file is neither, or both kinds lie together.
            SpecError: `place` is no URI of ours.
            SourceUnavailableError: the store does not answer.
        """
        location = self._location(place)
        if location.scheme in _REMOTE:
            system = self._remote(location.scheme)
            try:
                sizes = _remote_sizes(system, location)
            except (OSError, TimeoutError) as error:
                raise SourceUnavailableError(f"{place} cannot be listed: {error}") from error
            return self._sort(place, sizes, system)
        path = self._path(location)
        try:
            found = [path] if path.is_file() else _visible(path)
            return self._sort(place, {str(p): p.stat().st_size for p in found}, None, missing=not path.exists())
        except OSError as error:
            raise DataError(f"{place} cannot be read: {error.strerror}") from error

    def write(self, uri: str, data: bytes) -> Digest:
        """Leaves `data` at `uri` so that a reader sees all of it or nothing; answers its digest.

        Raises:
            SpecError: `uri` is no URI of ours.
            SourceUnavailableError: it cannot be written.
        """
        location = self._location(uri)
        try:
            if location.scheme in _REMOTE:
                # An object store shows an object when it is complete.
                self._remote(location.scheme).pipe_file(f"{location.root}/{location.path}", data)
            else:
                write_atomically(self._path(location), data)
        except OSError as error:
            raise SourceUnavailableError(f"{uri} cannot be written: {error}") from error
        return "sha256:" + hashlib.sha256(data).hexdigest()

    def _location(self, place: str) -> Location:
        if "://" not in place:
            return Location("file", "", str(Path(place).absolute()).lstrip("/"))
        try:
            location = parse_uri(place)
        except UriError as error:
            raise SpecError(f"{error}, or give a path or a table's URL") from error
        if location.scheme == "hf":
            raise SpecError(f"{place}: give one of {', '.join(s + '://' for s in SCHEMES if s != 'hf')}, or a path")
        return location

    def _path(self, location: Location) -> Path:
        if location.scheme == "file":
            return Path("/", location.path)
        root = self._claims_root / location.root
        path = root / location.path
        if not path.resolve().is_relative_to(root.resolve()):
            raise SpecError(f"{location} leaves its claim by a link: write where it really lies")
        return path

    def _remote(self, scheme: str) -> Any:  # noqa: ANN401 -- fsspec's filesystems have no common type
        try:
            return self._filesystem(scheme)
        except ImportError as error:
            raise SpecError(f"{scheme}:// needs its driver: install flywheel-analysis[s3] or [gcs]") from error

    def _sort(self, place: str, sizes: dict[str, int], system: Any, *, missing: bool | None = None) -> Found:  # noqa: ANN401
        parquet: list[str] = []
        json: list[str] = []
        for name in sorted(sizes):
            if name.endswith(_PARQUET) or (not name.endswith(_JSON) and _is_parquet(name, system)):
                kind = parquet
            elif name.endswith(_JSON) or len(sizes) == 1:
                kind = json
            else:
                raise DataError(f"{name} is neither Parquet nor JSON lines: leave only such files in {place}")
            if sizes[name]:
                kind.append(name)
        if parquet and json:
            raise DataError(f"{place} holds both {parquet[0]} and {json[0]}: leave files of one kind there")
        return Found(place, tuple(parquet), tuple(json), not sizes if missing is None else missing, system)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `path` so that a reader sees all of it or nothing, also after a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(("_", ".")) for part in parts)


def _visible(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and not _hidden(p.relative_to(folder).parts)]


def _remote_sizes(system: Any, location: Location) -> dict[str, int]:  # noqa: ANN401
    root = f"{location.root}/{location.path}".rstrip("/")
    try:
        found = system.find(root, detail=True)
    except FileNotFoundError:
        return {}
    return {
        f"{location.scheme}://{name.lstrip('/')}": int(info["size"])
        for name, info in found.items()
        if not _hidden(name.lstrip("/").removeprefix(root).strip("/").split("/"))
    }


def _is_parquet(name: str, system: Any) -> bool:  # noqa: ANN401
    if system is not None:
        return bool(system.cat_file(name.split("://", 1)[1], 0, len(_MAGIC)) == _MAGIC)
    with Path(name).open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
