"""`Draft`: where a pass collects what it wants before it hands over a `Plan`."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from flywheel_operator.model.objects import Metadata
from flywheel_operator.model.status import BaseStatus, CommandStatus, Condition
from flywheel_operator.plan.actions import Event, Manifest, Plan, Ref, SwitchProduction

StatusT = TypeVar("StatusT", bound=BaseStatus)


@dataclass(slots=True)
class Draft(Generic[StatusT]):
    """The growing plan of one pass over one object."""

    metadata: Metadata
    now: datetime
    status: StatusT
    add_finalizer: str | None = None
    create: list[Manifest] = field(default_factory=list)
    apply: list[Manifest] = field(default_factory=list)
    switch: SwitchProduction | None = None
    delete: list[Ref] = field(default_factory=list)
    remove_finalizer: str | None = None
    events: list[Event] = field(default_factory=list)
    wake: list[str] = field(default_factory=list)
    requeue_after: float | None = None

    def set(self, **fields: Any) -> None:  # noqa: ANN401 -- fields of the status
        """Changes fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def condition(self, kind: str, status: Literal["True", "False", "Unknown"], reason: str, message: str) -> None:
        """Sets a condition; its transition time moves only when its status does."""
        before = next((c for c in self.status.conditions if c.type == kind), None)
        since = before.last_transition_time if before is not None and before.status == status else self.now
        condition = Condition(
            type=kind,
            status=status,
            reason=reason,
            message=message,
            observed_generation=self.metadata.generation,
            last_transition_time=since,
        )
        others = [c for c in self.status.conditions if c.type != kind]
        self.set(conditions=sorted([*others, condition], key=lambda c: c.type))

    def drop_condition(self, kind: str) -> None:
        """Removes a condition that has become pointless."""
        self.set(conditions=[c for c in self.status.conditions if c.type != kind])

    def event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Adds an Event."""
        self.events.append(Event(kind, reason, message))

    def command(self, annotation: str, outcome: str) -> None:
        """Records that a one-shot annotation was acted on."""
        name = annotation.rsplit("/", 1)[1]
        entry = CommandStatus(name=name, value=self.metadata.annotations[annotation], time=self.now, outcome=outcome)
        self.set(commands=[*(c for c in self.status.commands if c.name != name), entry])

    def asked(self, annotation: str) -> str | None:
        """The value of a one-shot annotation that was not acted on yet."""
        value = self.metadata.annotations.get(annotation)
        name = annotation.rsplit("/", 1)[1]
        done = next((c.value for c in self.status.commands if c.name == name), None)
        return value if value is not None and value != done else None

    def look_again(self, seconds: float) -> None:
        """Asks for another pass in at most `seconds`."""
        seconds = max(0.0, seconds)
        self.requeue_after = seconds if self.requeue_after is None else min(self.requeue_after, seconds)

    def plan(self) -> Plan[StatusT]:
        """The finished plan."""
        self.set(observed_generation=self.metadata.generation)
        return Plan(
            status=self.status,
            add_finalizer=self.add_finalizer,
            create=tuple(self.create),
            apply=tuple(self.apply),
            switch=self.switch,
            delete=tuple(self.delete),
            remove_finalizer=self.remove_finalizer,
            events=tuple(self.events),
            wake=tuple(self.wake),
            requeue_after=self.requeue_after,
        )
