"""What the demo knows at a moment: the steps before the wheel turns, and the turns. The views only draw it."""

from dataclasses import dataclass, field
from datetime import datetime

from e2e.demo.objects import Turn


@dataclass
class Step:
    """Something that the demo itself does, such as building images."""

    title: str
    began: datetime
    ended: datetime | None = None
    note: str = ""

    def seconds(self, now: datetime) -> float:
        """How long it took, or has taken."""
        return ((self.ended or now) - self.began).total_seconds()


@dataclass
class Board:
    """All that there is to see."""

    began: datetime
    steps: list[Step] = field(default_factory=list)
    turns: dict[str, Turn] = field(default_factory=dict)
    planned: tuple[str, ...] = ()
    """Names of the turns in their order, those included that do not exist yet."""


def duration(seconds: float) -> str:
    """A duration as a clock shows it: 7 s, 2:05, 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
