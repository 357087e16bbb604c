"""Direct preference optimisation on sampled pairs and annotated preferences, with the predecessor as reference."""

import json
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stages import Role
from flywheel_trainer import pair_filter, reports, style_report, training
from flywheel_trainer.annotation import tool_calls
from flywheel_trainer.callbacks import History
from flywheel_trainer.context import StageContext, StageOutcome, is_main_process
from flywheel_trainer.data.rows import Message
from flywheel_trainer.examples import encode_pair, encode_replies, preferences, require, without_judged
from flywheel_trainer.models import read_policy
from flywheel_trainer.prompts import split_tools

Pair = dict[str, list[Message]]
"""`prompt`, `chosen` and `rejected`, as TRL reads them."""


def run(ctx: StageContext) -> StageOutcome:
    """Trains the policy and leaves the merged model."""
    params = ctx.spec.params
    start = training.prepare(ctx, params, ctx.input(Role.POLICY).path, read_policy)
    pairs, counts = _pairs(ctx, start.tokenizer)
    # TRL reads the reference from the folder that the model came from, or takes the model without its adapter.
    trainer = DPOTrainer(
        model=start.model,
        args=training.configure(
            ctx, DPOConfig, params, max_length=params.max_length, beta=params.beta, loss_type=[params.loss_type]
        ),
        train_dataset=Dataset.from_list([_for_trl(pair) for pair in pairs]),
        processing_class=start.tokenizer,
        peft_config=training.lora(params, "CAUSAL_LM"),
    )
    encoded = (
        encode_replies(start.tokenizer, p["prompt"] + p["chosen"], params.max_length, all_replies=False)
        for p in pairs[: reports.KL_SEQUENCES]
    )
    kl = reports.kl_at_start(ctx, trainer, start, [reports.reply_of(e) for e in encoded if e is not None])
    history = training.train(ctx, trainer)
    training.release(trainer, start)
    training.leave_model(ctx, params, start)
    return StageOutcome(
        metrics={**reports.training(history), **kl, **_preferred(history)},
        counts=counts,
        message=reports.sentence(history),
    )


def _pairs(ctx: StageContext, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Pair], dict[str, int]]:
    given = preferences(ctx, Role.PAIRS, Role.PREFERENCES)
    unjudged = without_judged(ctx, given)
    labelled, calls = tool_calls.trainable(unjudged, ctx.spec.params.agreement, ctx.spec.characters)
    rows, dropped = pair_filter.kept(labelled, ctx.spec.params.pair_filter)
    pairs: list[Pair] = []
    for row in rows:
        fitted = encode_pair(ctx, tokenizer, row, ctx.spec.params.max_length)
        if fitted is not None:
            prompt = fitted[0][: -len(row.chosen)]
            pairs.append({"prompt": prompt, "chosen": list(row.chosen), "rejected": list(row.rejected)})
    require(pairs, "stage dpo")
    if is_main_process():
        style_report.leave_pairs(ctx, rows)
    return pairs, {
        "rows": len(given),
        "dropped-held-out": len(given) - len(unjudged),
        **calls,
        **dropped,
        "dropped-too-long": len(rows) - len(pairs),
    }


def _for_trl(pair: Pair) -> dict[str, Any]:
    """The pair with its character's tools in a column of their own, as JSON: Arrow would mix their schemas up."""
    prompt, tools = split_tools(pair["prompt"])
    return {**pair, "prompt": prompt, "tools": json.dumps(tools or None)}


def _preferred(history: History) -> dict[Metric, Measurement]:
    """How often, and by how much, the policy's implicit reward prefers the chosen reply, over the last steps' pairs."""
    found = {
        Metric.PREFERENCE_ACCURACY: history.last("rewards/accuracies"),
        Metric.PREFERENCE_MARGIN: history.last("rewards/margins"),
    }
    return {name: measured for name, measured in found.items() if measured is not None}
