"""The window [T0, T1) of a measurement, and its days."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from flywheel_analysis.errors import SpecError
from flywheel_contract.experiment import Window

WHOLE_DAY: Final = 86400
"""Seconds of a day; days of this length are UTC dates, shorter ones are counted from T0."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Period:
    """[start, end), both in UTC and whole seconds, cut into days of `day_seconds`."""

    start: datetime
    end: datetime
    day_seconds: int = WHOLE_DAY

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise SpecError(f"the window ends at {_text(self.end)}, not after its start {_text(self.start)}")
        if self.start.microsecond or self.end.microsecond:
            raise SpecError("the window must begin and end at a whole second")

    @classmethod
    def before(cls, start: datetime, day_seconds: int) -> Self:
        """A window that begins at `start`, of which only what came before it matters."""
        return cls(start, start + timedelta(seconds=day_seconds), day_seconds)

    @property
    def first_second(self) -> int:
        """Where day 0 begins, in seconds since 1970: T0, or the midnight before it where days are UTC dates."""
        start = _seconds(self.start)
        return start - start % WHOLE_DAY if self.day_seconds == WHOLE_DAY else start

    @property
    def days(self) -> int:
        """How many days the window touches."""
        return -(-(_seconds(self.end) - self.first_second) // self.day_seconds)

    @property
    def notes(self) -> list[str]:
        """What a reader must know of a window that is not made of whole days."""
        length = _seconds(self.end) - self.first_second
        if self.first_second == _seconds(self.start) and length % self.day_seconds == 0:
            return []
        return ["the window is not made of whole days: activity in a part of a day counts as a day"]

    def window(self) -> Window:
        """The window as the report says it."""
        return Window(start=_text(self.start), end=_text(self.end), day_length_seconds=self.day_seconds, days=self.days)


def parse_time(text: str) -> datetime:
    """An ISO 8601 time in UTC; without a zone it is taken as UTC.

    Raises:
        SpecError: it is no time.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise SpecError(f"{text!r} is no time: write it like 2026-03-02T00:00:00Z") from error
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _seconds(time: datetime) -> int:
    return int((time - _EPOCH).total_seconds())


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
