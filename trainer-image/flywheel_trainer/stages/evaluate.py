"""evaluate: the candidate against what serves now, on prompts that training never saw.

Both answer the same prompts with the same sampling and the same seed; the composite reward judges. What cannot be
measured (no prompts of an origin, say) is left out, never guessed: a gate on it then has not passed.
"""

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flywheel_contract.params import EvaluateParams
from flywheel_contract.stage_spec import EvaluateSpec
from flywheel_contract.stages import Origin, Role
from flywheel_trainer import models
from flywheel_trainer.context import LocalInput, StageContext, StageOutcome
from flywheel_trainer.data.rows import Conversation, Message, read_general, read_traffic, write_rows
from flywheel_trainer.data.split import draw_key
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.judgement import Judgement, measure
from flywheel_trainer.perplexity import Likelihoods, reply_likelihoods
from flywheel_trainer.prompts import with_character
from flywheel_trainer.rewards import load_composite
from flywheel_trainer.sampling import sample_replies

REPORT: Final = "report.json"
SAMPLES: Final = "samples.jsonl"


@dataclass(frozen=True, slots=True)
class _Answers:
    """What one model did: a reply to each prompt, and how well it predicts the general hold-out."""

    replies: list[str]
    general: Likelihoods


def run(ctx: StageContext) -> StageOutcome:
    """Leaves `report`: report.json with every number, samples.jsonl with the replies side by side.

    Raises:
        ConfigError: no evaluation prompts, candidate, baseline or reward model.
        NotFiniteError: a reward or likelihood is NaN or infinite.
    """
    spec = ctx.spec
    if not isinstance(spec, EvaluateSpec):
        raise TypeError(f"evaluate was given the spec of {spec.stage}")
    rows = _draw(ctx, spec.params.max_prompts_per_origin)
    general = _general(ctx, rows)
    policy, baseline = ctx.input(Role.POLICY), ctx.input(Role.BASELINE)
    candidate = _answer(ctx, policy, rows, general, start=0)
    # The same model with the same seed says the same again.
    same = policy.spec.digest == baseline.spec.digest
    other = candidate if same else _answer(ctx, baseline, rows, general, start=45)
    ctx.progress(percent=90, message="scoring the replies")
    rewards, by_model = _score(ctx, rows, candidate.replies, other.replies, spec.params)
    judgement = Judgement(
        rows=rows,
        candidate=candidate.replies,
        baseline=other.replies,
        candidate_rewards=rewards[0],
        baseline_rewards=rewards[1],
        by_reward_model=by_model,
        general_users=[row.user for row in general],
        candidate_general=candidate.general,
        baseline_general=other.general,
    )
    measured = measure(judgement, spec.params, spec.seed)
    _leave(ctx.output("report"), judgement, spec, measured.report)
    return StageOutcome(metrics=measured.metrics, counts=measured.counts, message=measured.sentence)


def _draw(ctx: StageContext, per_origin: int) -> list[Conversation]:
    """Prompts of both origins, at most `per_origin` of each, drawn by the seed."""
    inputs = ctx.inputs(Role.EVALUATION)
    if not inputs:
        raise ConfigError("stage evaluate has no evaluation prompts; stage curate leaves them")
    rows = [row for i in inputs for row in read_traffic(i.path, i.origin)]
    rows.sort(key=lambda row: draw_key(ctx.spec.seed, row.conversation))
    return [row for origin in Origin for row in [r for r in rows if r.origin is origin][:per_origin]]


def _general(ctx: StageContext, rows: list[Conversation]) -> list[Conversation]:
    """The general hold-out where one is given, else what people themselves replied to the prompts."""
    given = [row for i in ctx.inputs(Role.GENERAL) for row in read_general(i.path)]
    return given or rows


def _prompt(ctx: StageContext, row: Conversation) -> list[Message]:
    return with_character(row.messages[:-1], row.character, ctx.spec.characters)


def _answer(
    ctx: StageContext, folder: LocalInput, rows: list[Conversation], general: list[Conversation], start: float
) -> _Answers:
    params: EvaluateParams = ctx.spec.params  # type: ignore[assignment] # run has looked
    ctx.progress(percent=start, message=f"loading {folder.name}")
    model, tokenizer = models.load_policy(folder.path, params.precision), models.load_tokenizer(folder.path)
    ctx.progress(message=f"{folder.name} answers {len(rows)} prompts")
    replies = sample_replies(
        model,
        tokenizer,
        [_prompt(ctx, row) for row in rows],
        params,
        seed=ctx.spec.seed,
        report=lambda share: ctx.progress(percent=start + 35 * share),
    )
    ctx.progress(message=f"{folder.name} reads {len(general)} held-out replies")
    likelihoods = reply_likelihoods(
        model,
        tokenizer,
        [[*_prompt(ctx, row), row.messages[-1]] for row in general],
        max_prompt_tokens=params.max_prompt_tokens,
        max_reply_tokens=params.max_prompt_tokens,
        batch_size=params.batch_size,
        report=lambda share: ctx.progress(percent=start + 35 + 10 * share),
    )
    del model
    gc.collect()
    return _Answers([texts[0] for texts in replies], likelihoods)


def _score(
    ctx: StageContext, rows: list[Conversation], candidate: list[str], baseline: list[str], params: EvaluateParams
) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """The composite rewards of both sides, and those of each reward model by itself."""
    composite = load_composite(ctx, params.precision)
    prompts = [_prompt(ctx, row) for row in rows]

    def conversations(replies: list[str]) -> list[list[Message]]:
        return [[*p, {"role": "assistant", "content": r}] for p, r in zip(prompts, replies, strict=True)]

    sides = conversations(candidate), conversations(baseline)
    raw = [tuple(term.scorer.score(side, params.batch_size) for side in sides) for term in composite.terms]
    first, second = (
        np.sum([t.weight * (r[side] - t.mean) / t.deviation for t, r in zip(composite.terms, raw, strict=True)], axis=0)
        for side in range(2)
    )
    by_model = {t.scorer.name: (r[0], r[1]) for t, r in zip(composite.terms, raw, strict=True)}
    return (first, second), by_model


def _leave(folder: Path, judgement: Judgement, spec: EvaluateSpec, report: dict[str, Any]) -> None:
    report["sampling"] = spec.params.to_json()
    report["seed"] = spec.seed
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    write_rows(folder / SAMPLES, _samples(judgement))


def _samples(judgement: Judgement) -> Sequence[dict[str, Any]]:
    return [
        {
            "conversation": row.conversation,
            "user": row.user,
            "character": row.character,
            "origin": row.origin.value,
            "prompt": row.messages[:-1],
            "human": row.messages[-1]["content"],
            "candidate": judgement.candidate[i],
            "baseline": judgement.baseline[i],
            "candidateReward": float(judgement.candidate_rewards[i]),
            "baselineReward": float(judgement.baseline_rewards[i]),
        }
        for i, row in enumerate(judgement.rows)
    ]
