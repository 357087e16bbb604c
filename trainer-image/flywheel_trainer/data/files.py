"""Data files: JSON Lines, also compressed, and Parquet; each row as it stands there, with its place for messages."""

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from flywheel_trainer.errors import DataError

SUFFIXES: Final = (".jsonl", ".json", ".jsonl.gz", ".parquet")
DATA_FILE: Final = "data.jsonl"
"""The file in which a stage leaves its rows. In a folder, names that start with `_` or `.` are no data."""
_Unit = Literal["line", "row"]


class NotFiniteNumberError(ValueError):
    """NaN or an infinity, which JSON does not have."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in its file, and where."""

    file: Path
    unit: _Unit
    number: int
    value: Any

    @property
    def place(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


TOO_DEEP: Final = "is nested hundreds of levels deep; write a flat row"


def data_files(path: Path) -> list[Path]:
    """The files behind `path`, sorted by name.

    Raises:
        DataError: it does not exist, is of another kind, or is a folder without a data file.
    """
    kinds = ", ".join(SUFFIXES)
    if not path.exists():
        raise DataError(f"{path} does not exist: check the URI, and that the data was written before the start")
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"{path} is no data file: write one of {kinds}")
        return [path]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.name.endswith(SUFFIXES)
        and not any(part.startswith(("_", ".")) for part in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(f"the folder {path} holds no data file: write one of {kinds} into it")
    return files


def raw_rows(path: Path) -> Iterator[RawRow]:
    """Every row behind `path`.

    Raises:
        DataError: as `data_files`, or a file is empty or damaged.
    """
    for file in data_files(path):
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty: write at least one row into it, or take the source away")
        yield from _parquet_rows(file) if file.name.endswith(".parquet") else _json_rows(file)


def without_nulls(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    """Parquet has every column in every row, null where a row has none: a null field is an absent one, however deep.

    Raises:
        NotFiniteNumberError, UnicodeEncodeError: it holds what cannot be written again as JSON in UTF-8.
    """
    if isinstance(value, str):
        if not value.isascii():
            value.encode()
    elif isinstance(value, Mapping):
        return {without_nulls(name): without_nulls(item) for name, item in value.items() if item is not None}
    elif isinstance(value, list):
        return [without_nulls(item) for item in value]
    elif isinstance(value, float) and not math.isfinite(value):
        raise NotFiniteNumberError
    return value


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes JSON Lines and returns how many rows there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n")
            count += 1
    return count


def _json_rows(file: Path) -> Iterator[RawRow]:
    opened = gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb")
    number = 0
    with opened as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield RawRow(file, "line", number, json.loads(line.rstrip()))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{file}, line {number} is no JSON ({error.msg} at column {error.colno}); "
                "write one JSON object per line"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{file}, line {number} is not UTF-8; save the file as UTF-8") from error
        except RecursionError as error:
            raise DataError(f"{file}, line {number} {TOO_DEEP}") from error
        except ValueError as error:
            raise DataError(f"{file}, line {number} holds a number of thousands of digits; take it out") from error
        except (EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"{file} is damaged after line {number} ({error}); write the file again") from error


def _parquet_rows(file: Path) -> Iterator[RawRow]:
    import pyarrow as pa  # noqa: PLC0415 -- a second of import, for one of the formats
    import pyarrow.parquet as pq  # noqa: PLC0415

    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield RawRow(file, "row", number, value)
    except pa.ArrowException as error:
        raise DataError(
            f"{file} is no readable Parquet ({str(error).splitlines()[0]}); write the file again"
        ) from error
