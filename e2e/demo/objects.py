"""RewardModels and Generations as the demo looks at them: typed statuses and a few questions to them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from e2e.kubectl import Manifest
from flywheel_contract.manifest import MANIFEST_NAME
from flywheel_contract.stages import Stage
from flywheel_contract.uris import parse_uri
from flywheel_operator.model.phases import REWARD_MODEL_TERMINAL, TERMINAL, Phase, RewardModelPhase, StageState, Verdict
from flywheel_operator.model.status import GateStatus, GenerationStatus, MetricStatus, RewardModelStatus, StageStatus

KINDS = {"RewardModel": "rewardmodels", "Generation": "generations"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One object: a RewardModel or a Generation."""

    kind: str
    name: str
    status: GenerationStatus | RewardModelStatus

    @classmethod
    def parse(cls, item: Manifest) -> Self:
        """From the API server's JSON."""
        model = RewardModelStatus if item["kind"] == "RewardModel" else GenerationStatus
        return cls(item["kind"], item["metadata"]["name"], model.model_validate(item.get("status") or {}))

    @property
    def ended(self) -> bool:
        """Whether it has come to an end, good or bad."""
        return self.status.phase in TERMINAL or self.status.phase in REWARD_MODEL_TERMINAL

    @property
    def came_to_an_answer(self) -> bool:
        """Whether it ended as it should: a Generation with a verdict (gated is one), a RewardModel that is Ready."""
        return self.status.phase in (Phase.COMPLETED, RewardModelPhase.READY)

    @property
    def promoted(self) -> bool:
        """Whether it is a Generation that went into production."""
        status = self.status
        return (
            isinstance(status, GenerationStatus)
            and status.verdict is not None
            and status.verdict.result is Verdict.PROMOTED
        )

    @property
    def outcome(self) -> str:
        """The verdict where there is one, else the phase."""
        status = self.status
        verdict = status.verdict if isinstance(status, GenerationStatus) else None
        return str(verdict.result.value if verdict is not None else status.phase.value)

    @property
    def stages(self) -> list[StageStatus]:
        """The stages in their order."""
        return self.status.stages

    @property
    def gates(self) -> list[GateStatus]:
        """The gates."""
        return self.status.gates

    def stage(self, stage: Stage) -> StageStatus | None:
        """One stage, where the recipe has it."""
        return next((s for s in self.stages if s.name is stage), None)

    def metrics(self, stage: Stage) -> dict[str, MetricStatus]:
        """What a stage measured, by name."""
        found = self.stage(stage)
        return {m.name: m for m in found.metrics} if found is not None else {}

    def why(self) -> str:
        """The sentence of the condition that says what it does or waits for, or, at its end, what it died of."""
        order = ("Complete", "Ready", "Progressing") if self.ended else ("Progressing",)
        for wanted in order:
            for condition in self.status.conditions:
                if condition.type == wanted and (condition.status == "False" or not self.ended) and condition.message:
                    return f"{condition.reason}: {condition.message}"
        return ""


def seconds(stage: StageStatus, now: datetime) -> float | None:
    """How long a stage took, or has taken until `now`."""
    if stage.start_time is None:
        return None
    return max(0.0, ((stage.completion_time or now) - stage.start_time).total_seconds())


def folder_on_claim(stage: StageStatus) -> str | None:
    """The stage's folder, relative to its claim."""
    if stage.manifest_uri is None:
        return None
    return parse_uri(stage.manifest_uri).path.removesuffix(MANIFEST_NAME).rstrip("/")


def finished(stages: Iterable[StageStatus]) -> int:
    """How many stages have succeeded."""
    return sum(s.state is StageState.SUCCEEDED for s in stages)
