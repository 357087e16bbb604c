"""The measurement of a test, from tables to the report."""

import importlib.metadata
from dataclasses import dataclass
from typing import Final

import ibis.expr.types as ir

from flywheel_analysis import exploration, lifts, own_metrics, sufficient, users
from flywheel_analysis.errors import DataError, SpecError
from flywheel_analysis.lifts import Sufficient
from flywheel_analysis.period import Period
from flywheel_analysis.sources import Source
from flywheel_analysis.spec import metrics_of
from flywheel_contract.experiment import AnalysisReport, AnalysisSpec, Arm, Users
from flywheel_contract.online import NOT_ENROLLED

_LIBRARIES: Final = ("duckdb", "flywheel-analysis", "ibis-framework", "tea-tasting")
_USER_SUMS: Final = (users.FALLBACK, users.FALLBACK_EVENTS, users.EVENTS, users.COVERED)
"""Per-user columns that say whom the test counted."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The tables that everything is measured on."""

    exposed: users.Exposed
    events: ir.Table
    users: ir.Table


def run(source: Source, period: Period, spec: AnalysisSpec) -> AnalysisReport:
    """Measures all metrics of `spec` and the built-in ones inside `period`.

    Raises:
        AnalysisError: one of its kinds, as the source found it.
    """
    on_exposures = [(i, n) for i, n in enumerate(spec.dimensions) if n in source.exposures.columns]
    notes = [*source.notes, *period.notes]
    exposed = users.exposed(source.exposures, period, spec.test, on_exposures, named=source.is_log)
    counted = count(source, period, spec, exposed)
    wanted = metrics_of(spec)
    found = sufficient.read(source.engine, counted.users, (users.ARM,), wanted, _USER_SUMS)
    control, treatment = (found.get((arm.value,), Sufficient()) for arm in Arm)
    table = counted.exposed.table
    both = table.filter(table[users.BOTH])
    in_both = source.engine.rows(both.aggregate(n=both.count()))[0]["n"]
    if not found and not in_both:
        notes.append(why_nobody(source, period, spec))
    counts = Users(
        control=control.n,
        treatment=treatment.n,
        in_both_arms=in_both,
        fallback=int(treatment.total(users.FALLBACK)),
        fallback_events=_share(treatment.total(users.FALLBACK_EVENTS), treatment.total(users.EVENTS)),
        without_covariates=sum(arm.n - int(arm.total(users.COVERED)) for arm in (control, treatment)),
    )
    explored = [
        breakdown
        for i, name in enumerate(spec.dimensions)
        for breakdown in exploration.explore(source, counted.users, counted.events, period, (i, name), counts, notes)
    ]
    return AnalysisReport(
        test=spec.test,
        window=period.window(),
        users=counts,
        sample_ratio=lifts.sample_ratio(control.n, treatment.n, spec.allocation.control, spec.allocation.treatment),
        metrics=[lifts.measure(metric, control, treatment) for metric in wanted],
        exploration=explored,
        notes=notes,
        versions={name: importlib.metadata.version(name) for name in _LIBRARIES if _installed(name)},
    )


def why_nobody(source: Source, period: Period, spec: AnalysisSpec) -> str:
    """Why there is no exposure.

    Raises:
        DataError: there are some, but their arms have other names.
    """

    def seen(column: str) -> list[str]:
        if column not in source.exposures.columns:
            return []
        table = source.materialise("fw_seen", users.values(source.exposures, period, column))
        return [row["value"] for row in source.engine.rows(table)]

    arms = [arm for arm in seen(users.ARM) if arm != NOT_ENROLLED]
    if arms and not {arm.value for arm in Arm} & set(arms):
        raise DataError(f"the exposures are of the arms {', '.join(map(repr, arms))}: write control and treatment")
    tests = seen("test") if spec.test else []
    if tests and spec.test not in tests:
        return f"no exposure is of {spec.test!r} but of {', '.join(map(repr, tests))}: --test names another"
    return "there is no exposure of an enrolled user in the window"


def count(source: Source, period: Period, spec: AnalysisSpec, exposed: ir.Table) -> Counted:
    """The users of `exposed` with their numbers, in a table of the embedded engine."""
    known = source.keep_users("fw_exposed", exposed)
    rows = source.once(source.events)
    events = users.counted_events(rows, known, period, spec.test)
    # One query for each part: none holds more than one big join at a time.
    parts = [source.materialise("fw_sums", users.summed(events, period))]
    covariates = source.covariates
    if covariates is None and source.is_log:
        covariates = users.covariates_before(rows.semi_join(known.table, users.USER), period)
    if covariates is not None:
        parts.append(source.materialise("fw_covariates", users.covariates_by_key(covariates, known)))
    if spec.metrics:
        try:
            parts.append(source.materialise("fw_own", own_metrics.per_key(events, spec.metrics)))
        except DataError as error:
            # The same rows have been read once by now: it is the metrics that do not fit them.
            raise SpecError(f"metrics: {error}") from error
    here = source.here("fw_here", known)
    return Counted(here, events, source.engine.settle("fw_users", users.per_user(here, *parts)))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
