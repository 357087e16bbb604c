"""The parameters of each stage. The same models are the recipe in the CRD, so a default stands in one place only."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flywheel_contract.base import Record
from flywheel_contract.curation_params import ConstraintsParams, DiversityParams
from flywheel_contract.endpoints import ChatEndpoint
from flywheel_contract.filters import SafetyParams, ScreeningParams
from flywheel_contract.judging import BenchmarkParams, JudgeParams
from flywheel_contract.pairs import AgreementParams, PairFilterParams
from flywheel_contract.stages import RewardModelType


class Precision(StrEnum):
    """The arithmetic of training."""

    AUTO = "Auto"
    """bf16 where the accelerator has it, else fp32."""
    BF16 = "BF16"
    FP32 = "FP32"


class Quantization(StrEnum):
    """How the frozen weights beneath adapters are held."""

    NONE = "None"
    NF4 = "NF4"
    """4 bits per weight (QLoRA); needs a GPU and bitsandbytes."""


class Offload(StrEnum):
    """What DeepSpeed keeps in the memory of the host."""

    NONE = "None"
    OPTIMIZER = "Optimizer"
    OPTIMIZER_AND_PARAMETERS = "OptimizerAndParameters"
    """Only with ZeRO-3, which alone partitions the parameters."""


class Engine(StrEnum):
    """What generates replies."""

    AUTO = "Auto"
    """vLLM where a GPU and vLLM are, else transformers."""
    VLLM = "VLLM"
    TRANSFORMERS = "Transformers"


class LoraParams(Record):
    """Low-rank adapters instead of full fine-tuning; the merged model is what the stage leaves."""

    r: int = Field(16, ge=1, le=1024, description="Rank of the adapters.")
    alpha: int = Field(32, ge=1, le=4096, description="Scale of the adapters (lora_alpha).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the adapters.")
    quantization: Quantization = Field(
        Quantization.NONE,
        description="NF4 holds the frozen weights in 4 bits (QLoRA): GPUs only, with the trainer's extra `qlora`.",
    )


class DeepSpeedParams(Record):
    """ZeRO without writing DeepSpeed's JSON; deepspeedConfig takes the JSON where more is to be set."""

    stage: Literal[2, 3] = Field(2, description="ZeRO stage: 2 partitions optimiser and gradients, 3 the weights too.")
    offload: Offload = Field(
        Offload.NONE, description="What lives in the host's memory; OptimizerAndParameters needs stage 3."
    )


class TrainingParams(Record):
    """What every training stage has, named as in transformers' TrainingArguments."""

    epochs: float = Field(1.0, gt=0, le=1000, description="Passes over the data; maxSteps, where set, wins.")
    max_steps: int | None = Field(None, ge=1, le=10_000_000, description="Stop after this many optimiser steps.")
    batch_size: int = Field(8, ge=1, le=4096, description="Rows per device and step (per_device_train_batch_size).")
    gradient_accumulation_steps: int = Field(1, ge=1, le=4096, description="Batches summed into one optimiser step.")
    learning_rate: float = Field(2e-5, gt=0, le=1, description="Peak learning rate.")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Shape of the learning rate over time."
    )
    warmup_steps: int = Field(0, ge=0, le=1_000_000, description="Steps of linear warm-up.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay (AdamW).")
    max_grad_norm: float = Field(1.0, gt=0, le=1000, description="Gradients are clipped to this norm.")
    max_length: int = Field(1024, ge=8, le=1_048_576, description="Longest sequence in tokens; longer rows are cut.")
    precision: Precision = Field(Precision.AUTO, description="Arithmetic: Auto takes bf16 where the GPU has it.")
    gradient_checkpointing: bool = Field(False, description="Trade computing time for memory.")
    lora: LoraParams | None = Field(None, description="Train low-rank adapters; left out, all weights are trained.")
    save_steps: int = Field(50, ge=1, le=1_000_000, description="Steps between checkpoints.")
    deepspeed: DeepSpeedParams | None = Field(None, description="A ready-made DeepSpeed configuration.")
    deepspeed_config: str | None = Field(
        None,
        max_length=16384,
        description="A DeepSpeed configuration as JSON text, passed through unchanged; instead of deepspeed.",
    )


class SamplingParams(Record):
    """How replies are drawn from a policy."""

    max_new_tokens: int = Field(128, ge=1, le=32_768, description="Longest reply in tokens.")
    max_prompt_tokens: int = Field(1024, ge=8, le=1_048_576, description="Older turns are dropped beyond this length.")
    temperature: float = Field(1.0, gt=0, le=5, description="Sampling temperature.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling: the smallest set of tokens with this mass.")
    batch_size: int = Field(16, ge=1, le=4096, description="Sequences generated at a time.")
    precision: Precision = Field(
        Precision.AUTO, description="Arithmetic of sampling and scoring: Auto takes bf16 where the GPU has it."
    )


class NearDuplicateParams(Record):
    """Near-duplicate pruning of curation (MinHash over word shingles)."""

    enabled: bool = Field(True, description="Keep one of several prompts that say nearly the same.")
    similarity: float = Field(0.8, gt=0, le=1, description="Estimated Jaccard similarity from which two are the same.")


class CurateParams(ScreeningParams):
    """Which conversations may be trained on, which are kept for judging, and which are dropped."""

    safety: SafetyParams = Field(default_factory=SafetyParams, description="The safety filter.")
    near_duplicates: NearDuplicateParams = Field(
        default_factory=NearDuplicateParams, description="Near-duplicate pruning."
    )
    diversity: DiversityParams | None = Field(
        None, description="Pruning by meaning (embeddings and clusters), after the near-duplicates; left out, none."
    )
    constraints: ConstraintsParams | None = Field(
        None, description="Shares that the kept conversations shall have along named dimensions; left out, none."
    )
    holdout_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the users kept for evaluation, chosen by a hash of the user id."
    )
    max_conversations: int | None = Field(
        None, ge=1, le=100_000_000, description="Keep at most this many conversations per origin, drawn by the seed."
    )


class RewardModelParams(TrainingParams):
    """How a reward model is trained and measured."""

    learning_rate: float = Field(1e-5, gt=0, le=1, description="Peak learning rate.")
    holdout_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the users whose rows only measure the model, by a hash of the user id."
    )
    pair_filter: PairFilterParams = Field(
        default_factory=PairFilterParams, description="Pairs whose replies look too different are dropped."
    )
    agreement: AgreementParams = Field(
        default_factory=AgreementParams, description="Which pairs with several reviews count as agreed."
    )
    center_rewards_coefficient: float = Field(
        0.01, ge=0, le=10, description="Pulls the mean reward towards zero (TRL's centering term)."
    )


class SignalParams(Record):
    """The signal that a UserSignal model predicts. A number above 0 counts as given."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64, description="Its name in the rows' `signals`.")
    source: Literal["Rows", "Conversation"] = Field(
        "Rows",
        description="Rows: the rows say it. Conversation: whether the user went on is read from the conversation "
        "itself, for every reply in it; a row that says it itself is believed.",
    )
    absent: Literal["Unknown", "Negative"] = Field(
        "Unknown",
        description="What a row without the signal means. Unknown: it is left out. Negative: the user did not give it "
        "(for thumbs, which only those leave who press).",
    )
    settled_after_seconds: int = Field(
        86_400,
        ge=0,
        le=31_536_000,
        description="With source Conversation: a last reply counts as left alone once this much younger rows exist; "
        "before that nobody knows.",
    )
    time_slices: int = Field(4, ge=2, le=24, description="Into how many slices of time the held-out rows are cut.")


class RewardStageParams(RewardModelParams):
    """What the reward-model stage is told: how to train, and which kind of model."""

    type: RewardModelType = Field(RewardModelType.POINTWISE, description="The kind of reward model.")
    signal: SignalParams | None = Field(None, description="For type UserSignal: the signal.")

    @model_validator(mode="after")
    def _signal_fits(self) -> Self:
        if (self.type is RewardModelType.USER_SIGNAL) != (self.signal is not None):
            raise ValueError("signal: type UserSignal needs it, and no other type takes it")
        return self


PoolName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=40)]


class PoolPolicyParams(Record):
    """A further policy that replies are drawn from, beside the one that is trained."""

    name: PoolName = Field(description="Name of the policy in reports; `current` is the one that is trained.")
    endpoint: ChatEndpoint | None = Field(None, description="Where it answers; left out, it is a model by URI.")
    samples_per_prompt: int | None = Field(
        None, ge=1, le=256, description="Replies drawn from it for each prompt; default: as many as from the current."
    )


class RejectionSampleParams(SamplingParams):
    """Draw several replies to each prompt and keep the best and the worst by the composite reward."""

    samples_per_prompt: int = Field(4, ge=2, le=256, description="Replies of the current policy to each prompt (K).")
    max_prompts: int = Field(1024, ge=1, le=10_000_000, description="Prompts used, drawn by the seed.")
    engine: Engine = Field(Engine.AUTO, description="What generates: Auto is vLLM where a GPU and vLLM are.")
    pool: list[PoolPolicyParams] = Field(
        default_factory=list, max_length=2, description="Further policies; the best reply of all is kept."
    )


class OriginWeights(Record):
    """Weights of what is kept apart by origin."""

    internal: float = Field(1.0, ge=0, le=100, description="Of rows of employees and annotators.")
    user: float = Field(1.0, ge=0, le=100, description="Of rows from production.")


class SftParams(TrainingParams):
    """Supervised fine-tuning on accepted replies and on the user's own data; loss on replies only."""

    accepted_weight: OriginWeights = Field(
        default_factory=OriginWeights,
        description="How often accepted replies (or, without rejection sampling, the traffic's own) enter the mixture: "
        "1 once, 2 twice, 0.5 a half drawn by the seed. data.sft[].weight says it of the other sources.",
    )
    packing: bool = Field(
        False, description="Put several conversations into one sequence of maxLength; they do not see each other."
    )
    agreement: AgreementParams = Field(
        default_factory=AgreementParams, description="What the reviews of a row with a tool call must reach."
    )


class DpoParams(TrainingParams):
    """Direct preference optimisation on pairs."""

    learning_rate: float = Field(1e-6, gt=0, le=1, description="Peak learning rate.")
    pair_filter: PairFilterParams = Field(
        default_factory=PairFilterParams, description="Pairs whose replies look too different are dropped."
    )
    agreement: AgreementParams = Field(
        default_factory=AgreementParams, description="What the reviews of a pair about tool calls must reach."
    )
    beta: float = Field(0.1, gt=0, le=10, description="Strength of the pull to the reference (KL).")
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust"] = Field("sigmoid", description="TRL's name of the loss.")
    reference: Literal["Model", "Precomputed"] = Field(
        "Model",
        description="Model keeps the stage's start in memory (with adapters: the weights without them); Precomputed "
        "reads its log-probabilities once and lets it go.",
    )
    measured_pairs: int = Field(
        64,
        ge=0,
        le=100_000,
        description="Pairs of each source and origin on which margins and accuracies are measured after training.",
    )


class ImportanceSampling(StrEnum):
    """Correction of GRPO for the gap between sampler and learner: weights p(learner) / p(sampler)."""

    AUTO = "Auto"
    """SequenceMask with vLLM. Where the learner itself samples: TokenTruncate in bf16, and in fp32, where the two
    cannot differ, NotApplicable, which status says."""
    NONE = "None"
    TOKEN_TRUNCATE = "TokenTruncate"
    """The weight of each token, cut at the bound."""
    TOKEN_MASK = "TokenMask"
    """The weight of each token; tokens beyond the bound are left out."""
    SEQUENCE_TRUNCATE = "SequenceTruncate"
    SEQUENCE_MASK = "SequenceMask"


class PromptSelectionParams(Record):
    """Which prompts RL trains on. Rounds of candidates are sampled, scored and chosen until there are maxPrompts."""

    by: Literal["LowReward", "HighVariance"] = Field(
        "HighVariance",
        description="Prefer prompts whose sampled replies score low, or vary much under the composite reward.",
    )
    samples: int = Field(4, ge=2, le=64, description="Replies sampled to each candidate.")
    keep_fraction: float = Field(0.5, gt=0, le=1, description="Share of a round's sampled candidates that is chosen.")
    near_policy_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of a round that is sampled: where the policy finds the logged reply likeliest.",
    )
    max_rounds: int = Field(
        4, ge=1, le=100, description="Rounds of at most maxPrompts candidates; the refill ends here."
    )


class RlParams(TrainingParams):
    """Online reinforcement learning, single turn from fixed conversation prefixes, against the composite reward."""

    algorithm: Literal["GRPO", "OnlineDPO"] = Field(
        "GRPO",
        description="GRPO: group relative policy optimisation. OnlineDPO: DPO on the better and the worse of two fresh "
        "replies; beta must be above 0.",
    )
    learning_rate: float = Field(1e-6, gt=0, le=1, description="Peak learning rate.")
    num_generations: int = Field(8, ge=2, le=256, description="Replies per prompt in a group; divides batchSize.")
    max_new_tokens: int = Field(128, ge=1, le=32_768, description="Longest reply in tokens.")
    temperature: float = Field(1.0, gt=0, le=5, description="Sampling temperature.")
    beta: float = Field(0.02, ge=0, le=10, description="Weight of the KL term against the stage's start.")
    max_prompts: int = Field(1024, ge=1, le=10_000_000, description="Prompts used, drawn by the seed.")
    engine: Engine = Field(
        Engine.TRANSFORMERS, description="What generates: Transformers is the learner itself, VLLM runs beside it."
    )
    importance_sampling: ImportanceSampling = Field(
        ImportanceSampling.AUTO, description="Correction for the gap between sampler and learner (GRPO)."
    )
    importance_sampling_max: float = Field(3.0, gt=1, le=1000, description="Bound of the correction's weights.")
    prompt_selection: PromptSelectionParams | None = Field(
        None, description="Choose prompts by what the policy makes of them; left out, the seed draws."
    )


class EvaluateParams(SamplingParams):
    """Judge the candidate against the baseline on prompts that training never saw."""

    max_new_tokens: int = Field(128, ge=1, le=32_768, description="Longest reply in tokens.")
    temperature: float = Field(0.7, gt=0, le=5, description="Sampling temperature, the same for both models.")
    max_prompts_per_origin: int = Field(
        512, ge=1, le=1_000_000, description="Prompts used from each origin: one of each user first."
    )
    bootstrap_samples: int = Field(2000, ge=100, le=100_000, description="Resamples over users behind the intervals.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Two-sided confidence of the intervals.")
    checkpoint_prompts_per_origin: int = Field(
        64, ge=1, le=1_000_000, description="Prompts of each origin that the models of the stages between answer too."
    )
    judge: JudgeParams | None = Field(None, description="Ask a judge about the replies; left out, none is asked.")
    benchmarks: BenchmarkParams | None = Field(None, description="General benchmarks; left out, none is run.")


class ResolveParams(Record):
    """Resolving answers digests and, for a dry run, sizes."""

    count: bool = Field(False, description="Read the rows and count them, their tokens and the models' parameters.")
    max_tokens: int = Field(1024, ge=8, le=1_048_576, description="A row counts for at most so many tokens.")
