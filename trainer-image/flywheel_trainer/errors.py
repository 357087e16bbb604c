"""How a stage fails. The class says whether another attempt can help; the message says what to mend, with names."""

from typing import ClassVar

from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.stage_result import Reason


class StageError(Exception):
    """A stage cannot go on. The first sentence of the message ends up in the object's status."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAULT
    reason: ClassVar[Reason] = Reason.FAULT


class SpecError(StageError):
    """The StageSpec cannot be read, or asks for something that does not exist."""

    exit_code = ExitCode.USAGE
    reason = Reason.INVALID_SPEC


class DataError(StageError):
    """A data file is missing, empty or wrong, or nothing is left of it."""

    exit_code = ExitCode.DATA
    reason = Reason.INVALID_DATA


class ModelError(StageError):
    """A model folder is missing or refused."""

    exit_code = ExitCode.MODEL
    reason = Reason.INVALID_MODEL


class OutsideRootError(StageError):
    """An artefact URI leaves its root, by its text or by a symbolic link."""

    exit_code = ExitCode.PERMISSION
    reason = Reason.INVALID_URI


class ConfigError(StageError):
    """The spec is valid but cannot work: an input or a parameter does not fit the others, or the machine."""

    exit_code = ExitCode.CONFIG
    reason = Reason.INVALID_CONFIG


class NotFiniteError(StageError):
    """Loss or reward became NaN or infinite. The same seed would do it again."""

    exit_code = ExitCode.NUMERIC
    reason = Reason.NOT_FINITE


class Interrupted(StageError):
    """SIGTERM arrived; what is needed to go on has been saved."""

    exit_code = ExitCode.INTERRUPTED
    reason = Reason.INTERRUPTED


class StopNow(BaseException):
    """Raised by the SIGTERM handler where nothing unsaved can be lost, past every `except Exception` of a library."""
