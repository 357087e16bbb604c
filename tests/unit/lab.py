"""A world with the hands of a person in it."""

from typing import Any

from flywheel_contract.stages import Stage
from flywheel_operator.model.observed import JobState
from flywheel_operator.model.phases import Phase
from flywheel_operator.model.status import GenerationStatus, VerdictStatus
from flywheel_operator.plan.actions import Plan
from tests.unit.build import generation_spec, raw_object
from tests.unit.world import World


class Lab(World):
    """A world with the hands of a person in it."""

    def put(self, name: str, **spec: Any) -> None:  # noqa: ANN401 -- fields of the spec
        raw = raw_object("Generation", name, generation_spec(**spec), annotations={}, uid=f"uid-{name}-{self.now}")
        self.generations[name] = raw

    def annotate(self, name: str, command: str, value: str = "yes") -> None:
        self.generations[name]["metadata"]["annotations"][command] = value

    def change(self, name: str, **spec: Any) -> None:  # noqa: ANN401 -- fields of the spec
        self.generations[name]["spec"] |= spec

    def remove(self, name: str) -> None:
        self.generations[name]["metadata"]["deletionTimestamp"] = self.now.isoformat()

    def gone(self, name: str) -> bool:
        return name not in self.generations

    def status(self, name: str) -> GenerationStatus:
        return self.generation(name).status

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        found = next(c for c in self.status(name).conditions if c.type == kind)
        return found.status, found.reason, found.message

    def go(self, name: str, rounds: int = 30, seconds: float = 15) -> None:
        """Passes over `name` with nothing in the way."""
        for _ in range(rounds):
            self.step(name)
            self.settle()
            self.advance(seconds)

    def until(self, name: str, phase: Phase) -> None:
        for _ in range(60):
            self.step(name)
            if self.status(name).phase is phase:
                return
            self.settle()
            self.advance(5)
        raise AssertionError(f"{name} never became {phase}: {self.status(name)}")

    def until_stage(self, name: str, stage: Stage) -> None:
        for _ in range(60):
            self.step(name)
            if self.status(name).stage == stage.value and self.live():
                return
            self.settle()
            self.advance(5)
        raise AssertionError(f"{name} never reached {stage}")

    def live(self) -> list[str]:
        return [n for n, j in self.jobs.items() if j.view.state is JobState.PENDING]

    def events(self, plan: Plan[Any] | None) -> list[str]:
        return [e.reason for e in plan.events] if plan else []

    def verdict(self, name: str) -> VerdictStatus:
        found = self.status(name).verdict
        assert found is not None
        return found
