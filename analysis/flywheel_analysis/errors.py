"""How an analysis fails. The class says whether another attempt can help; the message says what to mend, with names."""

from typing import ClassVar

from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.experiment import AnalysisReason


class AnalysisError(Exception):
    """The analysis cannot go on. The message ends up in the object's status."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAULT
    reason: ClassVar[AnalysisReason] = AnalysisReason.FAULT


class SpecError(AnalysisError):
    """The command line or the spec cannot be read, or asks for something that does not exist."""

    exit_code = ExitCode.USAGE
    reason = AnalysisReason.INVALID_SPEC


class DataError(AnalysisError):
    """A file or table is missing or wrong."""

    exit_code = ExitCode.DATA
    reason = AnalysisReason.INVALID_DATA


class SourceUnavailableError(AnalysisError):
    """The database or the store did not answer; another attempt may help."""

    reason = AnalysisReason.SOURCE_UNAVAILABLE
