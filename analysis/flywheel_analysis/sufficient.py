"""The sufficient statistics of a per-user table, in one query."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final

import ibis.expr.types as ir
from tea_tasting.aggr import Aggregates

from flywheel_analysis.engine import Engine
from flywheel_analysis.lifts import Sufficient
from flywheel_analysis.metrics import BUILTIN_COLUMNS, Metric

_COUNT: Final = "fw_n"


def read(
    engine: Engine, users: ir.Table, by: Sequence[str], metrics: Iterable[Metric], more: Sequence[str] = ()
) -> dict[tuple[Any, ...], Sufficient]:
    """The statistics of each group that has users, by the values of the columns `by`.

    `more` are columns whose sums are wanted besides.
    """
    wanted = list(metrics)
    columns = sorted({c for metric in wanted for c in metric.columns})
    pairs = sorted({p for metric in wanted for p in itertools.combinations(sorted(set(metric.columns)), 2)})
    grouped = users.group_by(list(by)) if by else users
    floats = {c: users[c].cast("float64") for c in columns}
    found = grouped.aggregate(
        **{
            _COUNT: users.count(),
            **{f"sum_{i}": users[c].sum() for i, c in enumerate(columns)},
            **{f"more_{i}": users[c].sum() for i, c in enumerate(more)},
            **{f"var_{i}": floats[c].var(how="sample") for i, c in enumerate(columns)},
            **{f"cov_{i}": floats[a].cov(floats[b], how="sample") for i, (a, b) in enumerate(pairs)},
        }
    )
    return {
        tuple(row[c] for c in by): _sufficient(row, columns, pairs, more) for row in engine.rows(found) if row[_COUNT]
    }


def _sufficient(
    row: dict[str, Any], columns: Sequence[str], pairs: Sequence[tuple[str, str]], more: Sequence[str]
) -> Sufficient:
    n = int(row[_COUNT])
    sums = {c: float(row[f"sum_{i}"]) for i, c in enumerate(columns)}
    moments = Aggregates(
        count_=n,
        mean_={c: value / n for c, value in sums.items()},
        # A single user has none: nothing that asks for a variance is measured then.
        var_={c: float(row[f"var_{i}"] or 0.0) for i, c in enumerate(columns)},
        cov_={pair: float(row[f"cov_{i}"] or 0.0) for i, pair in enumerate(pairs)},
    )
    return Sufficient(n, sums | {c: float(row[f"more_{i}"]) for i, c in enumerate(more)}, moments)


def with_zeros(found: Sufficient, users: int) -> Sufficient:
    """`found`, of built-in columns, with so many `users` in all: those who were not in it with zeros throughout."""
    missing = users - found.n
    if missing <= 0:
        return found
    zeros = dict.fromkeys(BUILTIN_COLUMNS, 0.0)
    pairs = {pair: 0.0 for pair in itertools.combinations(sorted(BUILTIN_COLUMNS), 2)}
    if not found.n:
        return Sufficient(users, zeros, Aggregates(users, zeros, zeros, pairs))
    old = found.moments
    nothing = Aggregates(missing, zeros, zeros, pairs)
    return Sufficient(users, found.sums, old + nothing)
