"""The command line. A fault in it is a SpecError, so that it reaches the termination message like any other."""

import argparse
from collections.abc import Sequence
from typing import Final, NoReturn

from flywheel_analysis.engine import MEMORY_LIMIT
from flywheel_analysis.errors import SpecError

RUN: Final = "run"
BASELINE: Final = "baseline"
COVARIATES: Final = "covariates"
COMMANDS: Final = {
    RUN: "Measure a test (what is done where no command is named).",
    BASELINE: "Measure all users of a window before a test, for its power.",
    COVARIATES: "Derive covariates from a log before T0.",
}
PROGRAM: Final = "flywheel-analysis"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{message}; {self.prog} --help tells more")


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The arguments, with `command`.

    Raises:
        SpecError: they are not as --help says.
        SystemExit: --help was asked for.
    """
    command = given[0] if given and given[0] in COMMANDS else RUN
    rest = list(given[1:] if given and given[0] in COMMANDS else given)
    parser = _Parser(
        prog=PROGRAM if command == RUN else f"{PROGRAM} {command}",
        description=COMMANDS[command],
        epilog="commands: " + "; ".join(f"{name}: {text}" for name, text in COMMANDS.items()),
        allow_abbrev=False,
    )
    log = "a lineage's log, with exposures/ and events/ below it"
    parser.add_argument("--log", metavar="URI", required=command == COVARIATES, help=log)
    if command == COVARIATES:
        parser.add_argument("--before", required=True, metavar="TIME", help="T0, e.g. 2026-03-02T00:00:00Z")
        parser.add_argument("--days", type=int, help="look at so many days before T0 (all)")
        parser.add_argument("--output", required=True, metavar="URI", help="file or URI, .parquet or .jsonl")
    else:
        _tables(parser)
        parser.add_argument("--spec", metavar="FILE", help="an ABTest, or an AnalysisSpec")
        parser.add_argument("--test", help="rows of other tests are left out (the ABTest's name)")
        parser.add_argument("--start", required=True, metavar="TIME", help="T0, e.g. 2026-03-02T00:00:00Z")
        parser.add_argument("--end", required=True, metavar="TIME", help="T1, the first moment that does not count")
        parser.add_argument("--format", choices=("json", "table"), default="json", help="what is printed (json)")
        parser.add_argument("--report", metavar="URI", help="leave the whole report there as JSON")
    parser.add_argument("--day-length", metavar="DURATION", help="e.g. 5m, where the spec does not say it (24h)")
    parser.add_argument("--termination-log", metavar="FILE", help="leave the AnalysisResult there")
    parser.add_argument("--memory-limit", default=MEMORY_LIMIT, help=f"of DuckDB; more is spilled ({MEMORY_LIMIT})")
    parser.add_argument("--threads", type=int, help="of DuckDB (one per core)")
    arguments = parser.parse_args(rest)
    arguments.command = command
    return arguments


def _tables(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--exposures", metavar="PLACE", help="file, folder, bucket or table URL")
    parser.add_argument("--events", metavar="PLACE", help="likewise")
    parser.add_argument("--covariates", metavar="PLACE", help="likewise; optional")
