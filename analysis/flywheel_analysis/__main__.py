"""`flywheel-analysis`: measures an online test, prints the report, and leaves what the operator needs."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flywheel_analysis import arguments
from flywheel_analysis.errors import AnalysisError
from flywheel_contract import paths
from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.experiment import AnalysisReason, AnalysisResult

_MESSAGE_LENGTH: Final = 512
_log = logging.getLogger("flywheel_analysis")


def main(given: Sequence[str] | None = None) -> int:
    """Runs one command; whatever happens, the exit code and the termination message tell it."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    words = list(sys.argv[1:] if given is None else given)
    log = _termination_log(words)
    try:
        parsed = arguments.parse(words)
        # Late, because the libraries take a second to load, and a wrong command line needs none of them.
        from flywheel_analysis import commands  # noqa: PLC0415

        result, text = commands.run(parsed)
        _print(text)
    except Exception as error:  # noqa: BLE001 -- the boundary: every failure becomes an exit code and a reason
        code, reason, message = classify(error)
        _log.error("%s", message, exc_info=None if isinstance(error, AnalysisError) else error)
        _tell(AnalysisResult(reason=reason, message=_shortened(message)), log)
        return code
    if result is not None:
        _tell(result, log)
    return ExitCode.DONE


def _print(text: str) -> None:
    """Prints for a reader that may have read enough, such as `head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more at its end, and would fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def classify(error: BaseException) -> tuple[ExitCode, AnalysisReason, str]:
    """Exit code, reason and sentence of a failure."""
    if isinstance(error, AnalysisError):
        return error.exit_code, error.reason, _printable(str(error))
    return ExitCode.FAULT, AnalysisReason.FAULT, _printable(f"{type(error).__name__}: {error}")


def _termination_log(words: Sequence[str]) -> Path | None:
    """Where the result goes: the option, the environment, or the kubelet's file where there is one.

    Read before the arguments are parsed, because a wrong one is told there too.
    """
    for index, word in enumerate(words):
        if word == "--termination-log" and index + 1 < len(words):
            return Path(words[index + 1])
        if word.startswith("--termination-log="):
            return Path(word.split("=", 1)[1])
    named = os.environ.get("FLYWHEEL_TERMINATION_LOG")
    if named:
        return Path(named)
    kubelet = Path(paths.TERMINATION_LOG)
    return kubelet if kubelet.is_file() else None


def _tell(result: AnalysisResult, log: Path | None) -> None:
    if log is not None:
        log.write_text(result.to_termination_message(), encoding="utf-8")


def _printable(text: str) -> str:
    """`text` without lone surrogates, which a library's error may quote from a file and no JSON can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shortened(text: str) -> str:
    return text if len(text) <= _MESSAGE_LENGTH else text[: _MESSAGE_LENGTH - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())
