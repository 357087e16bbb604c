"""manifest.json: written last into a stage's folder; the outputs exist when it does."""

from typing import Literal

from pydantic import Field

from flywheel_contract.base import Digest, Record, digest_of
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_spec import API_VERSION, Input
from flywheel_contract.stages import Stage

MANIFEST_NAME = "manifest.json"


class Measurement(Record):
    """A measured metric. `low` and `high` are its two-sided interval, `n` the number of units behind it."""

    value: float = Field(description="The measured value.")
    low: float | None = Field(None, description="Low end of the interval.")
    high: float | None = Field(None, description="High end of the interval.")
    n: int | None = Field(None, ge=0, le=2**53, description="Units behind it.")


class Manifest(Record):
    """What a stage read, what it left, and how."""

    api_version: Literal["contract.characterflywheel.dev/v1alpha1"] = API_VERSION
    stage: Stage
    owner: str
    group: str
    inputs_digest: Digest
    inputs: list[Input]
    seed: int
    outputs: dict[str, Digest] = Field(description="Output folder -> digest over its files' names and contents.")
    metrics: dict[Metric, Measurement] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict, description="Counted reasons and rows, free in name.")
    versions: dict[str, str] = Field(default_factory=dict, description="Library -> version.")
    device: str = Field("", description="What it ran on: cpu, or the accelerator's name.")
    started_at: str = Field("", description="RFC 3339, UTC.")
    finished_at: str = Field("", description="RFC 3339, UTC.")

    def digest(self) -> Digest:
        """The digest of the manifest itself, which stands for all that it names."""
        return digest_of(self.to_json())
