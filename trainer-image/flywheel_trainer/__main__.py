"""The command line: `flywheel-trainer <stage> [--spec FILE]`; `serve`, `probe`; `annotate`; `touched`."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Final

from flywheel_contract import paths
from flywheel_contract.stages import Stage
from flywheel_trainer import launch, logs, runner
from flywheel_trainer.usage import Parser

_OTHERS: Final = {
    "serve": "flywheel_trainer.serving.serve",
    "probe": "flywheel_trainer.serving.probe",
    "annotate": "flywheel_trainer.annotation.command",
    "touched": "flywheel_trainer.touched",
}
"""Commands that are no stage, and have options of their own."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a stage, or the model server, and answers the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in _OTHERS:
        # Imported only here: a stage needs no server, and the probe must be quick.
        return int(importlib.import_module(_OTHERS[arguments[0]]).main(arguments[1:]))
    parsed = _parser().parse_args(arguments)
    stage = Stage(parsed.stage)
    logs.configure(stage=stage.value)
    gang = launch.gang(stage)
    if gang is not None:
        return launch.run(arguments, stage, gang)
    return int(runner.run_stage(stage, parsed.spec))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="flywheel-trainer",
        description="Runs one stage of a generation as its StageSpec says, or serves a model.",
        epilog="serve, probe, annotate and touched have options of their own: flywheel-trainer serve --help",
    )
    parser.add_argument("stage", choices=[*(stage.value for stage in Stage), *_OTHERS])
    parser.add_argument(
        "--spec", type=Path, default=Path(paths.STAGE_SPEC), help="the StageSpec (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
