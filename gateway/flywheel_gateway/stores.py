"""Where a lineage's log lies: a folder of a claim or the machine, or a bucket behind fsspec."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import fsspec

from flywheel_contract.online import LogTable
from flywheel_contract.paths import CLAIMS_ROOT
from flywheel_contract.uris import Location, UriError, parse_uri
from flywheel_gateway.errors import ConfigError
from flywheel_gateway.segments import SUFFIX, segment_files, sync_folder

_LOCAL: Final = ("pvc", "file")
_DRIVERS: Final = {"s3": "s3fs", "gs": "gcsfs"}
FilesystemOf = Callable[[str], Any]


class FolderStore:
    """A log in a folder. Names are relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> Iterator[str]:
        """All segments, open ones too."""
        for path in segment_files(self.root):
            yield path.relative_to(self.root).as_posix()

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError where it was renamed meanwhile."""
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Puts a file in place at once: a reader sees the old one or the new one."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)

    def remove(self, name: str) -> None:
        """Removes a file."""
        (self.root / name).unlink()


class BucketStore:
    """A log in a bucket: objects are replaced whole."""

    def __init__(self, filesystem: Any, root: str) -> None:  # noqa: ANN401 -- fsspec has no types
        self._filesystem, self._root = filesystem, root.rstrip("/")

    def names(self) -> Iterator[str]:
        """All segments."""
        self._filesystem.invalidate_cache()
        for table in LogTable:
            folder = f"{self._root}/{table}"
            if not self._filesystem.exists(folder):
                continue
            for path in sorted(self._filesystem.find(folder)):
                name = path.lstrip("/").removeprefix(self._root.lstrip("/") + "/")
                if name.endswith(SUFFIX):
                    yield name

    def read(self, name: str) -> bytes:
        """An object's content."""
        content: bytes = self._filesystem.cat_file(f"{self._root}/{name}")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Puts an object in place."""
        self._filesystem.pipe_file(f"{self._root}/{name}", content)

    def remove(self, name: str) -> None:
        """Removes an object."""
        self._filesystem.rm_file(f"{self._root}/{name}")

    def upload(self, file: Path, name: str) -> None:
        """Puts a file there and makes sure that it is whole. The same name may be put again.

        Raises:
            OSError: it arrived with another size. Drivers raise errors of their own besides.
        """
        self._filesystem.put_file(str(file), f"{self._root}/{name}")
        self._filesystem.invalidate_cache()
        arrived, sent = self._filesystem.info(f"{self._root}/{name}")["size"], file.stat().st_size
        if arrived != sent:
            raise OSError(f"{name}: {arrived} of {sent} bytes arrived")


Store = FolderStore | BucketStore


def open_store(uri: str, filesystem: FilesystemOf = fsspec.filesystem) -> Store:
    """The store at `uri`; claims are mounted below FLYWHEEL_CLAIMS_ROOT.

    Raises:
        ConfigError: no such scheme or driver, or the claim is not mounted.
    """
    try:
        location = parse_uri(uri)
    except UriError as error:
        raise ConfigError(str(error)) from error
    if location.scheme in _LOCAL:
        return FolderStore(_folder(location))
    if location.scheme not in _DRIVERS:
        raise ConfigError(f"store {uri}: name a pvc://, file://, s3:// or gs:// URI")
    try:
        driver = filesystem(location.scheme)
    except ImportError as error:
        raise ConfigError(f"store {uri}: the image lacks {_DRIVERS[location.scheme]}") from error
    return BucketStore(driver, f"{location.root}/{location.path}")


def _folder(location: Location) -> Path:
    if location.scheme == "file":
        return Path("/") / location.path
    claims = Path(os.environ.get("FLYWHEEL_CLAIMS_ROOT", CLAIMS_ROOT))
    root = claims / location.root
    if not root.is_dir():
        raise ConfigError(f"claim {location.root} is not mounted at {root}: check that it exists")
    return root / location.path
