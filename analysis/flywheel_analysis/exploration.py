"""Breakdown by a dimension: for looking around, never for deciding.

A dimension of the exposures parts the users (by the value at their first exposure). One of the events parts the events;
all exposed users stay, with zeros where they have none of a value, so that arms remain comparable.
"""

from typing import Final

import ibis.expr.types as ir

from flywheel_analysis import lifts, sufficient, users
from flywheel_analysis.lifts import Sufficient
from flywheel_analysis.metrics import PLAIN
from flywheel_analysis.period import Period
from flywheel_analysis.sources import Source
from flywheel_contract.experiment import Arm, Breakdown, Users

MOST_VALUES: Final = 20
"""So many values of a dimension are shown, those with the most users."""
NO_VALUE: Final = "(none)"
_VALUE: Final = "fw_value"


def explore(
    source: Source,
    per_user: ir.Table,
    events: ir.Table,
    period: Period,
    dimension: tuple[int, str],
    counts: Users,
    notes: list[str],
) -> list[Breakdown]:
    """The built-in metrics for each value of `dimension` (its index and name); what hinders it goes to `notes`."""
    index, name = dimension
    column = users.DIMENSION.format(index)
    totals = {Arm.CONTROL: counts.control, Arm.TREATMENT: counts.treatment}
    if column in per_user.columns:
        found = _values(source, per_user.rename({_VALUE: column}), name, notes)
        if found:
            return [_breakdown(name, value, arms) for value, arms in found]
    if name in events.columns:
        sums = users.summed(
            events.mutate(**{_VALUE: events[name].cast("string")}), period, (users.KEY, users.ARM, _VALUE)
        )
        table = source.materialise(f"fw_by_{index}", sums.select(users.ARM, _VALUE, **users.derived(sums)))
        found = _values(source, table, name, notes)
        if found:
            return [
                _breakdown(name, value, {arm: sufficient.with_zeros(arms[arm], totals[arm]) for arm in Arm})
                for value, arms in found
            ]
    notes.append(f"dimension {name}: no row of exposures or events has a value there")
    return []


def _values(source: Source, table: ir.Table, name: str, notes: list[str]) -> list[tuple[str, dict[Arm, Sufficient]]]:
    """Both arms for each value of the column _VALUE, the biggest first; nothing where no row has one."""
    table = table.mutate(**{_VALUE: table[_VALUE].coalesce(NO_VALUE)})
    sizes = table.group_by(_VALUE).aggregate(n=table.count())
    biggest = source.engine.rows(sizes.order_by(sizes["n"].desc(), sizes[_VALUE]).limit(MOST_VALUES + 1))
    shown = [row[_VALUE] for row in biggest[:MOST_VALUES]]
    if not set(shown) - {NO_VALUE}:
        return []
    if len(biggest) > MOST_VALUES:
        notes.append(f"dimension {name}: only the {MOST_VALUES} values with the most users are shown")
    found = sufficient.read(source.engine, table.filter(table[_VALUE].isin(shown)), (users.ARM, _VALUE), PLAIN)
    return [(value, {arm: found.get((arm.value, value), Sufficient()) for arm in Arm}) for value in shown]


def _breakdown(name: str, value: str, arms: dict[Arm, Sufficient]) -> Breakdown:
    control, treatment = arms[Arm.CONTROL], arms[Arm.TREATMENT]
    return Breakdown(
        dimension=name,
        value=value,
        users=Users(control=control.n, treatment=treatment.n),
        metrics=[lifts.measure(metric, control, treatment) for metric in PLAIN],
    )
