"""DuckDB, the embedded engine: files become views here, and the per-user table of every source lies here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import duckdb
import ibis
import ibis.expr.types as ir
import numpy as np

from flywheel_analysis.errors import AnalysisError, DataError, SourceUnavailableError, SpecError
from flywheel_analysis.stores import Found
from flywheel_analysis.tables import KNOWN, NUMBERS, REQUIRED, SECOND, TEXTS, TIME, TRUTHS, TableName

MEMORY_LIMIT: Final = "400MB"
"""What DuckDB may hold by default; more goes to the temporary folder."""
_SORTED_HERE: Final = 16_000_000
"""So many hashes, of 8 bytes each, are sorted outside of DuckDB's memory."""
_TIMES: Final = ("TIMESTAMP", "DATE")


class Engine:
    """A DuckDB of this process, in memory, which spills to `temporary`."""

    def __init__(
        self, *, memory_limit: str = MEMORY_LIMIT, threads: int | None = None, temporary: str | None = None
    ) -> None:
        """`temporary` is a folder; left out, spilling goes to `.tmp` of the working directory.

        Raises:
            SpecError: DuckDB does not take the settings.
        """
        settings: dict[str, Any] = {
            "memory_limit": memory_limit,
            "preserve_insertion_order": False,
            # Nothing is ever downloaded; all that is needed is built in.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        if threads is not None:
            settings["threads"] = threads
        if temporary is not None:
            settings["temp_directory"] = temporary
        try:
            self.backend = ibis.duckdb.connect(**settings)
        except duckdb.Error as error:
            raise SpecError(f"--memory-limit {memory_limit} or --threads {threads}: {_first_line(error)}") from error

    def close(self) -> None:
        """Lets go of all tables and files."""
        self.backend.disconnect()

    def view(self, name: TableName, found: Found, extra: tuple[str, ...] = (), alias: str | None = None) -> ir.Table:
        """The rows of files as a table with typed columns; without files, a table without rows.

        JSON files hold all known columns and the `extra` ones, null where a row has none.

        Raises:
            DataError: a needed column is missing or `ts` is no time.
        """
        alias = alias or name.value
        with explained(found.place):
            reader, columns = self._reader(name, found, extra)
            missing = [column for column in REQUIRED[name] if column not in columns]
            if missing:
                raise DataError(f"{found.place} has no column {missing[0]!r}: {name.value} need it")
            select = ", ".join(f"{_typed(c, kind, found.place)} AS {_quoted(c)}" for c, kind in columns.items())
            if TIME in columns:
                select += f", {_second(columns[TIME], found.place)} AS {SECOND}"
            self.backend.raw_sql(f"CREATE OR REPLACE TEMP VIEW {_quoted(alias)} AS SELECT {select} FROM {reader}")
            return self.backend.table(alias)

    def settle(self, name: str, expression: ir.Table, *, place: str = "the data") -> ir.Table:
        """Computes `expression` once and keeps it; `place` names what it reads, for messages."""
        with explained(place):
            sql = ibis.to_sql(expression, dialect="duckdb")
            self.backend.raw_sql(f"CREATE OR REPLACE TEMP TABLE {_quoted(name)} AS {sql}")
            return self.backend.table(name)

    def keep(self, name: str, batches: Any) -> ir.Table:  # noqa: ANN401 -- a pyarrow.RecordBatchReader
        """The rows of another database, batch by batch, as a table here."""
        self.backend.con.register("_batches", batches)
        self.backend.raw_sql(f"CREATE OR REPLACE TEMP TABLE {_quoted(name)} AS SELECT * FROM _batches")
        self.backend.con.unregister("_batches")
        return self.backend.table(name)

    def rows(self, expression: ir.Table, *, place: str = "the data") -> list[dict[str, Any]]:
        """A small result."""
        with explained(place):
            # Not by ibis, which imports pandas for it: that alone takes a second and 50 MB.
            cursor = self.backend.con.execute(ibis.to_sql(expression, dialect="duckdb"))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def occurring_twice(self, hashes: ir.Table, *, most: int | None, place: str = "the data") -> ir.Table | None:
        """The values of the one column of `hashes` that occur more than once, as column `fw_hash`; None if none does.

        `most` is the number of rows at most, where it is known without reading them.
        """
        with explained(place):
            sql = ibis.to_sql(hashes, dialect="duckdb")
            if most is not None and most <= _SORTED_HERE:
                # Three times cheaper than a group by, but in memory that DuckDB does not count.
                found = np.asarray(next(iter(self.backend.con.execute(sql).fetchnumpy().values())))
                found.sort()
                if not (found[1:] == found[:-1]).any():
                    return None
                del found
            self.backend.raw_sql(
                f"CREATE OR REPLACE TEMP TABLE fw_twice AS SELECT h.fw_hash FROM ({sql}) AS h(fw_hash) "
                "GROUP BY h.fw_hash HAVING count(*) > 1"
            )
            table = self.backend.table("fw_twice")
            return table if self.rows(table.limit(1)) else None

    def row_count(self, found: Found) -> int | None:
        """How many rows Parquet files hold, by their footers alone; None for other files."""
        if not found.parquet:
            return None
        files = ", ".join(map(_text, found.parquet))
        with explained(found.place):
            rows = self.backend.con.execute(f"SELECT sum(num_rows) FROM parquet_file_metadata([{files}])").fetchall()
        return int(rows[0][0])

    def copy(self, expression: ir.Table, path: str, *, place: str) -> None:
        """Writes `expression` to a local file, Parquet or JSON lines by its name."""
        kind = "PARQUET" if path.endswith((".parquet", ".pq")) else "JSON"
        with explained(place):
            sql = ibis.to_sql(expression, dialect="duckdb")
            self.backend.raw_sql(f"COPY ({sql}) TO {_text(path)} (FORMAT {kind})")

    def _reader(self, name: TableName, found: Found, extra: tuple[str, ...]) -> tuple[str, dict[str, str]]:
        if found.filesystem is not None and not set(self.backend.con.list_filesystems()) & set(found.protocols):
            self.backend.con.register_filesystem(found.filesystem)
        if found.parquet:
            files = ", ".join(map(_text, found.parquet))
            reader = f"read_parquet([{files}], union_by_name = true, hive_partitioning = false)"
            return reader, self._columns(reader)
        # Declared as text, because what a column looks like at the top of a file need not be what it is.
        declared = dict.fromkeys((*KNOWN[name], *extra), "VARCHAR")
        if not found.json:
            columns = ", ".join(f"CAST(NULL AS VARCHAR) AS {_quoted(c)}" for c in declared)
            return f"(SELECT {columns} LIMIT 0)", declared
        files = ", ".join(map(_text, found.json))
        layout = "auto" if all(".json" in file and ".jsonl" not in file for file in found.json) else "newline_delimited"
        options = f"format = '{layout}', hive_partitioning = false"
        sampled = self._columns(f"read_json([{files}], {options}, union_by_name = true)")
        sampled = {c: kind for c, kind in sampled.items() if c not in declared and c != "json"}
        declared |= {c: "VARCHAR" if kind == "JSON" else kind for c, kind in sampled.items()}
        struct = ", ".join(f"{_text(c)}: {_text(kind)}" for c, kind in declared.items())
        return f"read_json([{files}], {options}, columns = {{{struct}}})", declared

    def _columns(self, reader: str) -> dict[str, str]:
        rows = self.backend.con.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
        return {row[0]: row[1] for row in rows}


def _typed(column: str, kind: str, place: str) -> str:
    """SQL that gives `column`, of DuckDB's type `kind`, the type that the analysis expects."""
    name = _quoted(column)
    if column in TEXTS:
        return name if kind == "VARCHAR" else f"CAST({name} AS VARCHAR)"
    if column in TRUTHS:
        return name if kind == "BOOLEAN" else f"CAST({name} AS BOOLEAN)"
    if column in NUMBERS:
        number = name if kind == "DOUBLE" else f"TRY_CAST({name} AS DOUBLE)"
        return f"CASE WHEN isfinite({number}) THEN {number} END"
    if column != TIME:
        return name
    # A time without a zone is kept as it is: that compares with what stands in a Parquet file's statistics.
    return name if kind == "TIMESTAMP" else f"make_timestamp({_microseconds(kind, place)})"


def _second(kind: str, place: str) -> str:
    """SQL that gives the whole second of `ts`, rounded down (for times since 1970)."""
    return f"{_microseconds(kind, place)} // 1000000"


def _microseconds(kind: str, place: str) -> str:
    """SQL that gives the microseconds of `ts`, of DuckDB's type `kind`, since 1970 UTC."""
    if kind == "VARCHAR":
        # A text without a zone is read in the session's, which is UTC.
        return f"epoch_us(CAST({TIME} AS TIMESTAMPTZ))"
    if not kind.startswith(_TIMES):
        raise DataError(f"{place}: column 'ts' is {kind}: write timestamps")
    return f"epoch_us({TIME})" if kind.endswith("TIME ZONE") else f"epoch_us(CAST({TIME} AS TIMESTAMP))"


@contextmanager
def explained(place: str) -> Iterator[None]:
    """DuckDB's errors as ours: what the data are to blame for, and what another attempt may mend.

    Raises:
        DataError: the data are not what they should be.
        SourceUnavailableError: files could not be read.
        AnalysisError: memory or disk was short, or DuckDB failed.
    """
    try:
        yield
    except (duckdb.IOException, duckdb.HTTPException) as error:
        raise SourceUnavailableError(f"{place} cannot be read: {_first_line(error)}") from error
    except duckdb.OutOfMemoryException as error:
        text = f"DuckDB needs more memory for {place}: raise --memory-limit or free disk: {_first_line(error)}"
        raise AnalysisError(text) from error
    except (duckdb.DataError, duckdb.InvalidInputException, duckdb.BinderException) as error:
        raise DataError(f"{place}: {_first_line(error)}") from error
    except duckdb.Error as error:
        raise AnalysisError(f"DuckDB failed on {place}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0].strip()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
