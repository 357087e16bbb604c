"""Direct preference optimisation on sampled pairs and annotated preferences, with the predecessor as reference."""

import json
from collections import Counter
from typing import Any

from datasets import Dataset, Features, Json, Value
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stages import Role
from flywheel_trainer import pair_filter, preferred, reports, style_report, training
from flywheel_trainer.annotation import tool_calls
from flywheel_trainer.callbacks import History
from flywheel_trainer.context import StageContext, StageOutcome, is_main_process
from flywheel_trainer.data.rows import Preference, read_preferences
from flywheel_trainer.data.screening import Screen
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.examples import encode_pair, encode_replies, require, share, without_judged
from flywheel_trainer.models import read_policy
from flywheel_trainer.preferred import Pair
from flywheel_trainer.prompts import split_tools

REPORT_FILE = "preferences.json"
"""Below `logs/`: accuracy and margin of each source and origin."""
_COLUMNS = Features(prompt=Json(), chosen=Json(), rejected=Json(), tools=Value("string"))
"""Messages as JSON: Arrow would unite the arguments of all calls into one structure, or refuse them."""


def run(ctx: StageContext) -> StageOutcome:
    """Trains the policy and leaves the merged model."""
    params = ctx.spec.params
    start = training.prepare(ctx, params, ctx.input(Role.POLICY).path, read_policy)
    pairs, counts = _pairs(ctx, start.tokenizer)
    # TRL reads the reference from the folder that the model came from, or takes the model without its adapter.
    trainer = DPOTrainer(
        model=start.model,
        args=training.configure(
            ctx,
            DPOConfig,
            params,
            max_length=params.max_length,
            beta=params.beta,
            loss_type=[params.loss_type],
            precompute_ref_log_probs=params.reference == "Precomputed",
        ),
        train_dataset=Dataset.from_list([_for_trl(pair) for pair in pairs], _COLUMNS),
        processing_class=start.tokenizer,
        peft_config=training.lora(params, "CAUSAL_LM"),
    )
    encoded = (
        encode_replies(start.tokenizer, p.prompt + p.chosen, params.max_length, all_replies=False)
        for p in pairs[: reports.KL_SEQUENCES]
    )
    kl = reports.kl_at_start(ctx, trainer, start, [reports.reply_of(e) for e in encoded if e is not None])
    history = training.train(ctx, trainer)
    training.release(trainer, start)
    training.leave_model(ctx, params, start)
    return StageOutcome(
        metrics={**reports.training(history), **kl, **_preferred(history), **_by_origin(ctx, start, pairs)},
        counts=counts,
        message=reports.sentence(history),
    )


def _by_origin(ctx: StageContext, start: training.Start, pairs: list[Pair]) -> dict[Metric, Measurement]:
    """Measured by the first process alone, on the model as it was saved."""
    params = ctx.spec.params
    chosen = preferred.sampled(pairs, params.measured_pairs, ctx.spec.seed)
    if not chosen or not is_main_process():
        return {}
    ctx.progress(message="measuring the preferences")
    values = preferred.margins(chosen, ctx.output("model"), start.path, params)
    metrics, report = preferred.measure(ctx, chosen, values)
    text = json.dumps({"sources": report}, indent=1)
    (ctx.beside("logs") / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
    return metrics


def _pairs(ctx: StageContext, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Pair], dict[str, int]]:
    inputs = [each for role in (Role.PAIRS, Role.PREFERENCES) for each in ctx.inputs(role)]
    if not inputs:
        raise ConfigError("stage dpo needs an input of role pairs or preferences; name one in the recipe")
    params = ctx.spec.params
    counts: Counter[str] = Counter()
    pairs: list[Pair] = []
    kept: list[Preference] = []
    screen = Screen(ctx)
    for each in inputs:
        found = read_preferences(each.path, each.origin)
        given = share(ctx, screen(found, each) if each.spec.role is Role.PREFERENCES else found, each.weight)
        unjudged = without_judged(ctx, given, each.name)
        labelled, calls = tool_calls.trainable(unjudged, params.agreement, ctx.spec.characters)
        rows, dropped = pair_filter.kept(labelled, params.pair_filter)
        fitted = [pair for row in rows if (pair := _fitted(ctx, tokenizer, each.name, row)) is not None]
        counts.update({"rows": len(given), "dropped-held-out": len(given) - len(unjudged), **calls, **dropped})
        counts.update({"dropped-too-long": len(rows) - len(fitted), f"pairs-{each.name}": len(fitted)})
        pairs += fitted
        kept += rows
    require(pairs, "stage dpo")
    if is_main_process():
        style_report.leave_pairs(ctx, kept)
    return pairs, {**counts, **screen.counts}


def _fitted(ctx: StageContext, tokenizer: PreTrainedTokenizerBase, source: str, row: Preference) -> Pair | None:
    """The pair over a prompt that is short enough for both replies; None where there is none."""
    fitted = encode_pair(ctx, tokenizer, row, ctx.spec.params.max_length)
    if fitted is None:
        return None
    chosen, rejected = fitted
    end = len(chosen) - len(row.chosen)
    return Pair(source, row.origin, row.user, chosen[:end], chosen[end:], rejected[end:])


def _for_trl(pair: Pair) -> dict[str, Any]:
    """The pair with its character's tools in a column of their own, as JSON: Arrow would mix their schemas up."""
    prompt, tools = split_tools(pair.prompt)
    return {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected, "tools": json.dumps(tools or None)}


def _preferred(history: History) -> dict[Metric, Measurement]:
    """How often, and by how much, the policy's implicit reward prefers the chosen reply, over the last steps' pairs."""
    found = {
        Metric.PREFERENCE_ACCURACY: history.last("rewards/accuracies"),
        Metric.PREFERENCE_MARGIN: history.last("rewards/margins"),
    }
    return {name: measured for name, measured in found.items() if measured is not None}
