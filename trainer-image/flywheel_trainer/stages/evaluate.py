"""evaluate: the candidate against what serves now and against its parent, on prompts that training never saw.

All answer the same prompts with the same sampling and the same seed; the composite reward judges. What cannot be
measured (no prompts of an origin, say) is left out, never guessed: a gate on it then has not passed.
"""

import json
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_spec import EvaluateSpec
from flywheel_contract.stages import EVALUATION_PAGE, Origin, Role
from flywheel_trainer import benchmarks, judged, page
from flywheel_trainer.answers import Cast, everyone_answers, prompts
from flywheel_trainer.context import StageContext, StageOutcome
from flywheel_trainer.data.files import write_rows
from flywheel_trainer.data.rows import Conversation, Message, read_general, read_traffic
from flywheel_trainer.data.split import draw_key
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.judgement import Judgement, measure
from flywheel_trainer.judges import judge_of
from flywheel_trainer.pairwise import pairwise_of
from flywheel_trainer.rewards import load_composite

REPORT: Final = "report.json"
SAMPLES: Final = "samples.jsonl"

_Rewards = dict[str, NDArray[np.float64]]


def run(ctx: StageContext) -> StageOutcome:
    """Leaves `report`: report.json with every number, report.html to read, samples.jsonl with the replies side by side.

    Raises:
        ConfigError: no evaluation prompts, candidate, baseline or reward model.
        NotFiniteError: a reward or likelihood is NaN or infinite.
    """
    spec = ctx.spec
    if not isinstance(spec, EvaluateSpec):
        raise TypeError(f"evaluate was given the spec of {spec.stage}")
    rows = _rows(ctx, spec.params.max_prompts_per_origin)
    general = _general(ctx, rows)
    cast = everyone_answers(ctx, spec.params, rows, general)
    ctx.progress(percent=90, message="scoring the replies")
    rewards, by_model = _score(ctx, rows, cast)
    further, told = _asked_for(ctx, rows, cast, spec)
    judgement = Judgement(
        rows,
        cast,
        rewards,
        by_model,
        general_users=[row.user for row in general],
        preferred=_preferred(ctx, rows, cast),
        further=further,
        further_report=told,
    )
    measured = measure(judgement, spec.params, spec.style, spec.seed)
    report = {**measured.report, "sampling": spec.params.to_json(), "seed": spec.seed}
    _leave(ctx, judgement, report)
    return StageOutcome(metrics=measured.metrics, counts=measured.counts, message=measured.sentence)


def _rows(ctx: StageContext, per_origin: int) -> list[Conversation]:
    inputs = ctx.inputs(Role.EVALUATION)
    if not inputs:
        raise ConfigError("stage evaluate has no evaluation prompts; stage curate leaves them")
    return draw([row for i in inputs for row in read_traffic(i.path, i.origin)], per_origin, ctx.spec.seed)


def draw(rows: Sequence[Conversation], per_origin: int, seed: int) -> list[Conversation]:
    """At most `per_origin` rows of each origin by the seed: one of each user, then a second one of those who have more.

    Intervals are drawn over users, so another user tells more than another prompt of the same one.
    """
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, Conversation]] = []
    for row in sorted(rows, key=lambda row: draw_key(seed, row.conversation)):
        rounds.append((seen[row.user], row))
        seen[row.user] += 1
    rounds.sort(key=itemgetter(0))
    return [row for origin in Origin for row in [r for _, r in rounds if r.origin is origin][:per_origin]]


def _general(ctx: StageContext, rows: list[Conversation]) -> list[Conversation]:
    """The general hold-out where one is given, else what people themselves replied to the prompts."""
    given = [row for i in ctx.inputs(Role.GENERAL) for row in read_general(i.path)]
    return given or rows


def _score(ctx: StageContext, rows: list[Conversation], cast: Cast) -> tuple[_Rewards, dict[str, _Rewards]]:
    """The composite rewards of everyone's replies, and those of each reward model by itself."""
    params = ctx.spec.params
    composite = load_composite(ctx, params.precision)
    asked = prompts(ctx, rows)
    total: _Rewards = {}
    by_model: dict[str, _Rewards] = {term.scorer.name: {} for term in composite.terms}
    for each in cast.distinct():
        said: list[list[Message]] = [
            [*asked[i], {"role": "assistant", "content": text}] for i, text in zip(each.rows, each.replies, strict=True)
        ]
        total[each.name] = np.zeros(len(said))
        for term in composite.terms:
            raw = term.scorer.score(said, params.batch_size)
            by_model[term.scorer.name][each.name] = raw
            total[each.name] += term.weight * (raw - term.mean) / term.deviation
    return total, by_model


def _preferred(ctx: StageContext, rows: list[Conversation], cast: Cast) -> _Rewards:
    """How probably the candidate's reply is better than each rival's, by the pairwise judge; empty without one."""
    params = ctx.spec.params
    judge = pairwise_of(ctx, params.precision)
    if judge is None:
        return {}
    ctx.progress(message="asking the pairwise judge")
    asked = prompts(ctx, rows)
    rivals = {rival.name: rival.replies for rival in (cast.baseline, cast.parent)}
    return {
        name: judge.preference(asked, cast.candidate.replies, replies, params.batch_size)
        for name, replies in rivals.items()
    }


def _asked_for(
    ctx: StageContext, rows: list[Conversation], cast: Cast, spec: EvaluateSpec
) -> tuple[dict[Metric, Measurement], dict[str, Any]]:
    """What the judge and the benchmarks measure, where the spec asks for them."""
    params = spec.params
    found, told = benchmarks.compare(ctx, params)
    if params.judge is not None:
        ctx.progress(percent=95, message="asking the judge")
        judge = judge_of(ctx, params.judge, params.precision, params.batch_size)
        answers, report = judged.ask_about(judge, rows, cast, spec.characters, params, params.judge, spec.seed)
        return found | answers, told | report
    return found, told


def _leave(ctx: StageContext, judgement: Judgement, report: dict[str, Any]) -> None:
    folder = ctx.output("report")
    samples = _samples(judgement)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    (folder / EVALUATION_PAGE).write_text(
        page.render(ctx.spec.owner, ctx.spec.group, report, samples), encoding="utf-8"
    )
    write_rows(folder / SAMPLES, samples)


def _samples(judgement: Judgement) -> Sequence[dict[str, Any]]:
    cast = judgement.cast
    candidate, baseline = judgement.rewards[cast.candidate.name], judgement.rewards[cast.baseline.name]
    return [
        {
            "conversation": row.conversation,
            "user": row.user,
            "character": row.character,
            "origin": row.origin.value,
            "prompt": row.messages[:-1],
            "human": row.messages[-1]["content"],
            "candidate": cast.candidate.replies[i],
            "baseline": cast.baseline.replies[i],
            "candidateReward": float(candidate[i]),
            "baselineReward": float(baseline[i]),
        }
        for i, row in enumerate(judgement.rows)
    ]
