"""The report as a table for people."""

from flywheel_contract.experiment import AnalysisReport, BaselineReport, MetricResult


def report(measured: AnalysisReport) -> str:
    """One line per metric, below what was counted; exploration and notes at the end."""
    window, counts, ratio = measured.window, measured.users, measured.sample_ratio
    days = f"{window.days} days of {window.day_length_seconds} s"
    shown = "not known" if ratio.p_value is None else f"p = {ratio.p_value:.3g}"
    lines = [
        f"{measured.test or 'test'}: {window.start} to {window.end}, {days}",
        f"users: {counts.control} control, {counts.treatment} treatment; {counts.in_both_arms} seen in both arms are "
        f"left out; {counts.without_covariates} without covariates",
        f"sample ratio: {_number(ratio.observed_treatment_share)} treatment, {ratio.expected_treatment_share:.4g} "
        f"expected, {shown}",
        f"fallback: {counts.fallback} treatment users, {counts.fallback_events:.2%} of their events",
        "",
        *_aligned([_HEAD, *(_row(result) for result in measured.metrics)]),
    ]
    for part in measured.exploration:
        lines += [
            "",
            f"exploration, not for deciding: {part.dimension} = {part.value} "
            f"({part.users.control} control, {part.users.treatment} treatment)",
            *_aligned([_HEAD, *(_row(result) for result in part.metrics)]),
        ]
    return "\n".join([*lines, *(f"note: {note}" for note in measured.notes)])


def baseline(measured: BaselineReport) -> str:
    """One line per metric."""
    rows: list[tuple[str, ...]] = [("metric", "mean", "variance", "users")]
    for metric in measured.metrics:
        found = metric.statistics
        rows.append((metric.name, _number(found.mean), _number(found.variance), str(found.n)))
    head = f"{measured.users} users, {measured.window.start} to {measured.window.end}"
    return "\n".join([head, "", *_aligned(rows)])


_HEAD = ("metric", "control", "treatment", "lift", "95 % interval", "p", "difference at most", "status", "")


def _row(result: MetricResult) -> tuple[str, ...]:
    low, high = result.low, result.high
    interval = "" if low is None or high is None else f"[{low:+.2%}, {high:+.2%}]"
    return (
        result.name,
        _number(result.control.mean),
        _number(result.treatment.mean),
        "" if result.lift is None else f"{result.lift:+.2%}",
        interval,
        "" if result.p_value is None else f"{result.p_value:.3g}",
        _number(result.difference_upper),
        result.status.value,
        result.message,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
