"""rejection-sample: K replies of the policy to each prompt, scored by the composite reward; best and worst are kept.

Sampling comes first and the policy is let go before the reward models are loaded: they need not fit side by side.
An interrupted attempt starts again; the seed makes it draw the same replies.
"""

import gc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import RejectionSampleParams
from flywheel_contract.stage_spec import RejectionSampleSpec
from flywheel_contract.stages import Role
from flywheel_trainer import intervals, models, style_report
from flywheel_trainer.context import StageContext, StageOutcome
from flywheel_trainer.data.rows import DATA_FILE, Conversation, Message, read_traffic, write_rows
from flywheel_trainer.data.split import draw_key
from flywheel_trainer.errors import ConfigError, DataError
from flywheel_trainer.prompts import with_character
from flywheel_trainer.rewards import load_composite
from flywheel_trainer.sampling import sample_replies

_RESAMPLES: Final = 1000
_CONFIDENCE: Final = 0.95


@dataclass
class Selection:
    """What is kept of the samples."""

    accepted: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def run(ctx: StageContext) -> StageOutcome:
    """Leaves `accepted` (conversations that end with the best reply) and `pairs` (best against worst).

    Raises:
        ConfigError: no prompts, policy or reward model.
        DataError: not one reply has any text.
        NotFiniteError: a reward is NaN or infinite.
    """
    spec = ctx.spec
    if not isinstance(spec, RejectionSampleSpec):
        raise TypeError(f"rejection-sample was given the spec of {spec.stage}")
    rows = draw_rows(ctx, spec.params.max_prompts)
    prompts = [with_character(prefix(row), row.character, spec.characters) for row in rows]
    replies = _sample(ctx, prompts, spec.params)
    rewards = _score(ctx, prompts, replies, spec.params)
    selection = select(rows, replies, rewards)
    if not selection.accepted:
        raise DataError(
            f"none of the {sum(map(len, replies))} sampled replies has any text: check the policy's template"
        )
    style_report.leave_samples(ctx, [row.user for row in rows], [prefix(row) for row in rows], replies, rewards)
    write_rows(ctx.output("accepted") / DATA_FILE, selection.accepted)
    write_rows(ctx.output("pairs") / DATA_FILE, selection.pairs)
    return _outcome(selection, sum(map(len, replies)), spec.seed)


def draw_rows(ctx: StageContext, limit: int) -> list[Conversation]:
    """At most `limit` prompts, drawn by the seed, in the order of the draw.

    Raises:
        ConfigError: there is no input of role `prompts`.
    """
    inputs = ctx.inputs(Role.PROMPTS)
    if not inputs:
        raise ConfigError(f"stage {ctx.spec.stage} has no prompts; stage curate leaves them")
    rows = [row for i in inputs for row in read_traffic(i.path, i.origin)]
    return sorted(rows, key=lambda row: draw_key(ctx.spec.seed, row.conversation))[:limit]


def prefix(row: Conversation) -> list[Message]:
    """What a curated conversation holds before its last reply: that is what is answered anew."""
    return row.messages[:-1]


def select(
    rows: Sequence[Conversation], replies: Sequence[Sequence[str]], rewards: Sequence[Sequence[float]]
) -> Selection:
    """The best and the worst reply to each prompt. Replies without text never count; equal texts make no pair."""
    selection = Selection()
    for row, texts, scores in zip(rows, replies, rewards, strict=True):
        usable = [(score, text) for score, text in zip(scores, texts, strict=True) if text]
        selection.counts["emptyReplies"] += len(texts) - len(usable)
        if not usable:
            selection.counts["promptsWithoutReply"] += 1
            continue
        # By reward, then by text, so that a tie is broken the same way every time.
        worst, best = min(usable), max(usable)
        common = {key: value for key, value in row.to_json().items() if key not in ("messages", "signals", "consent")}
        selection.accepted.append({**common, "messages": [*prefix(row), _reply(best[1])], "reward": best[0]})
        selection.users.append(row.user)
        selection.best.append(best[0])
        selection.worst.append(worst[0])
        if best[1] == worst[1] or best[0] == worst[0]:
            selection.counts["promptsWithoutPair"] += 1
            continue
        selection.pairs.append(
            {
                **common,
                "prompt": prefix(row),
                "chosen": [_reply(best[1])],
                "rejected": [_reply(worst[1])],
                "chosenReward": best[0],
                "rejectedReward": worst[0],
            }
        )
    return selection


def _reply(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _sample(ctx: StageContext, prompts: Sequence[Sequence[Message]], params: RejectionSampleParams) -> list[list[str]]:
    ctx.progress(percent=0, message="loading the policy")
    folder = ctx.input(Role.POLICY).path
    policy, tokenizer = models.load_policy(folder, params.precision), models.load_tokenizer(folder)
    total = len(prompts) * params.samples_per_prompt
    ctx.progress(message=f"drawing {total} replies")
    replies = sample_replies(
        policy,
        tokenizer,
        prompts,
        params,
        count=params.samples_per_prompt,
        seed=ctx.spec.seed,
        report=lambda share: ctx.progress(percent=80 * share, step=round(total * share), total_steps=total),
    )
    del policy
    gc.collect()
    return replies


def _score(
    ctx: StageContext,
    prompts: Sequence[Sequence[Message]],
    replies: Sequence[Sequence[str]],
    params: RejectionSampleParams,
) -> list[list[float]]:
    ctx.progress(percent=80, message="scoring the replies")
    composite = load_composite(ctx, params.precision)
    conversations = [[*p, _reply(text)] for p, texts in zip(prompts, replies, strict=True) for text in texts]
    scores = composite.score(conversations, params.batch_size).tolist()
    ctx.progress(percent=95, reward=float(np.mean(scores)))
    each = params.samples_per_prompt
    return [scores[i : i + each] for i in range(0, len(scores), each)]


def _outcome(selection: Selection, drawn: int, seed: int) -> StageOutcome:
    def mean(values: list[float]) -> Measurement:
        return intervals.mean(selection.users, values, samples=_RESAMPLES, seed=seed).measurement(_CONFIDENCE)

    accepted, rejected = mean(selection.best), mean(selection.worst)
    return StageOutcome(
        metrics={
            Metric.SAMPLES_DRAWN: Measurement(value=drawn, n=drawn),
            Metric.ACCEPTED_REWARD: accepted,
            Metric.REJECTED_REWARD: rejected,
        },
        counts={"accepted": len(selection.accepted), "pairs": len(selection.pairs), **selection.counts},
        message=f"{len(selection.accepted)} replies accepted of {drawn}, reward {accepted.value:.2f} "
        f"against {rejected.value:.2f} of the worst, {len(selection.pairs)} pairs",
    )
