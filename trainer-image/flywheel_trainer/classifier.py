"""Training of a classifier with one logit (binary cross-entropy), by transformers' Trainer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import DataCollatorWithPadding, PreTrainedModel, Trainer, TrainingArguments

from flywheel_contract.params import RewardStageParams
from flywheel_contract.stages import RewardModelType
from flywheel_trainer import training
from flywheel_trainer.callbacks import History
from flywheel_trainer.context import StageContext
from flywheel_trainer.model_files import REWARD_TYPE
from flywheel_trainer.models import read_scorer


def reader(kind: RewardModelType) -> training.Loader:
    """A loader of models with one score, which say in their config.json what kind of reward model they become."""

    def read(path: Path, dtype: torch.dtype) -> PreTrainedModel:
        model = read_scorer(path, dtype)
        setattr(model.config, REWARD_TYPE, kind.value)
        # transformers' name for binary cross-entropy on each logit; with one label it would regress otherwise.
        model.config.problem_type = "multi_label_classification"
        return model

    return read


def fit(
    ctx: StageContext,
    params: RewardStageParams,
    start: training.Start,
    examples: Sequence[tuple[list[int], bool]],
) -> History:
    """Trains `start.model` on rows of tokens with their labels, and gives the memory back."""
    start.model.config.pad_token_id = start.tokenizer.pad_token_id
    adapters = training.lora(params, "SEQ_CLS")
    model = start.model
    if adapters is not None:
        if params.gradient_checkpointing:
            # The inputs of a frozen model need no gradient, and checkpointed blocks would then get none.
            model.enable_input_require_grads()
        model = get_peft_model(model, adapters)
    trainer = Trainer(
        model=model,
        args=training.configure(ctx, TrainingArguments, params),
        train_dataset=Dataset.from_list([{"input_ids": ids, "labels": [float(label)]} for ids, label in examples]),
        data_collator=DataCollatorWithPadding(start.tokenizer),
        processing_class=start.tokenizer,
    )
    history = training.train(ctx, trainer)
    training.release(trainer, start)
    return history
