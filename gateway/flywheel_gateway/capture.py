"""What goes to the log of an exchange: exposures, events and turns, in the rows of the contract."""

import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import orjson

from flywheel_contract.experiment import Arm
from flywheel_contract.gateway_config import GatewayConfig
from flywheel_contract.online import Consent, Event, EventType, Exposure, LogTable
from flywheel_contract.online import Turn as LoggedTurn
from flywheel_gateway.calls import Said, logged
from flywheel_gateway.dialects import Turn
from flywheel_gateway.identity import Identity
from flywheel_gateway.log_writer import LogWriter
from flywheel_gateway.metrics import Metrics

EXPOSURES_REMEMBERED: Final = 200_000


def utc_now() -> datetime:
    """The gateway's clock: what stands in the log as `ts`."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request for a reply: whose, about what, and since when (`began` is of the monotonic clock)."""

    identity: Identity
    began: float
    character: str | None = None
    conversation: str = ""
    """The client's id, as it comes back to the client."""
    turn: str = ""
    consent: bool | None = None
    session: str | None = None


class Recorder:
    """Makes rows and hands them to the writer. Nothing here waits."""

    def __init__(
        self, config: GatewayConfig, writer: LogWriter, metrics: Metrics, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._config, self._writer, self._metrics, self._clock = config, writer, metrics, clock
        self._seen: OrderedDict[tuple[str, str, str | None, Arm | None], None] = OrderedDict()

    def exposure(
        self,
        exchange: Exchange,
        trigger: Literal["Session", "FirstRequest"],
        known: tuple[str | None, Arm | None] | None = None,
    ) -> None:
        """Logs that a user saw an arm: every session, and of requests the first one of a day, test and arm.

        `known` is the test and arm of the request's session, whose exposure was logged when it was opened.
        """
        identity, now = exchange.identity, self._clock()
        key = (identity.hashed, now.date().isoformat(), identity.test, identity.arm)
        seen = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > EXPOSURES_REMEMBERED:
            self._seen.popitem(last=False)
        if trigger == "FirstRequest" and (seen or known == (identity.test, identity.arm)):
            return
        row = Exposure(
            **self._common(identity, exchange.character, now),
            event_id=uuid.uuid4().hex,
            session=exchange.session,
            trigger=trigger,
        )
        self._put(LogTable.EXPOSURES, now, row.to_row())

    def event(
        self,
        exchange: Exchange,
        kind: EventType,
        *,
        value: float | None = None,
        detector: str | None = None,
        blocked: bool | None = None,
        turn: str | None = None,
        client_id: str | None = None,
    ) -> None:
        """Logs that something happened. `client_id` makes the row the same row however often it is sent."""
        identity, now = exchange.identity, self._clock()
        row = Event(
            **self._common(identity, exchange.character, now),
            event_id=f"{identity.hashed[:32]}-{client_id}" if client_id else uuid.uuid4().hex,
            type=kind,
            value=value,
            conversation=scoped(identity, exchange.conversation) if exchange.conversation else None,
            turn=turn or exchange.turn or None,
            detector=detector,
            blocked=blocked,
        )
        self._metrics.count_event(kind)
        self._put(LogTable.EVENTS, now, row.to_row())

    def turn(self, exchange: Exchange, turns: Sequence[Turn], reply: Said, latency_ms: float) -> None:
        """Logs a conversation with its reply, where turns are kept, the user agrees, and all of it can be read."""
        if not turns or not self._config.log.turns:
            return
        if self._config.consent.mode == "Require" and exchange.consent is not True:
            return
        if not all(said.readable for said in (reply, *(turn.said for turn in turns))):
            return
        identity, now = exchange.identity, self._clock()
        days = self._config.retention_days
        own = [t for t in turns if exchange.character is None or t.role not in ("system", "developer")]
        row = LoggedTurn(
            conversation=scoped(identity, exchange.conversation),
            user=identity.logged,
            character=exchange.character,
            origin=self._config.origin.value,
            time=now,
            # `developer` is a newer word for `system`, which data.md does not know.
            messages=[
                *(_message("system" if t.role == "developer" else t.role, t.said) for t in own),
                _message("assistant", reply),
            ],
            consent=Consent(training=exchange.consent),
            turn=exchange.turn,
            latency_ms=round(latency_ms, 3),
            generation=self._config.generation,
            arm=identity.arm,
            test=identity.test,
            enrolled=identity.enrolled,
            fallback=identity.fallback,
            retain_until=None if days is None else now + timedelta(days=days),
        )
        self._put(LogTable.TURNS, now, row.to_row())

    def _common(self, identity: Identity, character: str | None, now: datetime) -> dict[str, Any]:
        return {
            "user_id": identity.logged,
            "ts": now,
            "enrolled": identity.enrolled,
            "arm": identity.arm,
            "test": identity.test,
            "fallback": identity.fallback,
            "generation": self._config.generation,
            "character": character,
        }

    def _put(self, table: LogTable, now: datetime, row: dict[str, Any]) -> None:
        self._writer.put(table, now.date().isoformat(), orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def _message(role: str, said: Said) -> dict[str, Any]:
    return {"role": role, "content": said.text, **logged(said.calls)}


def scoped(identity: Identity, conversation: str) -> str:
    """A client's id of a conversation, made its user's own: nobody can spoil another one's by naming it."""
    return f"{identity.hashed[:16]}-{conversation}"
