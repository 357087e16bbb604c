"""Reinforcement learning: group relative policy optimisation (GRPO) against the composite reward, single turn.

Replies are sampled by the learner itself, on the same device: sampler and learner are one model, so no importance
sampling between two is needed. The KL term, where `beta` asks for one, is against the stage's own start.
"""

from collections.abc import Callable, Sequence

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerState
from trl import GRPOConfig, GRPOTrainer

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import RlParams
from flywheel_contract.stages import Role
from flywheel_trainer import divergence, reports, training
from flywheel_trainer.callbacks import History
from flywheel_trainer.context import StageContext, StageOutcome
from flywheel_trainer.data.rows import Message
from flywheel_trainer.errors import ConfigError, NotFiniteError
from flywheel_trainer.examples import conversations, draw, prompt_of, require
from flywheel_trainer.models import load_policy, read_policy
from flywheel_trainer.prompts import fit_prompt, render, split_tools, token_ids, trainer_tokenizer, with_character
from flywheel_trainer.rewards import Composite, load_composite

_KL_PROMPTS = 16
"""Prompts on whose fresh replies the divergence at the end is measured."""

RewardFunction = Callable[..., list[float]]


def run(ctx: StageContext) -> StageOutcome:
    """Trains the policy and leaves the merged model."""
    params = ctx.spec.params
    _check(params)
    start = training.prepare(ctx, params, ctx.input(Role.POLICY).path, read_policy)
    prompts, counts = _prompts(ctx, start.tokenizer)
    composite = load_composite(ctx, params.precision)
    trainer = GRPOTrainer(
        model=start.model,
        reward_funcs=reward_function(composite, params.batch_size),
        args=training.configure(
            ctx,
            GRPOConfig,
            params,
            num_generations=params.num_generations,
            max_completion_length=params.max_new_tokens,
            temperature=params.temperature,
            beta=params.beta,
        ),
        train_dataset=Dataset.from_list([{"prompt": split_tools(prompt)[0]} for prompt in prompts]),
        processing_class=trainer_tokenizer(start.tokenizer, ctx.spec.characters),
        peft_config=training.lora(params, "CAUSAL_LM"),
    )
    texts = [token_ids(start.tokenizer, render(start.tokenizer, prompt, reply_next=True)) for prompt in prompts]
    # Before there are replies, the divergence is measured on the tokens of the prompts.
    kl = reports.kl_at_start(ctx, trainer, start, [(ids, 1) for ids in texts[: reports.KL_SEQUENCES]])
    history = training.train(ctx, trainer)
    training.release(trainer, start)
    model = training.leave_model(ctx, params, start)
    final = load_policy(model, params.precision)
    before = load_policy(start.path, params.precision)
    replies = [_reply(final, start.tokenizer, ids, params) for ids in texts[:_KL_PROMPTS]]
    kl[Metric.KL_TO_POLICY] = divergence.measurement(divergence.per_sequence(final, before, replies), "at the end")
    rewards = _rewards(history)
    return StageOutcome(
        metrics={**reports.training(history), **kl, **rewards}, counts=counts, message=_sentence(history, rewards)
    )


def reward_function(composite: Composite, batch_size: int) -> RewardFunction:
    """The composite as TRL calls it: with prompts and completions as messages, one number back for each.

    Raises (when it is called):
        NotFiniteError: a reward is NaN or infinite; names the step.
    """

    def composite_reward(
        prompts: Sequence[list[Message]],
        completions: Sequence[list[Message]],
        trainer_state: TrainerState,
        **_: object,
    ) -> list[float]:
        both = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        try:
            return [float(score) for score in composite.score(both, batch_size)]
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}, at step {trainer_state.global_step + 1}") from error

    return composite_reward


def _check(params: RlParams) -> None:
    """TRL's own refusal comes as a ValueError, after the models are loaded."""
    generated = params.batch_size * params.gradient_accumulation_steps
    if generated % params.num_generations:
        raise ConfigError(
            f"rl: batchSize times gradientAccumulationSteps is {generated}, which numGenerations "
            f"{params.num_generations} does not divide; choose a multiple"
        )


def _prompts(ctx: StageContext, tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[Message]], dict[str, int]]:
    """Conversation prefixes up to the last reply, which is left for the policy to write."""
    params = ctx.spec.params
    room = params.max_length - params.max_new_tokens
    if room < 1:
        raise ConfigError(f"rl: maxNewTokens {params.max_new_tokens} leaves no room in maxLength {params.max_length}")
    rows = conversations(ctx, Role.PROMPTS)
    prompts = []
    for row in draw(ctx, rows, params.max_prompts):
        messages = with_character(prompt_of(row.messages), row.character, ctx.spec.characters)
        fitted = fit_prompt(tokenizer, messages, room)
        if fitted and len(token_ids(tokenizer, render(tokenizer, fitted, reply_next=True))) <= room:
            prompts.append(fitted)
    require(prompts, "stage rl")
    return prompts, {"rows": len(rows), "prompts": len(prompts)}


@torch.inference_mode()
def _reply(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, ids: list[int], params: RlParams
) -> divergence.Reply:
    """A reply sampled from `model` to the prompt `ids`."""
    whole = model.generate(  # type: ignore[operator] -- transformers' mixin
        input_ids=torch.tensor([ids], device=model.device),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
        max_new_tokens=params.max_new_tokens,
        min_new_tokens=1,
        do_sample=True,
        temperature=params.temperature,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return whole[0].tolist(), len(ids)


def _rewards(history: History) -> dict[Metric, Measurement]:
    found = {Metric.RL_REWARD_FIRST: history.first("reward"), Metric.RL_REWARD_LAST: history.last("reward")}
    return {name: measured for name, measured in found.items() if measured is not None}


def _sentence(history: History, rewards: dict[Metric, Measurement]) -> str:
    if not rewards:
        return reports.sentence(history)
    first, last = rewards[Metric.RL_REWARD_FIRST].value, rewards[Metric.RL_REWARD_LAST].value
    return f"{len(history.steps)} steps, reward {first:.4g} to {last:.4g}"
