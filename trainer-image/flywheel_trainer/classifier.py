"""Training of a classifier with one logit (binary cross-entropy), by transformers' Trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import BatchEncoding, DataCollatorWithPadding, PreTrainedModel, Trainer, TrainingArguments

from flywheel_contract.params import RewardStageParams
from flywheel_contract.stages import RewardModelType
from flywheel_trainer import training
from flywheel_trainer.callbacks import History
from flywheel_trainer.context import StageContext
from flywheel_trainer.model_files import REWARD_TYPE
from flywheel_trainer.models import read_scorer

Labelled = tuple[list[int], bool]
"""The tokens of a row, and whether the answer is yes."""


def reader(kind: RewardModelType) -> training.Loader:
    """A loader of models with one score, which say in their config.json what kind of reward model they become."""

    def read(path: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:  # noqa: ANN401 -- transformers' own
        model = read_scorer(path, dtype, **options)
        setattr(model.config, REWARD_TYPE, kind.value)
        # transformers' name for binary cross-entropy on each logit; with one label it would regress otherwise.
        model.config.problem_type = "multi_label_classification"
        return model

    return read


class _Flat:
    """Makes one padded batch of the rows of several examples."""

    def __init__(self, padding: DataCollatorWithPadding) -> None:
        self._padding = padding

    def __call__(self, examples: Sequence[dict[str, Any]]) -> BatchEncoding:
        rows = [
            {"input_ids": ids, "labels": [label]}
            for each in examples
            for ids, label in zip(each["rows"], each["labels"], strict=True)
        ]
        return self._padding(rows)


def fit(
    ctx: StageContext,
    params: RewardStageParams,
    start: training.Start,
    examples: Sequence[Sequence[Labelled]],
) -> History:
    """Trains `start.model`, and gives the memory back.

    An example is one labelled row of tokens, or several that belong together: they stand in one batch, which counts
    examples. So the two orders of a pair weigh the same in every step; with them in different batches the step pulls
    at what all rows have in common, and a tiny model learned little else.
    """
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
        args=training.configure(ctx, TrainingArguments, params, remove_unused_columns=False),
        train_dataset=Dataset.from_list(
            [{"rows": [ids for ids, _ in each], "labels": [float(label) for _, label in each]} for each in examples]
        ),
        data_collator=_Flat(DataCollatorWithPadding(start.tokenizer)),
        processing_class=start.tokenizer,
    )
    # The loss is a mean over the batch, so accumulated batches are to be averaged too.
    trainer.model_accepts_loss_kwargs = False
    history = training.train(ctx, trainer)
    training.release(trainer, start)
    return history
