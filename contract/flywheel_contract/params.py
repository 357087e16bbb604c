"""The parameters of each stage. The same models are the recipe in the CRD, so a default stands in one place only."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from flywheel_contract.base import Record
from flywheel_contract.curation_params import ConstraintsParams, DiversityParams
from flywheel_contract.judging import BenchmarkParams, JudgeParams
from flywheel_contract.pairs import AgreementParams, PairFilterParams


class Precision(StrEnum):
    """The arithmetic of training."""

    AUTO = "Auto"
    """bf16 where the accelerator has it, else fp32."""
    BF16 = "BF16"
    FP32 = "FP32"


class LoraParams(Record):
    """Low-rank adapters instead of full fine-tuning; the merged model is what the stage leaves."""

    r: int = Field(16, ge=1, le=1024, description="Rank of the adapters.")
    alpha: int = Field(32, ge=1, le=4096, description="Scale of the adapters (lora_alpha).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the adapters.")


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
    deepspeed_config: str | None = Field(
        None, max_length=16384, description="A DeepSpeed configuration as JSON text, passed through unchanged."
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


class PrivacyParams(Record):
    """The privacy filter of curation."""

    enabled: bool = Field(True, description="Look for personal identifiers in every message.")
    entities: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        default_factory=lambda: ["CREDIT_CARD", "EMAIL_ADDRESS", "IBAN_CODE", "IP_ADDRESS", "PHONE_NUMBER", "US_SSN"],
        max_length=64,
        description="Presidio's names of the identifiers on which a row is dropped.",
    )


class SafetyParams(Record):
    """The safety filter of curation."""

    enabled: bool = Field(True, description="Score every message with the embedded classifier.")
    threshold: float = Field(0.8, gt=0, le=1, description="Rows with a message scored at or above this are dropped.")


class NearDuplicateParams(Record):
    """Near-duplicate pruning of curation (MinHash over word shingles)."""

    enabled: bool = Field(True, description="Keep one of several prompts that say nearly the same.")
    similarity: float = Field(0.8, gt=0, le=1, description="Estimated Jaccard similarity from which two are the same.")


class CurateParams(Record):
    """Which conversations may be trained on, which are kept for judging, and which are dropped."""

    privacy: PrivacyParams = Field(default_factory=PrivacyParams, description="The privacy filter.")
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
    require_consent: bool = Field(True, description="Drop rows whose consent says that they must not be trained on.")
    holdout_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the users kept for evaluation, chosen by a hash of the user id."
    )
    max_conversations: int | None = Field(
        None, ge=1, le=100_000_000, description="Keep at most this many conversations per origin, drawn by the seed."
    )


class RewardModelParams(TrainingParams):
    """A pointwise Bradley-Terry reward model on preference pairs."""

    learning_rate: float = Field(1e-5, gt=0, le=1, description="Peak learning rate.")
    holdout_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the users whose pairs only measure the model, by a hash of the user id."
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


class RejectionSampleParams(SamplingParams):
    """Draw several replies to each prompt and keep the best and the worst by the composite reward."""

    samples_per_prompt: int = Field(4, ge=2, le=256, description="Replies drawn for each prompt (K).")
    max_prompts: int = Field(1024, ge=1, le=10_000_000, description="Prompts used, drawn by the seed.")


class SftParams(TrainingParams):
    """Supervised fine-tuning on accepted replies and on the user's own data; loss on replies only."""

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


class RlParams(TrainingParams):
    """Online reinforcement learning, single turn from fixed conversation prefixes, against the composite reward."""

    algorithm: Literal["GRPO"] = Field("GRPO", description="Group relative policy optimisation.")
    learning_rate: float = Field(1e-6, gt=0, le=1, description="Peak learning rate.")
    num_generations: int = Field(8, ge=2, le=256, description="Replies per prompt in a group; divides batchSize.")
    max_new_tokens: int = Field(128, ge=1, le=32_768, description="Longest reply in tokens.")
    temperature: float = Field(1.0, gt=0, le=5, description="Sampling temperature.")
    beta: float = Field(0.02, ge=0, le=10, description="Weight of the KL term against the stage's start.")
    max_prompts: int = Field(1024, ge=1, le=10_000_000, description="Prompts used, drawn by the seed.")


class EvaluateParams(SamplingParams):
    """Judge the candidate against the baseline on prompts that training never saw."""

    max_new_tokens: int = Field(128, ge=1, le=32_768, description="Longest reply in tokens.")
    temperature: float = Field(0.7, gt=0, le=5, description="Sampling temperature, the same for both models.")
    max_prompts_per_origin: int = Field(512, ge=1, le=1_000_000, description="Prompts used from each origin.")
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
