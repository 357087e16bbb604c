"""From rows to one row per exposed user, as ibis expressions: the same for files and for every warehouse."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from operator import add
from typing import Final

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from flywheel_analysis import metrics
from flywheel_analysis.period import Period
from flywheel_analysis.tables import SECOND, TIME
from flywheel_contract.experiment import Arm
from flywheel_contract.online import EventType

USER: Final = "user_id"
ARM: Final = "arm"
KEY: Final = "fw_key"
"""What stands for a user in joins and groups: a number where the engine can give one, else the id."""
BEGAN: Final = "fw_began"
BOTH: Final = "in_both"
FALLBACK: Final = "fallback_user"
FALLBACK_EVENTS: Final = "fallback_events"
EVENTS: Final = "counted_events"
COVERED: Final = "has_covariates"
DIMENSION: Final = "dim_{}"
"""The per-user column of a dimension by its index."""

_MASK_DAYS: Final = 30
"""Up to so many days fit into the bits of the smallest integer that an engine takes a `1` for."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """One row per exposed user: KEY, USER, ARM, BEGAN, BOTH, FALLBACK and dimensions."""

    table: ir.Table

    def counted(self) -> ir.Table:
        """Those of one arm."""
        return self.table.filter(~self.table[BOTH])


def exposed(
    exposures: ir.Table,
    period: Period,
    test: str = "",
    dimensions: Sequence[tuple[int, str]] = (),
    *,
    named: bool = False,
) -> ir.Table:
    """The first exposure of each user inside the window, one row a user; those of both arms are marked.

    Rows without a user, of an unknown arm, of users who are not enrolled, or of another test do not count; where
    `named` is set, neither do those that name no test.
    """
    rows = _inside(exposures, period)
    rows = rows.filter(rows[USER].notnull(), rows[ARM].isin([arm.value for arm in Arm]))
    if "enrolled" in rows.columns:
        rows = rows.filter(rows["enrolled"].coalesce(True))
    if test and "test" in rows.columns:
        rows = rows.filter((rows["test"] == test) if named else _of_test(rows, test))
    rows = rows.mutate(fw_fallback=_flag(_fallback(rows)))
    if dimensions:
        order = [rows[TIME], *(rows[name] for _, name in dimensions)]
        rows = rows.mutate(fw_rank=ibis.row_number().over(group_by=USER, order_by=order))
    found = rows.group_by(USER).aggregate(
        **{
            ARM: rows[ARM].min(),
            "fw_other": rows[ARM].max(),
            BEGAN: rows[TIME].min(),
            FALLBACK: rows["fw_fallback"].max(),
            **{
                DIMENSION.format(i): rows[name].cast("string").max(where=rows["fw_rank"] == 0) for i, name in dimensions
            },
        }
    )
    return found.mutate(**{BOTH: found[ARM] != found["fw_other"]}).drop("fw_other")


def values(exposures: ir.Table, period: Period, column: str) -> ir.Table:
    """What stands in `column` of the exposures inside the window, as `value`: for a message when nobody counts."""
    rows = _inside(exposures, period)
    found = rows.filter(rows[column].notnull()).select(value=rows[column]).distinct()
    return found.order_by("value").limit(5)


def with_key(table: ir.Table) -> ir.Table:
    """Numbers the users, which makes joins and groups by user cheaper; only for a table that is then kept."""
    return table.mutate(**{KEY: ibis.row_number()})


def counted_events(events: ir.Table, users: Exposed, period: Period, test: str = "") -> ir.Table:
    """The events of exposed users from their first exposure to the end of the window, with KEY, ARM and `day`."""
    rows = events.filter(events[TIME] < _moment(period.end, events[TIME]))
    if test and "test" in rows.columns:
        rows = rows.filter(_of_test(rows, test))
    known = users.counted()
    known = known.select(fw_user=known[USER], fw_arm=known[ARM], fw_from=known[BEGAN], fw_id=known[KEY])
    rows = rows.drop([c for c in rows.columns if c in {KEY, ARM, "day"}])
    joined = rows.inner_join(known, rows[USER] == known["fw_user"])
    joined = joined.filter(joined[TIME] >= joined["fw_from"])
    joined = joined.mutate(day=day_of(joined, period))
    if "value" not in joined.columns:
        joined = joined.mutate(value=ibis.null("float64"))
    return joined.rename({KEY: "fw_id", ARM: "fw_arm"}).drop("fw_user", "fw_from")


def day_of(rows: ir.Table, period: Period) -> ir.IntegerValue:
    """The index of the day, 0 the first of the window; what lies before the window has negative ones."""
    if SECOND in rows.columns:
        seconds = rows[SECOND]
    else:
        # Cut to whole seconds first: an engine may round what it turns into an integer.
        seconds = rows[TIME].truncate("s").epoch_seconds()
    return ((seconds - period.first_second) // period.day_seconds).cast("int32")


def summed(counted: ir.Table, period: Period, by: Sequence[str] = (KEY,)) -> ir.Table:
    """The counts of each group (a user, or a user within a dimension) of `counted_events`."""
    kind = counted["type"]
    message = kind == EventType.MESSAGE.value
    if period.days <= _MASK_DAYS:
        # Much cheaper than counting distinct days: one integer a user.
        days = (ibis.literal(1, "int64") << counted["day"]).bit_or(where=message)
    else:
        days = counted["day"].nunique(where=message)
    value = counted["value"]
    found = counted.group_by(list(by)).aggregate(
        **{
            metrics.ACTIVE_DAYS: days,
            metrics.MESSAGES: counted.count(where=message),
            metrics.VIOLATIONS: counted.count(where=kind == EventType.SAFETY_VIOLATION.value),
            metrics.REFUSALS: counted.count(where=kind == EventType.FALSE_REFUSAL.value),
            metrics.ERRORS: counted.count(where=kind == EventType.ERROR.value),
            metrics.LATENCY_SUM: value.sum(where=message),
            metrics.LATENCY_COUNT: value.count(where=message),
            **_served(counted),
        }
    )
    if "fallback" not in counted.columns:
        found = found.mutate(**{EVENTS: ibis.literal(0, "int64"), FALLBACK_EVENTS: ibis.literal(0, "int64")})
    if period.days <= _MASK_DAYS:
        mask = found[metrics.ACTIVE_DAYS].coalesce(0)
        bits = ((mask >> day) & 1 for day in range(period.days))
        found = found.mutate(**{metrics.ACTIVE_DAYS: reduce(add, bits)})
    return found


def per_user(users: Exposed, *parts: ir.Table) -> ir.Table:
    """One row per exposed user of one arm, without the id; numbers are never null.

    `parts` are tables by KEY: the one of `summed`, that of `covariates_by_key`, that of `own_metrics`.
    """
    known = users.counted()
    rows = known
    for index, part in enumerate(parts):
        rows = rows.left_join(part, KEY, rname=f"fw_{index}_{{name}}")
    more = [c for c in rows.columns if c.startswith(metrics.OWN_PREFIX)]
    dimensions = [c for c in known.columns if c.startswith(DIMENSION.format(""))]
    return rows.select(
        rows[ARM],
        *(rows[c] for c in dimensions),
        **derived(rows),
        **{c: rows[c].cast("float64").coalesce(0.0) for c in more},
        **_covariates(rows),
        **{FALLBACK: _flag(rows[FALLBACK] + rows[FALLBACK_EVENTS].coalesce(0) > 0)},
    )


def derived(rows: ir.Table) -> dict[str, ir.Value]:
    """All per-user columns of the built-in metrics, out of those of `summed`."""
    whole = (metrics.ACTIVE_DAYS, metrics.MESSAGES, metrics.VIOLATIONS, metrics.REFUSALS, metrics.ERRORS,
             metrics.LATENCY_COUNT, EVENTS, FALLBACK_EVENTS)  # fmt: skip
    found: dict[str, ir.Value] = {c: rows[c].coalesce(0).cast("int64") for c in whole}
    messages = found[metrics.MESSAGES]
    return found | {
        metrics.ACTIVE: _flag(messages > 0),
        metrics.MESSAGES_CAPPED: ibis.least(messages, metrics.MESSAGES_CAP),
        metrics.REQUESTS: messages + found[metrics.ERRORS],
        metrics.LATENCY_SUM: rows[metrics.LATENCY_SUM].cast("float64").coalesce(0.0),
    }


def _covariates(rows: ir.Table) -> dict[str, ir.Value]:
    def number(name: str) -> ir.Value:
        return rows[name].cast("float64").coalesce(0.0) if name in rows.columns else ibis.literal(0.0, "float64")

    covered = rows[COVERED].coalesce(0) if COVERED in rows.columns else ibis.literal(0, "int64")
    return {**{name: number(name) for name in metrics.COVARIATE_COLUMN.values()}, COVERED: covered}


def covariates_by_key(table: ir.Table, users: Exposed) -> ir.Table:
    """The covariates of exposed users by KEY, whatever the table holds; of several rows the largest number stands."""
    known = users.counted()
    known = known.select(fw_user=known[USER], **{KEY: known[KEY]})
    names = [n for n in metrics.COVARIATE_COLUMN.values() if n in table.columns]
    rows = table.select(USER, *names).inner_join(known, table[USER] == known["fw_user"])
    found = rows.group_by(KEY).aggregate(**{COVERED: rows.count(), **{n: rows[n].max() for n in names}})
    return found.mutate(**{COVERED: ibis.literal(1, "int64")})


def covariates_before(events: ir.Table, period: Period, since: datetime | None = None) -> ir.Table:
    """The covariates of all users who wrote before the window (from `since` on, where it is given)."""
    rows = events.filter(
        events[TIME] < _moment(period.start, events[TIME]),
        events[USER].notnull(),
        events["type"] == EventType.MESSAGE.value,
    )
    if since is not None:
        rows = rows.filter(rows[TIME] >= _moment(since, rows[TIME]))
    rows = rows.select(USER, day=day_of(rows, period))
    return rows.group_by(USER).aggregate(pre_messages=rows.count(), pre_active_days=rows["day"].nunique())


def everybody(exposures: ir.Table, events: ir.Table, period: Period) -> ir.Table:
    """Exposures of all users of a log, as if all were in one arm: what a baseline is measured on."""
    parts = [_inside(table, period) for table in (exposures, events)]
    kind = parts[0][TIME].type()
    rows = ibis.union(*(part.select(USER, **{TIME: part[TIME].cast(kind)}) for part in parts))
    return rows.mutate(**{ARM: ibis.literal(Arm.CONTROL.value)})


def once(events: ir.Table, repeated: ir.Table | None = None) -> ir.Table:
    """The events, each `event_id` once: the earliest row stands. Rows without an id all stand.

    `repeated` holds the hashes (column `fw_hash`) of all ids that may occur twice; only those rows are then compared.
    """
    if repeated is None:
        ranked = events.mutate(fw_rank=ibis.row_number().over(group_by=events["event_id"], order_by=_order(events)))
        return ranked.filter((ranked["fw_rank"] == 0) | ranked["event_id"].isnull()).drop("fw_rank")
    hashed = events.mutate(fw_hash=events["event_id"].hash())
    suspects = once(hashed.semi_join(repeated, "fw_hash"))
    return hashed.anti_join(repeated, "fw_hash").union(suspects).drop("fw_hash")


def _order(events: ir.Table) -> list[ir.Value]:
    # Beyond the time only so that the same rows give the same answer, in whatever order they are read.
    return [events[c] for c in (TIME, USER, "type", "value") if c in events.columns]


def _served(counted: ir.Table) -> dict[str, ir.Value]:
    """The counts behind the share of events that production served, where rows tell it."""
    if "fallback" not in counted.columns:
        return {}
    return {EVENTS: counted.count(), FALLBACK_EVENTS: counted.count(where=_fallback(counted))}


def _flag(truth: ir.BooleanValue) -> ir.IntegerValue:
    # Not every engine casts truth values to numbers.
    return ibis.ifelse(truth, 1, 0).cast("int64")


def _of_test(rows: ir.Table, test: str) -> ir.BooleanValue:
    return rows["test"].isnull() | (rows["test"] == test)


def _fallback(rows: ir.Table) -> ir.BooleanValue:
    return rows["fallback"].coalesce(False) if "fallback" in rows.columns else ibis.literal(False)


def _inside(rows: ir.Table, period: Period) -> ir.Table:
    time = rows[TIME]
    return rows.filter(time >= _moment(period.start, time), time < _moment(period.end, time))


def _moment(time: datetime, column: ir.TimestampValue) -> ir.TimestampScalar:
    """`time` as a literal of the column's type, with a zone or without."""
    kind = column.type()
    zone = kind.timezone if isinstance(kind, dt.Timestamp) else None
    text = time.strftime("%Y-%m-%d %H:%M:%S")
    return ibis.literal(text, type=dt.Timestamp(timezone=None if zone is None else "UTC"))
