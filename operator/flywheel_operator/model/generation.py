"""The API of a Generation: one turn of the wheel."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from flywheel_contract.base import Name, Record, list_map
from flywheel_contract.curation_params import DiversityParams
from flywheel_contract.filters import SafetyParams
from flywheel_contract.metric_names import REPORTED_BY, Metric
from flywheel_contract.params import (
    CurateParams,
    DpoParams,
    EvaluateParams,
    PoolPolicyParams,
    RejectionSampleParams,
    RlParams,
    SftParams,
)
from flywheel_contract.stages import Stage
from flywheel_operator.model.abtest import ABTestTemplate
from flywheel_operator.model.common import SHARED_ARTIFACTS, DataSource, GatesSpec, RunSpec, SafeUri, SourceName
from flywheel_operator.model.rules import cel, frozen_rules, unique_list, validations
from flywheel_operator.model.runtime import RaySpec
from flywheel_operator.model.serving import TOOLS_NEED_A_PARSER, CharacterSpec, ServingSpec

RECIPE_FIELDS: dict[Stage, str] = {
    Stage.REJECTION_SAMPLE: "rejectionSampling",
    Stage.SFT: "sft",
    Stage.DPO: "dpo",
    Stage.RL: "rl",
}
"""The stages that a recipe may leave out, and their fields."""


def _metrics(*stages: Stage) -> list[str]:
    return sorted({m.value for s in stages for m in REPORTED_BY[s]})


GENERATION_METRICS = _metrics(Stage.CURATE, *RECIPE_FIELDS, Stage.EVALUATE)
"""The metrics that a Generation's gates may name."""


def _needs_stage() -> list[dict[str, str]]:
    """A gate on a metric that only stages outside the recipe report could never pass: refuse it."""
    rules = []
    always = {m for s in (Stage.CURATE, Stage.EVALUATE) for m in REPORTED_BY[s]}
    groups: dict[tuple[str, ...], list[str]] = {}
    for metric in Metric:
        fields = tuple(RECIPE_FIELDS[s] for s in RECIPE_FIELDS if metric in REPORTED_BY[s])
        if fields and metric not in always:
            groups.setdefault(fields, []).append(metric.value)
    for fields, metrics in groups.items():
        present = " || ".join(f"has(self.recipe.{f})" for f in fields)
        names = ", ".join(f"'{m}'" for m in metrics)
        rules.append(
            cel(
                f"({present}) || !self.gates.rules.exists(g, g.metric in [{names}])",
                f"a gate names a metric that only these stages report: {', '.join(fields)}; add one of them to "
                "spec.recipe or drop the gate",
                ".gates.rules",
            )
        )
    return rules


class ParentRef(Record):
    """What the candidate is trained from."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel("has(self.generation) != has(self.model)", "set exactly one of generation and model")
        )
    )
    generation: Name | None = Field(None, description="A promoted Generation in the same namespace.")
    model: SafeUri | None = Field(None, description="A model by URI, e.g. hf://owner/name or pvc://claim/path.")


class SftSource(Record):
    """Conversations to imitate."""

    name: SourceName = Field(description="Name of the source in status and reports.")
    uri: SafeUri = Field(description="Where the rows lie.")
    weight: float = Field(
        1.0, gt=0, le=100, description="Share in the mixture: 1 takes every row once, 2 twice, 0.5 a half of them."
    )


class DataSpec(Record):
    """What the generation learns from."""

    traffic: list[DataSource] = Field(
        min_length=1, max_length=5, description="Captured conversations.", json_schema_extra=list_map("name")
    )
    preferences: list[DataSource] = Field(
        default_factory=list,
        max_length=4,
        description="Preference pairs for DPO, beside those of rejection sampling.",
        json_schema_extra=list_map("name"),
    )
    sft: list[SftSource] = Field(
        default_factory=list,
        max_length=4,
        description="Further conversations for SFT.",
        json_schema_extra=list_map("name"),
    )


class DiversitySpec(DiversityParams):
    """Pruning by meaning, and the model that tells it."""

    embedding_model: SafeUri | None = Field(
        None,
        description="A sentence-transformers model with safetensors weights, by URI; default: all-MiniLM-L6-v2, "
        "which the trainer image ships (English).",
    )


class SafetySpec(SafetyParams):
    """The safety filter of curation; a model stands for the embedded classifier."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel("!(has(self.model) && has(self.endpoint))", "set one of model and endpoint, not both", ".model")
        )
    )
    model: SafeUri | None = Field(
        None,
        description="A Hugging Face text classifier by URI, with safetensors weights; it runs in the stage's pod.",
    )


class CurationSpec(CurateParams):
    """Which conversations are used."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.ray) || ((!has(self.safety.model) || self.safety.model.startsWith('pvc://')) && "
                "(!has(self.diversity) || !has(self.diversity.embeddingModel) || "
                "self.diversity.embeddingModel.startsWith('pvc://')))",
                "workers of a Ray cluster read models from claims: put safety.model and diversity.embeddingModel onto "
                "one (pvc://), or take ray away",
                ".ray",
            )
        )
    )
    safety: SafetySpec = Field(default_factory=SafetySpec, description="The safety filter.")
    diversity: DiversitySpec | None = Field(
        None, description="Pruning by meaning (embeddings and clusters), after the near-duplicates; left out, none."
    )
    ray: RaySpec | None = Field(
        None,
        description="Look at rows (privacy, safety, embeddings) on a Ray cluster that KubeRay makes for this stage; "
        "left out, in the stage's pod, or where RAY_ADDRESS in runtime.env says.",
    )


class RewardRef(Record):
    """A term of the composite reward."""

    reward_model: Name = Field(description="A RewardModel of type Pointwise or UserSignal in the same namespace.")
    weight: float = Field(1.0, gt=0, le=100, description="Weight of its standardised score in the composite reward.")


class PoolPolicy(PoolPolicyParams):
    """A further policy that replies are drawn from: a model, or an endpoint."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel("has(self.model) != has(self.endpoint)", "set exactly one of model and endpoint"),
            cel("self.name != 'current'", "current is the policy that is trained: choose another name"),
        )
    )
    model: SafeUri | None = Field(None, description="A model by URI, e.g. a larger sibling of the parent.")


class RejectionSamplingSpec(RejectionSampleParams):
    """Draw several replies to each prompt and keep the best and the worst by the composite reward."""

    pool: list[PoolPolicy] = Field(  # type: ignore[assignment] # the same entries with what the API adds
        default_factory=list,
        max_length=2,
        description="Further policies beside the one that is trained; the best reply of all is kept.",
        json_schema_extra=unique_list("name"),
    )


class RecipeSpec(Record):
    """The training stages; each may be left out, not all of them."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "has(self.sft) || has(self.dpo) || has(self.rl)",
                "the recipe trains nothing: set at least one of sft, dpo and rl",
            ),
            cel(
                "!has(self.rl) || self.rl.algorithm != 'GRPO' || "
                "self.rl.batchSize * self.rl.gradientAccumulationSteps % self.rl.numGenerations == 0",
                "rl: batchSize times gradientAccumulationSteps must be a multiple of numGenerations",
                ".rl.numGenerations",
            ),
            cel(
                "!has(self.rl) || self.rl.algorithm != 'OnlineDPO' || self.rl.beta > 0.0",
                "rl: OnlineDPO needs a beta above 0",
                ".rl.beta",
            ),
        )
    )
    rejection_sampling: RejectionSamplingSpec | None = Field(
        None, description="Draw several replies per prompt; keep the best and the worst by the composite reward."
    )
    sft: SftParams | None = Field(None, description="Supervised fine-tuning on accepted replies and data.sft.")
    dpo: DpoParams | None = Field(None, description="Direct preference optimisation on pairs.")
    rl: RlParams | None = Field(None, description="Online reinforcement learning against the composite reward.")


class PairwiseRef(Record):
    """A second judge of the evaluation, which reads both replies at once."""

    reward_model: Name = Field(description="A RewardModel of type Pairwise in the same namespace.")


class EvaluationSpec(EvaluateParams):
    """How the candidate is judged."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.judge) || has(self.judge.endpoint) != has(self.judgeModel)",
                "a judge needs exactly one of judge.endpoint and judgeModel",
                ".judge",
            ),
            cel(
                "has(self.judge) || !has(self.judgeModel)",
                "judgeModel is not asked without judge: write judge: {} or drop it",
                ".judgeModel",
            ),
            cel(
                "has(self.benchmarks) || !has(self.benchmarkTasks)",
                "benchmarkTasks are not run without benchmarks: name tasks there or drop it",
                ".benchmarkTasks",
            ),
        )
    )

    pairwise: PairwiseRef | None = Field(
        None, description="A pairwise reward model that judges too; two views of one policy show reward hacking."
    )

    general: SafeUri | None = Field(
        None,
        description="General conversations on which the perplexity must not rise; default: the human replies of "
        "the evaluation conversations.",
    )
    judge_model: SafeUri | None = Field(None, description="The judge: a language model by URI. Or judge.endpoint.")
    benchmark_tasks: SafeUri | None = Field(
        None, description="Folder of task files of lm-evaluation-harness (YAML); default: the tasks that it ships."
    )


class RolloutSpec(Record):
    """What happens once the gates are passed."""

    promotion: Literal["Auto", "Manual"] = Field(
        "Auto", description="Manual waits for the annotation characterflywheel.dev/promote=<status.promotionHash>."
    )
    ab_test: ABTestTemplate | None = Field(
        None,
        description="Test the candidate on live users before it is promoted. Left out, or where nothing is in "
        "production yet, passing the gates is enough.",
    )


class DryRunSpec(Record):
    """What the estimate takes for granted."""

    gpu_teraflops: float = Field(
        989.0,
        gt=0,
        le=1_000_000,
        description="Peak of one GPU in TFLOP/s, dense bf16; 989 is an H100 SXM's data sheet.",
    )
    training_utilization: float = Field(
        0.4, gt=0, le=1, description="Share of the peak that training reaches (MFU); measure yours and write it here."
    )
    sampling_utilization: float = Field(
        0.05, gt=0, le=1, description="Share of the peak that sampling reaches, which memory limits; likewise."
    )


class GenerationSpec(RunSpec):
    """What one turn of the wheel does. Unchangeable once it has started, but for suspend, rollout and ttl."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!(has(self.recipe.rejectionSampling) || has(self.recipe.rl)) || size(self.rewards) > 0",
                "rejectionSampling and rl need a reward: name at least one RewardModel",
                ".rewards",
            ),
            cel(
                "!has(self.recipe.dpo) || has(self.recipe.rejectionSampling) || size(self.data.preferences) > 0",
                "dpo needs pairs: add recipe.rejectionSampling or data.preferences",
                ".recipe",
            ),
            SHARED_ARTIFACTS,
            TOOLS_NEED_A_PARSER,
            *_needs_stage(),
        )
    )
    lineage: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=50)] = Field(
        description="The product line; its public Service has this name.",
        json_schema_extra=validations(
            cel("self != 'reward-models'", "reward-models is taken: it is the folder of the reward models' artefacts")
        ),
    )
    parent: ParentRef = Field(description="What the candidate is trained from.")
    characters: list[CharacterSpec] = Field(
        default_factory=list,
        max_length=16,
        description="Characters and their system prompts.",
        json_schema_extra=list_map("name"),
    )
    data: DataSpec = Field(description="What it learns from.")
    curation: CurationSpec = Field(default_factory=CurationSpec, description="Which conversations are used.")
    rewards: list[RewardRef] = Field(
        default_factory=list,
        max_length=4,
        description="The composite reward.",
        json_schema_extra=list_map("rewardModel"),
    )
    recipe: RecipeSpec = Field(description="The training stages.")
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec, description="How the candidate is judged.")
    gates: GatesSpec = Field(
        default_factory=GatesSpec,
        description="What it must pass before it serves. Defaults: better than the baseline, the overfitting guard "
        "(win rate above 0.65, gap between origins), perplexity and style.",
    )
    dry_run: DryRunSpec | None = Field(
        None,
        description="Resolve and count only, estimate GPU-hours, end with the verdict DryRun; `{}` takes the defaults.",
    )
    rollout: RolloutSpec = Field(default_factory=RolloutSpec, description="What happens once the gates are passed.")
    serving: ServingSpec = Field(default_factory=ServingSpec, description="The model server.")

    @property
    def reward_models(self) -> list[str]:
        """The names of all RewardModels that it needs."""
        judge = self.evaluation.pairwise
        return [r.reward_model for r in self.rewards] + ([judge.reward_model] if judge else [])


FROZEN: dict[str, bool] = {
    name: field.is_required() or field.default_factory is not None or field.default is not None
    for name, field in GenerationSpec.model_fields.items()
    if name not in ("suspend", "rollout", "ttl_seconds_after_finished")
}
"""Spec fields that cannot change after the start -> whether they are always there (required or defaulted)."""


ROOT_RULES: list[dict[str, Any]] = [
    cel(
        "!has(self.spec.parent.generation) || self.spec.parent.generation != self.metadata.name",
        "a Generation cannot be its own parent: name another one, or a model",
        ".spec.parent.generation",
    ),
    *frozen_rules(FROZEN, "Generation"),
]
