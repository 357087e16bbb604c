"""Tables of a warehouse by connection URL, through ibis: `postgres://user@host/db?table=exposures`.

The work on the rows is done there, with reading rights alone; what comes here is one row per exposed user.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
from ibis.common.exceptions import IbisError, TableNotFound

from flywheel_analysis.errors import AnalysisError, DataError, SourceUnavailableError, SpecError
from flywheel_analysis.tables import NUMBERS, REQUIRED, TEXTS, TIME, TRUTHS, TableName

SCHEMES: Final = {
    "postgres": "postgres", "postgresql": "postgres", "trino": "trino", "spark": "pyspark", "pyspark": "pyspark",
    "clickhouse": "clickhouse", "bigquery": "bigquery", "snowflake": "snowflake", "mysql": "mysql",
    "duckdb": "duckdb",
}  # fmt: skip
"""Scheme of a URL -> ibis backend."""


def is_url(place: str) -> bool:
    """Whether `place` names a table of a warehouse."""
    return place.split("://", 1)[0] in SCHEMES if "://" in place else False


class Warehouse:
    """One connection, with the tables that are asked of it."""

    def __init__(self, url: str, connect: Callable[[str], Any] = ibis.connect) -> None:
        """`url` may name a table; `connect` gives an ibis backend.

        Raises:
            SpecError: the driver is not installed, or the URL is wrong.
            SourceUnavailableError: the database does not answer.
        """
        self.address, _ = split(url)
        self.shown = _without_password(self.address)
        backend = SCHEMES[self.address.split("://", 1)[0]]
        try:
            self.backend = connect(self.address)
        except (ImportError, ValueError, TypeError) as error:
            text = (
                f"{self.shown} cannot be used: {_first_line(error)}: install ibis-framework[{backend}] or mend the URL"
            )
            raise SpecError(text) from error
        except Exception as error:  # each driver has errors of its own
            raise SourceUnavailableError(f"{self.shown} does not answer: {_first_line(error)}") from error
        if self.backend.name == "postgres":
            # All rows are fetched: without this Postgres plans for the first tenth, by nested loops.
            self.backend.raw_sql("SET cursor_tuple_fraction = 1").close()

    def close(self) -> None:
        """Ends the connection."""
        self.backend.disconnect()

    def table(self, name: TableName, url: str) -> ir.Table:
        """The table that `url` names by `?table=` (and `?schema=`), with typed columns.

        Raises:
            SpecError: it names none.
            DataError: there is no such table, or a needed column is missing.
            SourceUnavailableError: the database does not answer.
        """
        address, options = split(url)
        if address != self.address:
            raise SpecError(f"{name.value}: all tables must lie in one database, {self.shown}")
        if "table" not in options:
            raise SpecError(f"{name.value}: add ?table=NAME to {self.shown}")
        with self.explained(options["table"]):
            database = options.get("schema")
            found = self.backend.table(options["table"], **({"database": database} if database else {}))
        missing = [column for column in REQUIRED[name] if column not in found.columns]
        if missing:
            raise DataError(f"table {options['table']} has no column {missing[0]!r}: {name.value} need it")
        if not isinstance(
            found[TIME].type() if TIME in found.columns else dt.timestamp, dt.Timestamp | dt.Date | dt.String
        ):
            raise DataError(f"table {options['table']}: column 'ts' is {found[TIME].type()}: write timestamps")
        return found.mutate(**{c: _typed(found[c]) for c in found.columns if c in TEXTS | TRUTHS | NUMBERS | {TIME}})

    @contextlib.contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Errors of any driver as ours.

        Raises:
            DataError: the database says that the query does not fit its tables.
            SourceUnavailableError: it does not answer, or anything else that another attempt may mend.
        """
        try:
            yield
        except AnalysisError:
            raise
        except (IbisError, TableNotFound) as error:
            raise DataError(f"{what} in {self.shown}: {_first_line(error) or type(error).__name__}") from error
        except Exception as error:  # each driver has errors of its own
            text = f"{what} in {self.shown}: {_first_line(error)}"
            # PEP 249 gives these names to what is wrong with a query or its data.
            names = {kind.__name__ for kind in type(error).__mro__}
            if names & {"DataError", "ProgrammingError"}:
                raise DataError(text) from error
            raise SourceUnavailableError(text) from error


def split(url: str) -> tuple[str, dict[str, str]]:
    """The URL of the connection, and what of its query is for us: `table` and `schema`."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    ours = {key: value for key, value in options if key in {"table", "schema"}}
    rest = urlencode([(key, value) for key, value in options if key not in ours])
    return urlunsplit(parts._replace(query=rest)), ours


def _typed(column: ir.Column) -> ir.Value:
    name = column.get_name()
    if name in TEXTS:
        return column.cast("string")
    if name in TRUTHS:
        return column.cast("boolean")
    if name in NUMBERS:
        number = column.cast("float64")
        return ibis.ifelse(number.isnan() | number.isinf(), None, number)
    kind = column.type()
    # Sessions are in UTC, so that a time without a zone is one in UTC.
    return column if isinstance(kind, dt.Timestamp) and kind.timezone else column.cast(dt.Timestamp(timezone="UTC"))


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    user = (parts.username or "") + "@" if parts.username else ""
    return urlunsplit(parts._replace(netloc=user + host, query=""))


def _first_line(error: Exception) -> str:
    password = os.environ.get("PGPASSWORD")
    text = str(error).strip().split("\n", 1)[0]
    return text.replace(password, "***") if password else text
