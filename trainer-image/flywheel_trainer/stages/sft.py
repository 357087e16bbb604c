"""Supervised fine-tuning: imitate a weighted mixture of named sources. The loss falls on replies only."""

import json

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from flywheel_contract.stages import Role
from flywheel_trainer import mixture, packing, reports, training
from flywheel_trainer.context import StageContext, StageOutcome, is_main_process
from flywheel_trainer.data.screening import Screen
from flywheel_trainer.examples import require
from flywheel_trainer.models import read_policy

MIXTURE_FILE = "mixture.json"
"""Below `logs/`: what each source gave to the mixture."""


def run(ctx: StageContext) -> StageOutcome:
    """Trains the policy and leaves the merged model."""
    params = ctx.spec.params
    # Before the model is loaded: what is wrong with the data is known in seconds.
    screen = Screen(ctx)
    sources = mixture.sources(ctx, params, screen)
    start = training.prepare(ctx, params, ctx.input(Role.POLICY).path, read_policy)
    rows = mixture.encode(ctx, start.tokenizer, sources)
    require(rows, "stage sft")
    trainer = SFTTrainer(
        model=start.model,
        args=training.configure(ctx, SFTConfig, params, max_length=params.max_length, packing=params.packing),
        train_dataset=Dataset.from_list(rows),
        processing_class=start.tokenizer,
        peft_config=training.lora(params, "CAUSAL_LM"),
    )
    if params.packing:
        packing.check(trainer.model, rows[0]["input_ids"], rows[-1]["input_ids"])
    kl = reports.kl_at_start(ctx, trainer, start, [reports.reply_of(row) for row in rows])
    history = training.train(ctx, trainer)
    training.release(trainer, start)
    training.leave_model(ctx, params, start)
    if is_main_process():
        text = json.dumps({"sources": mixture.report(sources)}, indent=1)
        (ctx.beside("logs") / MIXTURE_FILE).write_text(text + "\n", encoding="utf-8")
    return StageOutcome(
        metrics={**reports.training(history), **kl},
        counts={**mixture.counts(sources), **screen.counts},
        message=reports.sentence(history) + mixture.sentence(sources),
    )
