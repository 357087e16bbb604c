"""Where the rows come from: files, a lineage's log, or a warehouse. All give the same tables."""

import contextlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import ibis.expr.types as ir

from flywheel_analysis import users
from flywheel_analysis.engine import Engine
from flywheel_analysis.errors import DataError, SpecError
from flywheel_analysis.stores import Store
from flywheel_analysis.tables import TableName
from flywheel_analysis.warehouse import Warehouse, is_url
from flywheel_contract.online import LogTable


@dataclass(frozen=True, slots=True)
class Places:
    """What the command line names: a log, or tables one by one."""

    log: str | None = None
    exposures: str | None = None
    events: str | None = None
    covariates: str | None = None

    def __str__(self) -> str:
        return self.log or ", ".join(p for p in (self.exposures, self.events, self.covariates) if p)


class Source(Protocol):
    """Tables, and how expressions over them come into the embedded engine."""

    engine: Engine
    exposures: ir.Table
    events: ir.Table
    covariates: ir.Table | None
    notes: list[str]
    is_log: bool
    """Whether it holds what came before the test, so that covariates are derived from it."""

    def keep_users(self, name: str, expression: ir.Table) -> users.Exposed:
        """One row per exposed user, for joins; computed once where that is possible."""
        ...

    def here(self, name: str, known: users.Exposed) -> users.Exposed:
        """The same users as a table of the embedded engine."""
        ...

    def materialise(self, name: str, expression: ir.Table) -> ir.Table:
        """The rows of `expression` as a table of the embedded engine."""
        ...

    def once(self, events: ir.Table) -> ir.Table:
        """The events without duplicates."""
        ...

    def close(self) -> None:
        """Lets go of connections."""
        ...


@dataclass
class FileSource:
    """Files, read by the embedded engine itself."""

    engine: Engine
    exposures: ir.Table
    events: ir.Table
    covariates: ir.Table | None
    place: str
    notes: list[str] = field(default_factory=list)
    is_log: bool = False
    event_rows: int | None = None
    """How many events there are at most, where that is known without reading them."""

    def keep_users(self, name: str, expression: ir.Table) -> users.Exposed:
        """As in `Source`; users are numbered, which makes joins cheaper."""
        return users.Exposed(self.engine.settle(name, users.with_key(expression), place=self.place))

    def here(self, name: str, known: users.Exposed) -> users.Exposed:
        """As in `Source`: there they are."""
        del name
        return known

    def materialise(self, name: str, expression: ir.Table) -> ir.Table:
        """As in `Source`."""
        return self.engine.settle(name, expression, place=self.place)

    def once(self, events: ir.Table) -> ir.Table:
        """As in `Source`: first the hashes of ids that occur twice are looked for, which are few or none."""
        if "event_id" not in events.columns:
            return events
        hashes = events.filter(events["event_id"].notnull()).select(fw_hash=events["event_id"].hash())
        repeated = self.engine.occurring_twice(hashes, most=self.event_rows, place=self.place)
        return events if repeated is None else users.once(events, repeated)

    def close(self) -> None:
        """As in `Source`; the engine is its owner's to close."""


@dataclass
class WarehouseSource:
    """Tables of a warehouse, where all work on rows is done."""

    engine: Engine
    exposures: ir.Table
    events: ir.Table
    covariates: ir.Table | None
    warehouse: Warehouse
    notes: list[str] = field(default_factory=list)
    is_log: bool = False

    def keep_users(self, name: str, expression: ir.Table) -> users.Exposed:
        """As in `Source`: a part of the query, so that reading rights are enough."""
        del name
        return users.Exposed(expression.mutate(**{users.KEY: expression[users.USER]}))

    def here(self, name: str, known: users.Exposed) -> users.Exposed:
        """As in `Source`."""
        return users.Exposed(self.materialise(name, known.table.drop(users.USER, users.BEGAN)))

    def materialise(self, name: str, expression: ir.Table) -> ir.Table:
        """As in `Source`, batch by batch."""
        with self.warehouse.explained("the query"):
            batches: Any = expression.to_pyarrow_batches()
            return self.engine.keep(name, batches)

    def once(self, events: ir.Table) -> ir.Table:
        """As in `Source`."""
        return users.once(events) if "event_id" in events.columns else events

    def close(self) -> None:
        """As in `Source`."""
        self.warehouse.close()


def open_source(places: Places, engine: Engine, store: Store, dimensions: tuple[str, ...] = ()) -> Source:
    """The tables that `places` name.

    Raises:
        SpecError: nothing is named, or tables of different kinds are.
        DataError: a file or table is missing or wrong.
        SourceUnavailableError: a store or database does not answer.
    """
    if places.log is not None:
        return _log(places.log, engine, store, dimensions)
    if places.exposures is None or places.events is None:
        raise SpecError("name --exposures and --events, or a --log that holds both")
    urls = [p for p in (places.exposures, places.events, places.covariates) if p is not None]
    if any(map(is_url, urls)):
        if not all(map(is_url, urls)):
            raise SpecError("give all tables as files, or all as tables of one database")
        return _warehouse(places.exposures, places.events, places.covariates, engine)
    return _files(places, places.exposures, places.events, engine, store, dimensions)


def _log(log: str, engine: Engine, store: Store, dimensions: tuple[str, ...]) -> FileSource:
    base = log.rstrip("/")
    found = [store.find(f"{base}/{table.value}") for table in (LogTable.EXPOSURES, LogTable.EVENTS)]
    # A log begins with the first user: what is not there yet holds no rows.
    exposures = engine.view(TableName.EXPOSURES, found[0], dimensions)
    events = engine.view(TableName.EVENTS, found[1], dimensions)
    notes = [f"{f.place} holds no file" for f in found if not f.parquet and not f.json]
    return FileSource(engine, exposures, events, None, log, notes, is_log=True)


def _files(
    places: Places, exposures: str, events: str, engine: Engine, store: Store, dimensions: tuple[str, ...]
) -> FileSource:
    notes: list[str] = []
    tables: list[ir.Table] = []
    event_rows = None
    for name, place in ((TableName.EXPOSURES, exposures), (TableName.EVENTS, events)):
        found = store.find(place)
        if found.missing:
            raise DataError(f"{name.value}: there is no {place}")
        tables.append(engine.view(name, found, dimensions))
        event_rows = engine.row_count(found)
        notes += [f"{place} holds no rows"] if not found.parquet and not found.json else []
    covariates = None
    if places.covariates is not None:
        found = store.find(places.covariates)
        if found.missing:
            notes.append(f"covariates: there is no {places.covariates}; all are taken as 0")
        else:
            covariates = engine.view(TableName.COVARIATES, found)
    return FileSource(engine, tables[0], tables[1], covariates, str(places), notes, event_rows=event_rows)


def _warehouse(exposures: str, events: str, covariates: str | None, engine: Engine) -> WarehouseSource:
    warehouse = Warehouse(exposures)
    with contextlib.ExitStack() as undo:
        undo.callback(warehouse.close)
        source = WarehouseSource(
            engine,
            warehouse.table(TableName.EXPOSURES, exposures),
            warehouse.table(TableName.EVENTS, events),
            None if covariates is None else warehouse.table(TableName.COVARIATES, covariates),
            warehouse,
        )
        undo.pop_all()
    return source
