"""The immutable snapshot that a Generation's stages run from: nothing is looked up again after it is taken."""

from pydantic import Field

from flywheel_contract.base import Record
from flywheel_contract.characters import Character
from flywheel_contract.stage_spec import Input
from flywheel_operator.model.generation import GenerationSpec
from flywheel_operator.model.status import ModelRef


class Snapshot(Record):
    """Everything that the stages depend on, with digests."""

    spec: GenerationSpec
    parent: ModelRef
    baseline: ModelRef
    production_digest: str | None = None
    """None: nothing was in production."""
    inputs: list[Input]
    """Data sources and the parent model, resolved."""
    rewards: list[Input] = Field(default_factory=list)
    """The terms of the composite reward, with weight and scale."""
    pairwise: Input | None = None
    """The pairwise judge of the evaluation."""
    characters: list[Character] = Field(default_factory=list)
    trainer_image: str
