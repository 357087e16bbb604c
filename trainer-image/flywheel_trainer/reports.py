"""The metrics that training stages have in common. What could not be measured is left out."""

import resource
from collections.abc import Sequence

import torch
from transformers import Trainer
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_trainer import divergence
from flywheel_trainer.callbacks import History
from flywheel_trainer.context import StageContext
from flywheel_trainer.examples import IGNORED
from flywheel_trainer.training import Start

KL_SEQUENCES = 8
"""Replies on which the divergence at the start is measured; it is 0 on every one or something is wrong."""


def training(history: History) -> dict[Metric, Measurement]:
    """Loss, time per step and memory."""
    found = {
        Metric.TRAIN_LOSS_FIRST: history.first("loss"),
        Metric.TRAIN_LOSS_LAST: history.last("loss"),
        Metric.STEP_SECONDS: history.median("seconds"),
        Metric.PEAK_MEMORY_BYTES: Measurement(value=_peak_memory()),
    }
    return {name: measured for name, measured in found.items() if measured is not None}


def kl_at_start(
    ctx: StageContext, trainer: Trainer, start: Start, replies: Sequence[divergence.Reply]
) -> dict[Metric, Measurement]:
    """KL from the predecessor, read from its folder again, to the model that is about to be trained. It must be 0."""
    ctx.progress(message="measuring the divergence from the predecessor")
    unset_hf_deepspeed_config()  # ZeRO-3 would partition the predecessor too, under a batch size that it cannot know
    predecessor = start.again()
    if not start.options:  # quantised weights lie on their device already, and refuse to be moved
        predecessor = predecessor.to(trainer.model.device)
    config = getattr(trainer.args, "hf_deepspeed_config", None)  # there only where DeepSpeed was asked for
    if config is not None:
        set_hf_deepspeed_config(config)
    values = divergence.per_sequence(trainer.model, predecessor, replies[:KL_SEQUENCES])
    return {Metric.KL_AT_START: divergence.measurement(values, "at step 0")}


def reply_of(example: dict[str, list[int]]) -> divergence.Reply:
    """The tokens of an example and where its first reply begins."""
    labels = example["labels"]
    return example["input_ids"], next(i for i, label in enumerate(labels) if label != IGNORED)


def sentence(history: History) -> str:
    """What the training did, for the status."""
    first, last = history.first("loss"), history.last("loss")
    if first is None or last is None:
        return f"{len(history.steps)} steps"
    return f"{len(history.steps)} steps, loss {first.value:.4g} to {last.value:.4g}"


def _peak_memory() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
