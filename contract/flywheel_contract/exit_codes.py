"""How a stage ends, seen from outside: the exit code of its container.

64 to 78 are the codes of BSD's sysexits.h: the user's mistake, which no retry mends.
"""

from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """The exit codes that a stage uses on purpose; every other one counts as a fault of the machine and is retried."""

    DONE = 0
    FAULT = 1
    """Something broke that another attempt may survive (disk full, out of memory, a library's error)."""
    USAGE = 64
    """The StageSpec cannot be read, or asks for something that does not exist."""
    DATA = 65
    """A data file is missing, empty or wrong, or nothing is left of it."""
    MODEL = 66
    """A model folder is missing or refused (pickle weights, remote code)."""
    NUMERIC = 70
    """Loss or reward became NaN or infinite; the same seed would do it again."""
    PERMISSION = 77
    """An artefact URI leaves its root."""
    CONFIG = 78
    """The configuration is valid but cannot work (no reward model, no policy)."""
    INTERRUPTED = 143
    """SIGTERM arrived and a checkpoint was saved: go on with another attempt, no retry is burnt."""


USER_MISTAKES: Final = range(64, 79)
"""The exit codes on which a Job fails at once."""
