"""Reinforcement learning, single turn from fixed conversation prefixes, against the composite reward.

GRPO or online DPO (`rl_trainers`). The KL term, where `beta` asks for one, is against the stage's own start; the
divergence from it, and from the Generation's parent, is measured in a pass of its own on the model that was saved.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from datasets import Dataset, Features, Json
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, TrainerState

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import PromptSelectionParams, RlParams, SamplingParams
from flywheel_contract.stages import Role
from flywheel_trainer import divergence, engines, importance, prompt_selection, reports, rl_trainers, training
from flywheel_trainer.artifacts import write_atomically
from flywheel_trainer.callbacks import History
from flywheel_trainer.context import StageContext, StageOutcome, is_main_process
from flywheel_trainer.data.rows import Message
from flywheel_trainer.errors import ConfigError, DataError, NotFiniteError
from flywheel_trainer.examples import conversations, draw, prompt_of, require
from flywheel_trainer.models import load_policy, read_policy
from flywheel_trainer.perplexity import reply_likelihoods
from flywheel_trainer.prompts import (
    fit_prompt,
    render,
    split_tools,
    spoken,
    token_ids,
    trainer_tokenizer,
    with_character,
)
from flywheel_trainer.rewards import Composite, load_composite
from flywheel_trainer.sampling import sample_replies

_KL_PROMPTS: Final = 16
"""Prompts on whose fresh replies the divergence at the end is measured."""

SELECTION_FILE: Final = "prompts.json"
"""Among the checkpoints: which prompts were chosen, so that a resumed attempt trains on the same."""

Prompt = list[Message]


def run(ctx: StageContext) -> StageOutcome:
    """Trains the policy and leaves the merged model."""
    params = ctx.spec.params
    _check(params)
    mode = rl_trainers.correction(ctx, params)
    start = training.prepare(ctx, params, ctx.input(Role.POLICY).path, read_policy)
    composite = load_composite(ctx, params.precision)
    args = rl_trainers.configure(ctx, params, mode)
    prompts, counts = _prompts(ctx, start, composite)
    learner = rl_trainers.Learner(
        start,
        trainer_tokenizer(start.tokenizer, ctx.spec.characters),
        Dataset.from_list([{"prompt": split_tools(prompt)[0]} for prompt in prompts], Features(prompt=Json())),
        reward_function(composite, params),
    )
    trainer = rl_trainers.build(ctx, args, params, learner, mode)
    texts = [token_ids(start.tokenizer, render(start.tokenizer, prompt, reply_next=True)) for prompt in prompts]
    # Before there are replies, the divergence is measured on the tokens of the prompts.
    kl = reports.kl_at_start(ctx, trainer, start, [(ids, 1) for ids in texts[: reports.KL_SEQUENCES]])
    history = training.train(ctx, trainer)
    training.release(trainer, start)
    training.leave_model(ctx, params, start)
    rewards = _rewards(history, params)
    return StageOutcome(
        metrics={**reports.training(history), **kl, **_divergences(ctx, start, texts[:_KL_PROMPTS]), **rewards},
        counts=counts,
        message=_sentence(history, rewards),
    )


def reward_function(composite: Composite, params: RlParams) -> rl_trainers.RewardFunction:
    """The composite as TRL calls it: with prompts and completions as messages, one number back for each.

    Raises (when it is called):
        NotFiniteError: a reward is NaN or infinite; names the step.
    """

    def composite_reward(
        prompts: Sequence[Prompt],
        completions: Sequence[list[Message]],
        trainer_state: TrainerState,
        **_: object,
    ) -> list[float]:
        both = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        try:
            return [float(score) for score in composite.score(both, params.batch_size)]
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}, at step {trainer_state.global_step + 1}") from error

    return composite_reward


def _check(params: RlParams) -> None:
    """TRL's own refusals come as a ValueError, after the models are loaded."""
    generated = params.batch_size * params.gradient_accumulation_steps
    if params.algorithm == "GRPO" and generated % params.num_generations:
        raise ConfigError(
            f"rl: batchSize times gradientAccumulationSteps is {generated}, which numGenerations "
            f"{params.num_generations} does not divide; choose a multiple"
        )
    if params.algorithm == "OnlineDPO" and params.beta == 0:
        raise ConfigError("rl: OnlineDPO needs a beta above 0; it is the scale of its implicit reward")
    if params.max_length <= params.max_new_tokens:
        raise ConfigError(f"rl: maxNewTokens {params.max_new_tokens} leaves no room in maxLength {params.max_length}")
    engines.use_vllm(params.engine)  # refuses where it cannot run


def _prompts(ctx: StageContext, start: training.Start, composite: Composite) -> tuple[list[Prompt], dict[str, int]]:
    """Conversation prefixes up to the last reply, which is left for the policy to write."""
    params = ctx.spec.params
    room = params.max_length - params.max_new_tokens
    rows = conversations(ctx, Role.PROMPTS)
    selection = params.prompt_selection
    # Selection looks at candidates in a shuffled order; without it, the drawn rows keep theirs.
    limit = params.max_prompts if selection is None else len(rows)
    found: list[tuple[Prompt, Message]] = []
    for row in draw(ctx, rows, limit):
        messages = spoken(start.tokenizer, with_character(prompt_of(row.messages), row.character, ctx.spec.characters))
        fitted = fit_prompt(start.tokenizer, messages, room)
        if fitted and len(token_ids(start.tokenizer, render(start.tokenizer, fitted, reply_next=True))) <= room:
            found.append((fitted, row.messages[-1]))
    require(found, "stage rl")
    counts = {"rows": len(rows), "prompts": len(found)}
    if selection is None:
        return [prompt for prompt, _ in found], counts
    order = np.random.default_rng(ctx.spec.seed).permutation(len(found))
    shuffled = [found[index] for index in order]
    indexes, told = _selected(ctx, selection, start, composite, shuffled)
    if not indexes:
        raise DataError(
            f"stage rl: of {told['selection.candidates']} prompts none has replies that differ in reward; raise "
            "promptSelection.samples or the temperature, or look at the reward model"
        )
    ctx.notes.append(
        f"{len(indexes)} prompts chosen of {told['selection.candidates']} candidates by {selection.by} "
        f"in {told['selection.rounds']} rounds"
    )
    return [shuffled[index][0] for index in indexes], {**counts, **told, "prompts": len(indexes)}


def _selected(
    ctx: StageContext,
    selection: PromptSelectionParams,
    start: training.Start,
    composite: Composite,
    candidates: Sequence[tuple[Prompt, Message]],
) -> tuple[list[int], dict[str, int]]:
    """Chosen by the first process; the others, and later attempts, take what it chose."""
    path = ctx.checkpoints() / SELECTION_FILE
    if is_main_process() and not (ctx.spec.resume and path.exists()):
        ctx.progress(message="choosing the prompts")
        chosen = _choose(ctx, selection, start, composite, candidates)
        write_atomically(path, json.dumps({"indexes": chosen.indexes, "counts": chosen.counts()}))
        ctx.keep_checkpoints()
    saved: list[Any] = [json.loads(path.read_text(encoding="utf-8")) if is_main_process() else None]
    training.from_first(saved)
    return saved[0]["indexes"], saved[0]["counts"]


def _choose(
    ctx: StageContext,
    selection: PromptSelectionParams,
    start: training.Start,
    composite: Composite,
    candidates: Sequence[tuple[Prompt, Message]],
) -> prompt_selection.Chosen:
    params: RlParams = ctx.spec.params
    policy = load_policy(start.path, params.precision)
    sampling = SamplingParams(
        max_new_tokens=params.max_new_tokens,
        max_prompt_tokens=params.max_length,
        temperature=params.temperature,
        batch_size=params.batch_size,
        precision=params.precision,
    )

    def nearness(members: Sequence[int]) -> NDArray[np.float64]:
        found = reply_likelihoods(
            policy,
            start.tokenizer,
            [[*candidates[i][0], candidates[i][1]] for i in members],
            max_prompt_tokens=params.max_length,
            max_reply_tokens=params.max_new_tokens,
            batch_size=params.batch_size,
        )
        return np.asarray(-found.nats / found.tokens)

    def rewards(members: Sequence[int]) -> NDArray[np.float64]:
        prompts = [candidates[i][0] for i in members]
        replies = sample_replies(
            policy, start.tokenizer, prompts, sampling, count=selection.samples, seed=ctx.spec.seed
        )
        both = [
            [*prompt, {"role": "assistant", "content": text}]
            for prompt, texts in zip(prompts, replies, strict=True)
            for text in texts
        ]
        return composite.score(both, params.batch_size).reshape(len(members), selection.samples)

    return prompt_selection.choose(len(candidates), params.max_prompts, selection, nearness, rewards)


def _divergences(ctx: StageContext, start: training.Start, prompts: Sequence[list[int]]) -> dict[Metric, Measurement]:
    """KL of the saved model to the stage's start and to the Generation's parent, on the model's own fresh replies."""
    params: RlParams = ctx.spec.params
    ctx.progress(message="measuring the divergence from start and parent")
    final = load_policy(ctx.output("model"), params.precision)
    replies = [_reply(final, start.tokenizer, ids, params) for ids in prompts]
    before = load_policy(start.path, params.precision)
    found = {Metric.KL_TO_POLICY: divergence.measurement(divergence.per_sequence(final, before, replies), "at the end")}
    parents = ctx.inputs(Role.PARENT)
    if not parents:
        return found
    if parents[0].spec.digest == ctx.input(Role.POLICY).spec.digest:
        return {**found, Metric.KL_TO_PARENT: found[Metric.KL_TO_POLICY]}
    del before
    parent = load_policy(parents[0].path, params.precision)
    if parent.config.vocab_size != final.config.vocab_size:
        ctx.notes.append("klToParent was not measured: the parent has another vocabulary")
        return found
    values = divergence.per_sequence(final, parent, replies)
    return {**found, Metric.KL_TO_PARENT: divergence.measurement(values, "from the parent")}


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


def _rewards(history: History, params: RlParams) -> dict[Metric, Measurement]:
    reward = rl_trainers.REWARD[params.algorithm]
    found = {
        Metric.RL_REWARD_FIRST: history.first(reward),
        Metric.RL_REWARD_LAST: history.last(reward),
        Metric.IMPORTANCE_WEIGHT: history.last(importance.WEIGHT),
    }
    return {name: measured for name, measured in found.items() if measured is not None}


def _sentence(history: History, rewards: dict[Metric, Measurement]) -> str:
    if Metric.RL_REWARD_FIRST not in rewards:
        return reports.sentence(history)
    first, last = rewards[Metric.RL_REWARD_FIRST].value, rewards[Metric.RL_REWARD_LAST].value
    return f"{len(history.steps)} steps, reward {first:.4g} to {last:.4g}"
