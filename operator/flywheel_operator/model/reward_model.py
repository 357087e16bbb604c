"""The API of a RewardModel: one trained judge."""

from typing import Any, Literal

from pydantic import Field

from flywheel_contract.metric_names import REPORTED_BY
from flywheel_contract.params import RewardModelParams
from flywheel_contract.stages import Stage
from flywheel_operator.model.common import DataSource, GatesSpec, RunSpec, SafeUri, frozen_rules, list_map
from flywheel_operator.model.serving import CharacterSpec

REWARD_MODEL_METRICS = sorted(m.value for m in REPORTED_BY[Stage.REWARD_MODEL])
"""The metrics that a RewardModel's gates may name."""


class RewardModelSpec(RunSpec):
    """How a judge is trained. Unchangeable once it has started, but for suspend and ttl."""

    type: Literal["Pointwise"] = Field("Pointwise", description="Pointwise: one score per reply (Bradley-Terry).")
    base_model: SafeUri = Field(description="The model that it starts from, by URI.")
    characters: list[CharacterSpec] = Field(
        default_factory=list,
        max_length=16,
        description="Characters and their system prompts.",
        json_schema_extra=list_map("name"),
    )
    preferences: list[DataSource] = Field(
        min_length=1, max_length=8, description="Preference pairs.", json_schema_extra=list_map("name")
    )
    training: RewardModelParams = Field(default_factory=RewardModelParams, description="How it is trained.")
    gates: GatesSpec = Field(
        default_factory=GatesSpec,
        description="What it must pass to become Ready. Default: better than chance on held-out pairs.",
    )


FROZEN: dict[str, bool] = {
    name: field.is_required() or field.default_factory is not None or field.default is not None
    for name, field in RewardModelSpec.model_fields.items()
    if name not in ("suspend", "ttl_seconds_after_finished")
}

ROOT_RULES: list[dict[str, Any]] = frozen_rules(FROZEN, "RewardModel")
