"""rejection-sample: replies of a pool of policies to each prompt, scored by the composite reward; best and worst stay.

The pool is the policy that is trained and whatever else the recipe names: models by URI, endpoints. They draw one after
the other and are let go before the reward models are loaded: they need not fit side by side.
An interrupted attempt starts again; the seed makes local models draw the same replies.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import RejectionSampleParams
from flywheel_contract.stage_spec import RejectionSampleSpec
from flywheel_contract.stages import Origin, Role
from flywheel_trainer import engines, intervals, style_report
from flywheel_trainer.context import StageContext, StageOutcome
from flywheel_trainer.data.files import DATA_FILE, write_rows
from flywheel_trainer.data.rows import Conversation, Message, read_traffic
from flywheel_trainer.data.split import draw_key
from flywheel_trainer.endpoints import EndpointDrawer
from flywheel_trainer.errors import ConfigError, DataError
from flywheel_trainer.prompts import with_character
from flywheel_trainer.rewards import load_composite

CURRENT: Final = "current"
"""The name of the policy that is trained, in the report."""
REPORT_FILE: Final = "_report.json"
"""Beside the accepted rows; a name that begins with `_` is no data."""

_RESAMPLES: Final = 1000
_CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Reply:
    """A sampled reply and which policy wrote it."""

    policy: str
    text: str


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
        ConfigError: no prompts, policy or reward model; an endpoint that refuses; vLLM where it cannot run.
        DataError: not one reply has any text.
        NotFiniteError: a reward is NaN or infinite.
    """
    spec = ctx.spec
    if not isinstance(spec, RejectionSampleSpec):
        raise TypeError(f"rejection-sample was given the spec of {spec.stage}")
    rows = draw_rows(ctx, spec.params.max_prompts)
    prompts = [with_character(prefix(row), row.character, spec.characters) for row in rows]
    replies = _sample(ctx, prompts, spec.params)
    drawn = sum(map(len, replies))
    if not any(reply.text for each in replies for reply in each):
        raise DataError(f"none of the {drawn} sampled replies has any text: check the policy's template")
    rewards = _score(ctx, prompts, replies, spec.params)
    selection = select(rows, replies, rewards)
    texts = [[each.text for each in given] for given in replies]
    style_report.leave_samples(ctx, [row.user for row in rows], [prefix(row) for row in rows], texts, rewards)
    write_rows(ctx.output("accepted") / DATA_FILE, selection.accepted)
    write_rows(ctx.output("pairs") / DATA_FILE, selection.pairs)
    report = acceptance(rows, replies, rewards, selection)
    path = ctx.output("accepted") / REPORT_FILE
    path.write_text(json.dumps({"policies": report}, indent=1) + "\n", encoding="utf-8")
    return _outcome(selection, drawn, spec.seed, report)


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
    rows: Sequence[Conversation], replies: Sequence[Sequence[Reply]], rewards: Sequence[Sequence[float]]
) -> Selection:
    """The best and the worst reply to each prompt. Replies without text never count; equal texts make no pair."""
    selection = Selection()
    for row, given, scores in zip(rows, replies, rewards, strict=True):
        usable = [(score, each.text, each.policy) for score, each in zip(scores, given, strict=True) if each.text]
        selection.counts["emptyReplies"] += len(given) - len(usable)
        if not usable:
            selection.counts["promptsWithoutReply"] += 1
            continue
        # By reward, then by text, so that a tie is broken the same way every time.
        worst, best = min(usable), max(usable)
        common = {key: value for key, value in row.to_json().items() if key not in ("messages", "signals", "consent")}
        selection.accepted.append(
            {**common, "messages": [*prefix(row), _message(best[1])], "reward": best[0], "policy": best[2]}
        )
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
                "chosen": [_message(best[1])],
                "rejected": [_message(worst[1])],
                "chosenReward": best[0],
                "rejectedReward": worst[0],
                "chosenPolicy": best[2],
                "rejectedPolicy": worst[2],
            }
        )
    return selection


def acceptance(
    rows: Sequence[Conversation],
    replies: Sequence[Sequence[Reply]],
    rewards: Sequence[Sequence[float]],
    selection: Selection,
) -> dict[str, dict[str, Any]]:
    """Of each policy, and of each by origin: replies drawn, how many had no text, how many were accepted (the best
    reply to their prompt) or rejected (the worse one of a pair), the share accepted, and the mean reward."""
    report: dict[str, dict[str, Any]] = {}
    for policy in dict.fromkeys(each.policy for given in replies for each in given):
        parts: dict[str, Any] = {}
        for origin in (None, *Origin):
            scored = [
                (each, score)
                for row, given, scores in zip(rows, replies, rewards, strict=True)
                if origin in (None, row.origin)
                for each, score in zip(given, scores, strict=True)
                if each.policy == policy
            ]
            if not scored:
                continue
            named = None if origin is None else origin.value
            accepted = _count(selection.accepted, "policy", policy, named)
            told = [score for each, score in scored if each.text]
            parts["all" if named is None else named] = {
                "drawn": len(scored),
                "empty": len(scored) - len(told),
                "accepted": accepted,
                "rejected": _count(selection.pairs, "rejectedPolicy", policy, named),
                "acceptanceRate": accepted / len(scored),
                **({"meanReward": float(np.mean(told))} if told else {}),
            }
        report[policy] = parts.pop("all") | {"byOrigin": parts}
    return report


def _count(rows: Sequence[dict[str, Any]], key: str, policy: str, origin: str | None) -> int:
    return sum(row[key] == policy and origin in (None, row["origin"]) for row in rows)


def _message(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _sample(
    ctx: StageContext, prompts: Sequence[Sequence[Message]], params: RejectionSampleParams
) -> list[list[Reply]]:
    """The replies of the whole pool to each prompt, policy by policy."""
    models = {f"pool-{p.name}": p for p in params.pool if p.endpoint is None}
    folders = {i.name: i.path for i in ctx.inputs(Role.POOL)}
    if missing := sorted(set(models) - set(folders)):
        raise ConfigError(f"rejection-sample: the pool has neither endpoint nor model for {', '.join(missing)}")
    wanted = [params.samples_per_prompt, *(p.samples_per_prompt or params.samples_per_prompt for p in params.pool)]
    total, before = len(prompts) * sum(wanted), 0
    found: list[list[Reply]] = [[] for _ in prompts]

    def draw(drawer: engines.Drawer, name: str, count: int) -> None:
        nonlocal before
        ctx.progress(message=f"drawing {len(prompts) * count} replies of {name}")

        def report(share: float) -> None:
            step = before + round(share * len(prompts) * count)
            ctx.progress(percent=80 * step / total, step=step, total_steps=total)

        texts = drawer.draw(prompts, params, count=count, seed=ctx.spec.seed, report=report)
        for given, each in zip(found, texts, strict=True):
            given += [Reply(name, text) for text in each]
        before += len(prompts) * count

    longest = params.max_prompt_tokens + params.max_new_tokens
    local = [(CURRENT, ctx.input(Role.POLICY).path, wanted[0])]
    local += [(p.name, folders[f"pool-{p.name}"], n) for p, n in zip(params.pool, wanted[1:], strict=True)
              if p.endpoint is None]  # fmt: skip
    # Endpoints first: what they refuse is known before hours of sampling.
    for member, count in zip(params.pool, wanted[1:], strict=True):
        if member.endpoint is not None:
            draw(EndpointDrawer(member.name, member.endpoint), member.name, count)
    for name, folder, count in local:
        ctx.progress(message=f"loading policy {name}")
        with engines.opened(folder, params.engine, params.precision, longest) as drawer:
            draw(drawer, name, count)
    return found


def _score(
    ctx: StageContext,
    prompts: Sequence[Sequence[Message]],
    replies: Sequence[Sequence[Reply]],
    params: RejectionSampleParams,
) -> list[list[float]]:
    ctx.progress(percent=80, message="scoring the replies")
    composite = load_composite(ctx, params.precision)
    conversations = [[*p, _message(each.text)] for p, given in zip(prompts, replies, strict=True) for each in given]
    scores = iter(composite.score(conversations, params.batch_size).tolist())
    rewards = [[next(scores) for _ in given] for given in replies]
    ctx.progress(percent=95, reward=float(np.mean([score for each in rewards for score in each])))
    return rewards


def _outcome(selection: Selection, drawn: int, seed: int, report: dict[str, dict[str, Any]]) -> StageOutcome:
    def mean(values: list[float]) -> Measurement:
        return intervals.mean(selection.users, values, samples=_RESAMPLES, seed=seed).measurement(_CONFIDENCE)

    accepted, rejected = mean(selection.best), mean(selection.worst)
    by_policy = {f"{what}.{name}": part[what] for name, part in report.items() for what in ("drawn", "accepted")}
    shares = ", ".join(f"{name} {part['accepted']} of {part['drawn']}" for name, part in report.items())
    pool = f"; accepted by policy: {shares}" if len(report) > 1 else ""
    return StageOutcome(
        metrics={
            Metric.SAMPLES_DRAWN: Measurement(value=drawn, n=drawn),
            Metric.ACCEPTED_REWARD: accepted,
            Metric.REJECTED_REWARD: rejected,
        },
        counts={
            "accepted": len(selection.accepted), "pairs": len(selection.pairs), **selection.counts, **by_policy,
        },
        message=f"{len(selection.accepted)} replies accepted of {drawn}, reward {accepted.value:.2f} "
        f"against {rejected.value:.2f} of the worst, {len(selection.pairs)} pairs{pool}",
    )  # fmt: skip
