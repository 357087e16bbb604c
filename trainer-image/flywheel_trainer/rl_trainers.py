"""TRL's trainers for the rl stage: GRPO and online DPO, with either engine, and what to say of importance sampling."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer
from trl import GRPOConfig, GRPOTrainer

from flywheel_contract.params import ImportanceSampling, RlParams
from flywheel_trainer import engines, importance, models, training
from flywheel_trainer.context import StageContext

# Both are experimental in TRL, which says so in a warning; the versions are pinned together and tested.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

REWARD: Final = {"GRPO": "reward", "OnlineDPO": "objective/scores"}
"""The logged mean reward of a step, by algorithm."""

RewardFunction = Callable[..., list[float]]


@dataclass(frozen=True, slots=True)
class Learner:
    """What is to be trained, and by which reward."""

    start: training.Start
    tokenizer: PreTrainedTokenizerBase
    """The start's, as TRL needs it: it renders by itself."""
    prompts: Dataset
    reward: RewardFunction


def correction(ctx: StageContext, params: RlParams) -> ImportanceSampling:
    """The mode of importance sampling that is in force; what is not corrected is noted for the status."""
    mode = params.importance_sampling
    if params.algorithm == "OnlineDPO":
        ctx.notes.append("importance sampling NotApplicable: OnlineDPO learns from pairs, not from ratios")
        return ImportanceSampling.NONE
    if mode is ImportanceSampling.AUTO:
        if engines.use_vllm(params.engine):
            return ImportanceSampling.SEQUENCE_MASK
        if models.dtype_of(params.precision) is not torch.float32:
            return ImportanceSampling.TOKEN_TRUNCATE
        ctx.notes.append("importance sampling NotApplicable: the learner itself samples, in fp32")
        return ImportanceSampling.NONE
    if mode is ImportanceSampling.NONE:
        ctx.notes.append("importance sampling is switched off")
    return mode


def build(ctx: StageContext, args: Any, params: RlParams, learner: Learner, mode: ImportanceSampling) -> Trainer:  # noqa: ANN401 -- TRL's
    """The trainer of `params.algorithm`; `args` come from `configure`."""
    options = {
        "model": learner.start.model,
        "reward_funcs": learner.reward,
        "args": args,
        "train_dataset": learner.prompts,
        "processing_class": learner.tokenizer,
        "peft_config": training.lora(params, "CAUSAL_LM"),
    }
    if params.algorithm == "OnlineDPO":
        from trl.experimental.online_dpo import OnlineDPOTrainer  # noqa: PLC0415 -- its import takes seconds

        return OnlineDPOTrainer(**options)
    if mode is ImportanceSampling.NONE or args.use_vllm:
        return GRPOTrainer(**options)
    return importance.SelfSamplingGRPO(**options, mode=mode, bound=params.importance_sampling_max)


def configure(ctx: StageContext, params: RlParams, mode: ImportanceSampling) -> Any:  # noqa: ANN401 -- TRL's
    """TRL's configuration of `params.algorithm`.

    Raises:
        ConfigError: the engine cannot run here.
    """
    common = {
        "temperature": params.temperature,
        "beta": params.beta,
        "use_vllm": engines.use_vllm(params.engine),
    }
    if common["use_vllm"]:
        common["vllm_mode"] = "colocate"
    if params.algorithm == "OnlineDPO":
        from trl.experimental.online_dpo import OnlineDPOConfig  # noqa: PLC0415

        return training.configure(
            ctx, OnlineDPOConfig, params, max_new_tokens=params.max_new_tokens, max_length=params.max_length, **common
        )
    if common["use_vllm"]:
        common["vllm_importance_sampling_correction"] = mode is not ImportanceSampling.NONE
        common["vllm_importance_sampling_clip_max"] = params.importance_sampling_max
        common["vllm_max_model_length"] = params.max_length
        if mode is not ImportanceSampling.NONE:
            common["vllm_importance_sampling_mode"] = importance.TRL_MODES[mode]
    return training.configure(
        ctx,
        GRPOConfig,
        params,
        num_generations=params.num_generations,
        max_completion_length=params.max_new_tokens,
        **common,
    )
