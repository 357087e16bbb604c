"""Durations as Kubernetes writes them: `168h`, `5m`, `1h30m`, `20s`."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, StringConstraints

DURATION_PATTERN: Final = r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$"
_UNITS: Final = {"h": 3600, "m": 60, "s": 1}


def seconds(duration: str) -> int:
    """The length of `duration` in seconds.

    Raises:
        ValueError: it is no duration, or it is zero.
    """
    parts = re.findall(r"([0-9]+)([hms])", duration) if re.match(DURATION_PATTERN, duration) else []
    total = sum(int(number) * _UNITS[unit] for number, unit in parts)
    if total <= 0:
        raise ValueError(f"{duration!r} is no duration above zero: write it like 168h, 5m or 1h30m")
    return total


def _checked(duration: str) -> str:
    seconds(duration)
    return duration


Duration = Annotated[
    str, StringConstraints(pattern=DURATION_PATTERN, min_length=2, max_length=24), AfterValidator(_checked)
]
