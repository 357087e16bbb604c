"""Feedback in a lineage's own log: what users sent about a reply becomes the signals of its row.

The gateway writes events apart from turns (`flywheel_contract.online`). Where a source asks for it, the events of its
days lie beside the rows, in a folder that readers of rows pass by.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from flywheel_contract.online import FEEDBACK, Event, EventType
from flywheel_trainer.data.files import RawRow
from flywheel_trainer.errors import DataError

if TYPE_CHECKING:
    from flywheel_trainer.data.rows import Conversation

FOLDER: Final = "_feedback"
SIGNALS: Final[Mapping[EventType, str]] = {
    EventType.THUMBS_UP: "thumbsUp",
    EventType.THUMBS_DOWN: "thumbsDown",
    EventType.REGENERATE: "regenerate",
    EventType.CONTINUE: "continue",
    EventType.SHARE: "share",
    EventType.REPORT: "report",
}
assert SIGNALS.keys() == FEEDBACK


def with_feedback(rows: Iterable["Conversation"], events: Iterable[RawRow]) -> list["Conversation"]:
    """The rows with what `events` say of them.

    An event counts for the reply that it names, and only from the user who got that reply: ids of turns can be guessed
    or shared. Of several of one type the latest counts, with its value, or `true` where it has none.

    Raises:
        DataError: an event cannot be read; names file and line.
    """
    said: dict[tuple[str, str], dict[str, bool | float]] = {}
    for event in sorted((_event(raw) for raw in events), key=lambda event: event.ts):
        if event.type in SIGNALS and event.turn is not None:
            signals = said.setdefault((event.user_id, event.turn), {})
            signals[SIGNALS[event.type]] = True if event.value is None else event.value
    return [
        row.model_copy(update={"signals": {**row.signals, **found}})
        if row.turn is not None and (found := said.get((row.user, row.turn)))
        else row
        for row in rows
    ]


def _event(raw: RawRow) -> Event:
    try:
        return Event.model_validate(raw.value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{raw.place}: {where}: {first['msg']}; the gateway's log has another form") from error
