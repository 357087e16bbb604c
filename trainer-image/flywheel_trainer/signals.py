"""Examples of a user signal: a reply in its context, and whether the user gave the signal after it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from flywheel_contract.params import SignalParams
from flywheel_trainer.data.rows import Conversation, Message
from flywheel_trainer.errors import DataError


@dataclass(frozen=True, slots=True)
class SignalExample:
    """A reply that a user saw. `messages` ends with it."""

    row: Conversation
    messages: list[Message]
    given: bool
    time: datetime | None


def examples(rows: Sequence[Conversation], params: SignalParams) -> tuple[list[SignalExample], Counter[str]]:
    """All examples that `rows` hold, and how many replies are left out for what reason.

    Raises:
        DataError: the signal, or the time, of a row cannot be read; names the conversation.
    """
    counts: Counter[str] = Counter({"rows": len(rows)})
    found = (
        _from_conversations(rows, params, counts)
        if params.source == "Conversation"
        else _from_rows(rows, params, counts)
    )
    return found, counts


def _from_rows(rows: Sequence[Conversation], params: SignalParams, counts: Counter[str]) -> list[SignalExample]:
    """One example for each row that ends with a reply and says something of the signal."""
    found = []
    for row in rows:
        given = _said(row, params)
        if row.messages[-1]["role"] != "assistant":
            counts["dropped-no-reply"] += 1
        elif given is None:
            counts["dropped-no-signal"] += 1
        else:
            found.append(SignalExample(row, row.messages, given, _time(row)))
    return found


def _from_conversations(
    rows: Sequence[Conversation], params: SignalParams, counts: Counter[str]
) -> list[SignalExample]:
    """Whether the user went on after each reply.

    The gateway writes a row for each turn with all that its client sent, which may be a window of the history: only
    the latest row of a conversation tells which reply was the last. After it nobody knows yet, unless much newer rows
    show that the user has had time enough. A reply that no message of the user precedes is the character's opening: a
    log has it only because the user answered, so it tells nothing.
    """
    latest: dict[tuple[str, str], Conversation] = {}
    for row in rows:
        before = latest.get((row.user, row.conversation))
        if before is None or _age(row) >= _age(before):
            latest[row.user, row.conversation] = row
    counts["dropped-earlier-turn"] += len(rows) - len(latest)
    times = [time for row in rows if (time := _time(row)) is not None]
    settled = max(times) - timedelta(seconds=params.settled_after_seconds) if times else None
    found = []
    for row in latest.values():
        time = _time(row)
        asked = [index for index, message in enumerate(row.messages) if message["role"] == "user"]
        for index, message in enumerate(row.messages):
            if message["role"] != "assistant":
                continue
            if not asked or index < asked[0]:
                counts["dropped-opening"] += 1
                continue
            given: bool | None = index < asked[-1]
            if index == len(row.messages) - 1 and not given:
                given = _own(row, params)
                if given is None and time is not None and settled is not None and time <= settled:
                    given = False
            if given is None:
                counts["dropped-unsettled"] += 1
            else:
                found.append(SignalExample(row, row.messages[: index + 1], given, time))
    return found


def _said(row: Conversation, params: SignalParams) -> bool | None:
    own = _own(row, params)
    return False if own is None and params.absent == "Negative" else own


def _own(row: Conversation, params: SignalParams) -> bool | None:
    """What the row itself says of the signal."""
    value = row.signals.get(params.name)
    if isinstance(value, str):
        raise DataError(
            f"conversation {row.conversation}: signals.{params.name} is the text {value[:40]!r}; "
            "write true, false or a number"
        )
    return None if value is None else value > 0


def _age(row: Conversation) -> tuple[datetime, int]:
    """Sorts the rows of a conversation as curation does: by time, then by length; those without a time come first."""
    return _time(row) or datetime.min.replace(tzinfo=UTC), len(row.messages)


def _time(row: Conversation) -> datetime | None:
    if row.time is None:
        return None
    try:
        time = datetime.fromisoformat(row.time)
    except ValueError as error:
        raise DataError(
            f"conversation {row.conversation}: time {row.time[:40]!r} is no RFC 3339 time; "
            "write it like 2026-05-01T10:00:00Z"
        ) from error
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
