"""The user's own metrics: SQL aggregates over the events of one user, checked before anything runs."""

from collections.abc import Sequence

import ibis
import ibis.expr.types as ir
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from flywheel_analysis import metrics
from flywheel_analysis.errors import SpecError
from flywheel_analysis.users import KEY
from flywheel_contract.experiment import BUILTIN_NAMES, MetricDefinition

DIALECT = "duckdb"
"""What own metrics are written in; ibis translates them for other engines."""
_ROWS = "fw_rows"


def check(definitions: Sequence[MetricDefinition]) -> None:
    """Refuses what is not a plain aggregate.

    Raises:
        SpecError: a name is taken, or an expression is no aggregate over a user's events.
    """
    seen = set(BUILTIN_NAMES)
    for definition in definitions:
        if definition.name in seen:
            raise SpecError(f"metrics: the name {definition.name} is taken: choose another")
        seen.add(definition.name)
        _parsed(definition.name, "numerator", definition.numerator)
        if definition.denominator is not None:
            _parsed(definition.name, "denominator", definition.denominator)


def per_key(counted: ir.Table, definitions: Sequence[MetricDefinition]) -> ir.Table:
    """The numerators and denominators of each user by KEY, over `counted_events`."""
    columns = {}
    for index, definition in enumerate(definitions):
        columns[metrics.own_numerator(index)] = definition.numerator
        if definition.denominator is not None:
            columns[metrics.own_denominator(index)] = definition.denominator
    backend = ibis.get_backend(counted)
    select = ", ".join(f"CAST({text} AS DOUBLE) AS {name}" for name, text in columns.items())
    (query,) = sqlglot.transpile(
        f"SELECT {KEY}, {select} FROM {_ROWS} GROUP BY {KEY}", read=DIALECT, write=backend.dialect
    )
    # With a schema given, ibis need not ask for one, which in some engines takes the right to make views.
    schema = {KEY: counted[KEY].type(), **dict.fromkeys(columns, "float64")}
    return backend.sql(f"WITH {_ROWS} AS ({backend.compile(counted)}) {query}", schema=schema)


def _parsed(metric: str, field: str, text: str) -> None:
    where = f"metric {metric}: {field} {text!r}"
    try:
        statements = sqlglot.parse(f"SELECT {text} AS x", dialect=DIALECT)
    except SqlglotError as error:
        raise SpecError(f"{where} is no SQL: {str(error).splitlines()[0]}") from error
    tree = statements[0]
    if not isinstance(tree, exp.Select):
        raise SpecError(f"{where} must be one expression")
    plain = (
        len(statements) == 1
        and len(tree.expressions) == 1
        and not any(node for node in tree.find_all(exp.Query) if node is not tree)
        and not any(tree.args.get(part) for part in ("from", "from_", "where", "group", "joins", "into"))
    )
    if not plain:
        raise SpecError(f"{where} must be one expression without subqueries")
    if tree.find(exp.Window):
        raise SpecError(f"{where} must be an aggregate, not a window function")
    if not tree.find(exp.AggFunc):
        raise SpecError(f"{where} must be an aggregate, e.g. count(*) FILTER (WHERE type = 'thumbs_up')")
