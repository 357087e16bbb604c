"""Supervised fine-tuning: imitate the accepted replies and the user's own data. The loss falls on replies only."""

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from flywheel_contract.stages import Role
from flywheel_trainer import reports, training
from flywheel_trainer.annotation import tool_calls
from flywheel_trainer.context import StageContext, StageOutcome
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.examples import conversations, encode_replies, require, without_judged
from flywheel_trainer.models import read_policy
from flywheel_trainer.prompts import with_character


def run(ctx: StageContext) -> StageOutcome:
    """Trains the policy and leaves the merged model."""
    params = ctx.spec.params
    start = training.prepare(ctx, params, ctx.input(Role.POLICY).path, read_policy)
    rows, counts = _examples(ctx, start.tokenizer)
    trainer = SFTTrainer(
        model=start.model,
        args=training.configure(ctx, SFTConfig, params, max_length=params.max_length),
        train_dataset=Dataset.from_list(rows),
        processing_class=start.tokenizer,
        peft_config=training.lora(params, "CAUSAL_LM"),
    )
    kl = reports.kl_at_start(ctx, trainer, start, [reports.reply_of(row) for row in rows])
    history = training.train(ctx, trainer)
    training.release(trainer, start)
    training.leave_model(ctx, params, start)
    return StageOutcome(metrics={**reports.training(history), **kl}, counts=counts, message=reports.sentence(history))


def _examples(
    ctx: StageContext, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict[str, list[int]]], dict[str, int]]:
    """Tokenised rows, and how many came from where.

    Of an accepted row only the sampled reply counts; of data to imitate, every reply. Without either, the replies of
    the curated conversations themselves are imitated.
    """
    sources = [(Role.ACCEPTED, False), (Role.SFT_DATA, True)]
    if not any(i.role in (Role.ACCEPTED, Role.SFT_DATA) for i in ctx.spec.inputs):
        sources = [(Role.PROMPTS, True)]
    if not any(i.role == role for i in ctx.spec.inputs for role, _ in sources):
        raise ConfigError("stage sft has nothing to imitate; add rejection sampling, sft data or traffic")
    examples, counts = [], {"dropped-too-long": 0, "dropped-held-out": 0}
    for role, all_replies in sources:
        given = conversations(ctx, role)
        found = without_judged(ctx, given)
        counts["dropped-held-out"] += len(given) - len(found)
        labelled, calls = tool_calls.trainable(found, ctx.spec.params.agreement, ctx.spec.characters)
        counts |= {name: counts.get(name, 0) + number for name, number in calls.items()}
        for row in labelled:
            messages = with_character(row.messages, row.character, ctx.spec.characters)
            example = encode_replies(tokenizer, messages, ctx.spec.params.max_length, all_replies=all_replies)
            counts["dropped-too-long"] += example is None
            examples += [example] if example is not None else []
        counts[f"rows-{role.value}"] = len(found)
    require(examples, "stage sft")
    return examples, counts
