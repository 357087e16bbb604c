"""The commands: each opens its source, measures, and answers a result for the operator and a text for people."""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from flywheel_analysis import analysis, arguments, baseline, covariates, sources, spec, text_table
from flywheel_analysis.engine import Engine
from flywheel_analysis.errors import SpecError
from flywheel_analysis.period import Period, parse_time
from flywheel_analysis.stores import Store
from flywheel_contract.durations import seconds
from flywheel_contract.experiment import (
    AnalysisReason,
    AnalysisReport,
    AnalysisResult,
    AnalysisSpec,
    MetricReading,
)


def run(parsed: argparse.Namespace) -> tuple[AnalysisResult | None, str]:
    """Does what the command line says; what measures nothing has no result.

    Raises:
        AnalysisError: one of its kinds.
    """
    store = Store()
    with tempfile.TemporaryDirectory(prefix="flywheel-analysis-") as folder:
        engine = Engine(memory_limit=parsed.memory_limit, threads=parsed.threads, temporary=folder)
        try:
            return _COMMANDS[parsed.command](parsed, engine, store)
        finally:
            engine.close()


def _measure(parsed: argparse.Namespace, engine: Engine, store: Store) -> tuple[AnalysisResult, str]:
    wanted = _spec(parsed)
    period = Period(parse_time(parsed.start), parse_time(parsed.end), wanted.day_length_seconds)
    source = sources.open_source(_places(parsed), engine, store, tuple(wanted.dimensions))
    with contextlib.closing(source):
        report = analysis.run(source, period, wanted)
    result = _result(report, wanted)
    written = json.dumps(report.to_json(), indent=1)
    if parsed.report is not None:
        digest = store.write(parsed.report, (written + "\n").encode())
        named = parsed.report if "://" in parsed.report else Path(parsed.report).absolute().as_uri()
        result = result.model_copy(update={"report_uri": named, "report_digest": digest})
    return result, written if parsed.format == "json" else text_table.report(report)


def _result(report: AnalysisReport, wanted: AnalysisSpec) -> AnalysisResult:
    counts = report.users
    found = {metric.name: metric for metric in report.metrics}
    seen = counts.control + counts.treatment + counts.in_both_arms
    window = f"from {report.window.start} to {report.window.end}"
    whose = f" of {report.test}" if report.test else ""
    return AnalysisResult(
        reason=AnalysisReason.SUCCEEDED if seen else AnalysisReason.NO_DATA,
        message=f"{counts.control} users in control and {counts.treatment} in treatment {window}"
        if seen
        else f"no exposure{whose} {window}",
        window=report.window,
        users=counts,
        sample_ratio=report.sample_ratio,
        metrics=[MetricReading.of(found[name]) for name in spec.deciding(wanted)],
    )


def _baseline(parsed: argparse.Namespace, engine: Engine, store: Store) -> tuple[AnalysisResult, str]:
    wanted = _spec(parsed)
    period = Period(parse_time(parsed.start), parse_time(parsed.end), wanted.day_length_seconds)
    source = sources.open_source(_places(parsed), engine, store)
    with contextlib.closing(source):
        measured = baseline.run(source, period, wanted)
    written = json.dumps(measured.to_json(), indent=1)
    result = AnalysisResult(
        reason=AnalysisReason.SUCCEEDED if measured.users else AnalysisReason.NO_DATA,
        message=f"{measured.users} users from {measured.window.start} to {measured.window.end}",
        baseline=measured,
    )
    if parsed.report is not None:
        store.write(parsed.report, (written + "\n").encode())
    return result, written if parsed.format == "json" else text_table.baseline(measured)


def _covariates(parsed: argparse.Namespace, engine: Engine, store: Store) -> tuple[None, str]:
    before = parse_time(parsed.before)
    if parsed.days is not None and parsed.days < 1:
        raise SpecError(f"--days {parsed.days}: at least 1")
    length = _day_seconds(parsed) or AnalysisSpec().day_length_seconds
    source = sources.open_source(sources.Places(log=parsed.log), engine, store)
    users = covariates.write(source, Period.before(before, length), parsed.days, parsed.output, store)
    return None, f"covariates of {users} users before {parsed.before} in {parsed.output}"


_COMMANDS = {arguments.RUN: _measure, arguments.BASELINE: _baseline, arguments.COVARIATES: _covariates}


def _places(parsed: argparse.Namespace) -> sources.Places:
    return sources.Places(parsed.log, parsed.exposures, parsed.events, parsed.covariates)


def _spec(parsed: argparse.Namespace) -> AnalysisSpec:
    """The spec of the file, or none, with what the command line says besides."""
    wanted = AnalysisSpec() if parsed.spec is None else spec.read(Path(parsed.spec))
    changes: dict[str, Any] = {}
    if parsed.test is not None:
        changes["test"] = parsed.test
    length = _day_seconds(parsed)
    if length is not None:
        changes["day_length_seconds"] = length
    return wanted.model_copy(update=changes)


def _day_seconds(parsed: argparse.Namespace) -> int | None:
    if parsed.day_length is None:
        return None
    try:
        length = seconds(parsed.day_length)
    except ValueError as error:
        raise SpecError(f"--day-length: {error}") from error
    if length > AnalysisSpec().day_length_seconds:
        raise SpecError(f"--day-length {parsed.day_length}: at most 24h")
    return length
