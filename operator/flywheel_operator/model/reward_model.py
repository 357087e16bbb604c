"""The API of a RewardModel: one trained judge."""

from typing import Any

from pydantic import ConfigDict, Field

from flywheel_contract.base import list_map
from flywheel_contract.filters import ScreeningParams
from flywheel_contract.metric_names import REPORTED_BY, REWARD_METRICS
from flywheel_contract.params import RewardModelParams, SignalParams
from flywheel_contract.stages import RewardModelType, Stage
from flywheel_operator.model.common import DataSource, GatesSpec, RunSpec, SafeUri
from flywheel_operator.model.rules import cel, frozen_rules, validations
from flywheel_operator.model.serving import CharacterSpec

REWARD_MODEL_METRICS = sorted(m.value for m in REPORTED_BY[Stage.REWARD_MODEL])
"""The metrics that a RewardModel's gates may name."""


def _measures_it() -> list[dict[str, str]]:
    """A gate on a metric that a model of this type never reports could never pass: refuse it."""
    rules = []
    for kind, own in REWARD_METRICS.items():
        foreign = ", ".join(f"'{name}'" for name in REWARD_MODEL_METRICS if name not in {m.value for m in own})
        rules.append(
            cel(
                f"self.type != '{kind.value}' || !self.gates.rules.exists(g, g.metric in [{foreign}])",
                f"a gate names a metric that no model of type {kind.value} reports: drop the gate",
                ".gates.rules",
            )
        )
    return rules


class RewardModelSpec(RunSpec):
    """How a judge is trained. Unchangeable once it has started, but for suspend and ttl."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "self.type == 'UserSignal' ? has(self.signal) && size(self.traffic) > 0 : !has(self.signal) && "
                "size(self.traffic) == 0",
                "a model of type UserSignal learns a signal from traffic: set signal and traffic with that type, and "
                "with no other",
                ".signal",
            ),
            cel(
                "(self.type == 'UserSignal') == (size(self.preferences) == 0)",
                "models of the types Pointwise and Pairwise learn from preferences, and those of type UserSignal do "
                "not: set preferences with the former only",
                ".preferences",
            ),
            *_measures_it(),
        )
    )
    type: RewardModelType = Field(
        RewardModelType.POINTWISE,
        description="Pointwise: one score per reply (Bradley-Terry), for rewards. Pairwise: reads both replies, for "
        "evaluation only. UserSignal: whether the user gives a signal, an auxiliary term of rewards.",
    )
    base_model: SafeUri = Field(description="The model that it starts from, by URI.")
    characters: list[CharacterSpec] = Field(
        default_factory=list,
        max_length=16,
        description="Characters and their system prompts.",
        json_schema_extra=list_map("name"),
    )
    preferences: list[DataSource] = Field(
        default_factory=list,
        max_length=8,
        description="Preference pairs, for the types Pointwise and Pairwise.",
        json_schema_extra=list_map("name"),
    )
    traffic: list[DataSource] = Field(
        default_factory=list,
        max_length=8,
        description="Captured conversations whose rows tell the signal, for type UserSignal.",
        json_schema_extra=list_map("name"),
    )
    signal: SignalParams | None = Field(None, description="For type UserSignal: the signal that it predicts.")
    curation: ScreeningParams = Field(
        default_factory=ScreeningParams, description="Which rows are not learned from; the rest is used."
    )
    training: RewardModelParams = Field(default_factory=RewardModelParams, description="How it is trained.")
    gates: GatesSpec = Field(
        default_factory=GatesSpec,
        description="What it must pass to become Ready. Defaults by type: docs/reward-models.md.",
    )


FROZEN: dict[str, bool] = {
    name: field.is_required() or field.default_factory is not None or field.default is not None
    for name, field in RewardModelSpec.model_fields.items()
    if name not in ("suspend", "ttl_seconds_after_finished")
}

ROOT_RULES: list[dict[str, Any]] = frozen_rules(FROZEN, "RewardModel")
