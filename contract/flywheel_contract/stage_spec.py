"""StageSpec: all that a stage may know. A stage is a pure function of it."""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from flywheel_contract.base import Digest, Name, Record, digest_of
from flywheel_contract.characters import Character
from flywheel_contract.filters import ScreeningParams
from flywheel_contract.judging import StyleParams
from flywheel_contract.params import (
    CurateParams,
    DpoParams,
    EvaluateParams,
    RejectionSampleParams,
    ResolveParams,
    RewardStageParams,
    RlParams,
    SftParams,
)
from flywheel_contract.stages import Origin, Role, Stage
from flywheel_contract.uris import ArtifactUri, OutputUri, join_uri

API_VERSION: Final = "contract.characterflywheel.dev/v1alpha1"

MAX_INPUTS: Final = 21
"""So many that the result of `resolve`, a digest for each, fits into a termination message."""

MAX_DAYS: Final = 366

InputKind = Literal["Data", "Model"]


class RewardScale(Record):
    """Mean and deviation of a reward model's scores on its own held-out rows."""

    mean: float
    std: float = Field(gt=0)


class DateRange(Record):
    """Some days of a log, by its folders `date=YYYY-MM-DD`; both ends belong to it."""

    first: date = Field(description="The first day.")
    last: date = Field(description="The last day; it must be over (UTC) when the data is read.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not 0 <= (self.last - self.first).days < MAX_DAYS:
            raise ValueError(f"dates: last is {self.last}: not before first, and at most {MAX_DAYS} days with it")
        return self

    def days(self) -> Iterator[date]:
        """The days, in their order."""
        return (self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1))


class Input(Record):
    """One thing that a stage reads."""

    name: Name = Field(description="Unique among the inputs of the stage.")
    role: Role
    kind: InputKind
    uri: OutputUri
    digest: Digest | None = Field(None, description="What it must be; None only while it is being resolved.")
    origin: Origin | None = Field(None, description="For traffic and preferences: where they come from.")
    dates: DateRange | None = Field(None, description="Only these days of a folder that holds `date=` folders.")
    feedback: bool = Field(False, description="For a log: what users sent about a reply is a signal of its row.")
    weight: float = Field(1.0, description="For rewards: weight in the composite; for data: share in the mixture.")
    scale: RewardScale | None = Field(None, description="For rewards: what their scores are standardised by.")


class _StageSpec(Record):
    api_version: Literal["contract.characterflywheel.dev/v1alpha1"] = API_VERSION
    owner: Name = Field(description="The Generation or RewardModel.")
    group: Name = Field(description="The lineage of a Generation; `reward-models` for a RewardModel.")
    artifacts: ArtifactUri = Field(description="The root under which all outputs go.")
    inputs: list[Input] = Field(default_factory=list, max_length=MAX_INPUTS)
    characters: list[Character] = Field(default_factory=list, max_length=64)
    style: StyleParams = Field(default_factory=StyleParams, description="Artefacts that reports of replies look for.")
    seed: int = Field(0, ge=0, lt=2**31)
    resume: bool = Field(True, description="Go on from a checkpoint of an earlier attempt where there is one.")
    rerun: int = Field(0, ge=0, description="How often it was asked to run anew; each time it leaves its own results.")

    @model_validator(mode="after")
    def _unique_inputs(self) -> Self:
        names = [i.name for i in self.inputs]
        if len(set(names)) != len(names):
            raise ValueError("inputs: every name may stand there once only")
        return self


class ResolveSpec(_StageSpec):
    stage: Literal[Stage.RESOLVE] = Stage.RESOLVE
    params: ResolveParams = Field(default_factory=ResolveParams)


class CurateSpec(_StageSpec):
    stage: Literal[Stage.CURATE] = Stage.CURATE
    params: CurateParams = Field(default_factory=CurateParams)


class _ScreenedSpec(_StageSpec):
    """Of a stage that reads data which does not come through `curate`."""

    screening: ScreeningParams = Field(
        default_factory=ScreeningParams, description="What of such data may not be trained on."
    )


class RewardModelSpec(_ScreenedSpec):
    stage: Literal[Stage.REWARD_MODEL] = Stage.REWARD_MODEL
    params: RewardStageParams = Field(default_factory=RewardStageParams)


class RejectionSampleSpec(_StageSpec):
    stage: Literal[Stage.REJECTION_SAMPLE] = Stage.REJECTION_SAMPLE
    params: RejectionSampleParams = Field(default_factory=RejectionSampleParams)


class _JudgedSpec(_ScreenedSpec):
    """Of a stage whose candidates held-out users judge, in this generation or in a later one."""

    holdout_fraction: float = Field(
        0.0, ge=0, lt=1, description="The curation's: rows of users in this share are not trained on; 0 keeps all."
    )


class SftSpec(_JudgedSpec):
    stage: Literal[Stage.SFT] = Stage.SFT
    params: SftParams = Field(default_factory=SftParams)


class DpoSpec(_JudgedSpec):
    stage: Literal[Stage.DPO] = Stage.DPO
    params: DpoParams = Field(default_factory=DpoParams)


class RlSpec(_StageSpec):
    stage: Literal[Stage.RL] = Stage.RL
    params: RlParams = Field(default_factory=RlParams)


class EvaluateSpec(_StageSpec):
    stage: Literal[Stage.EVALUATE] = Stage.EVALUATE
    params: EvaluateParams = Field(default_factory=EvaluateParams)


StageSpec = Annotated[
    ResolveSpec | CurateSpec | RewardModelSpec | RejectionSampleSpec | SftSpec | DpoSpec | RlSpec | EvaluateSpec,
    Field(discriminator="stage"),
]
"""Read it with `pydantic.TypeAdapter(StageSpec)`."""


def inputs_digest(spec: StageSpec) -> Digest:
    """The digest of everything that a stage's result depends on.

    Where things lie (URIs, owner, artifact root) does not count, what they are (digests, roles, origins, weights) does,
    so a moved bucket or a renamed Generation gives the same digest. To `resolve` alone, where things lie is the input.
    A stage that was asked to run anew counts as another one: it neither finds nor overwrites what it left before.
    """
    where = set() if spec.stage is Stage.RESOLVE else {"uri"}
    anew = {"rerun": spec.rerun} if spec.rerun else {}
    return digest_of(
        {
            **anew,
            **({"screening": spec.screening.to_json()} if isinstance(spec, _ScreenedSpec) else {}),
            **({"holdoutFraction": spec.holdout_fraction} if isinstance(spec, _JudgedSpec) else {}),
            "apiVersion": spec.api_version,
            "stage": spec.stage.value,
            "seed": spec.seed,
            "params": spec.params.to_json(),
            "characters": [c.to_json() for c in spec.characters],
            "style": spec.style.to_json(),
            "inputs": [i.model_dump(mode="json", by_alias=True, exclude=where) for i in spec.inputs],
        }
    )


def stage_uri(spec: StageSpec) -> str:
    """The folder of the stage's outputs: `<artifacts>/<group>/<owner>/<stage>/<16 digits of the inputs' digest>`."""
    short = inputs_digest(spec).removeprefix("sha256:")[:16]
    return join_uri(spec.artifacts, spec.group, spec.owner, spec.stage.value, short)
