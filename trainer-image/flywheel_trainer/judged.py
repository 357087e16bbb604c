"""Rates of yes-answers of candidate and baseline, and whether the judge agrees with people."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from flywheel_contract.characters import Character, rules_of
from flywheel_contract.judging import JudgeParams, JudgeQuestion
from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import EvaluateParams
from flywheel_trainer import intervals
from flywheel_trainer.answers import Cast, few
from flywheel_trainer.data.rows import Conversation
from flywheel_trainer.judge import ABOUT_RULES, Agreement, Item, Judge, agreement, labelled, prompts_digest

METRICS: Final = {
    JudgeQuestion.FALSE_REFUSAL: (Metric.FALSE_REFUSAL_RATE, Metric.FALSE_REFUSAL_RATE_INCREASE),
    JudgeQuestion.PREACHY: (Metric.PREACHY_RATE, Metric.PREACHY_RATE_INCREASE),
    JudgeQuestion.COOPERATION: (Metric.COOPERATION_RATE, Metric.COOPERATION_RATE_INCREASE),
    JudgeQuestion.INSTRUCTION_FOLLOWING: (
        Metric.INSTRUCTION_FOLLOWING_RATE,
        Metric.INSTRUCTION_FOLLOWING_RATE_INCREASE,
    ),
    JudgeQuestion.INSTRUCTION_VIOLATION: (
        Metric.INSTRUCTION_VIOLATION_RATE,
        Metric.INSTRUCTION_VIOLATION_RATE_INCREASE,
    ),
    JudgeQuestion.TEMPLATED: (Metric.TEMPLATED_RATE, Metric.TEMPLATED_RATE_INCREASE),
}


def ask_about(
    judge: Judge,
    rows: list[Conversation],
    cast: Cast,
    characters: Sequence[Character],
    params: EvaluateParams,
    asked: JudgeParams,
    seed: int,
) -> tuple[dict[Metric, Measurement], dict[str, Any]]:
    """The metrics that were measured, and the judge's part of the report.

    All questions go to the judge in one go, the labelled set among them.
    """
    chosen = few(rows, asked.max_prompts_per_origin)
    known = [(item, label) for item, label in labelled() if item.question in asked.questions]
    slots = [(question, i) for question in asked.questions for i in chosen if _applies(question, rows[i], characters)]
    same = cast.baseline is cast.candidate
    sides = [cast.candidate] if same else [cast.candidate, cast.baseline]
    items = [item for item, _ in known]
    for side in sides:
        items += [
            Item(question, rows[i].messages[:-1], side.replies[i], rules_of(rows[i].character, characters))
            for question, i in slots
        ]
    answers = judge.answer(items)
    checked, rest = answers[: len(known)], answers[len(known) :]
    first, second = rest[: len(slots)], rest[-len(slots) :] if slots else []
    metrics: dict[Metric, Measurement] = {}
    questions: dict[str, Any] = {}
    for question in asked.questions:
        here = [k for k, (q, _) in enumerate(slots) if q is question]
        users = [rows[slots[k][1]].user for k in here]
        found, told = _rates(question, users, [first[k] for k in here], [second[k] for k in here], params, asked, seed)
        agreed = _agreement(checked, known, question)
        metrics |= found
        questions[question.value] = {**told, **({"kappa": agreed.kappa} if agreed.kappa is not None else {})}
    overall = agreement(checked, [label for _, label in known])
    if overall.kappa is not None:
        metrics[Metric.JUDGE_AGREEMENT] = Measurement(value=overall.kappa, n=overall.n)
    report = {
        "name": judge.name,
        "prompts": prompts_digest(),
        "agreement": overall.to_json(),
        "failures": dict(getattr(judge, "failures", Counter())),
        "questions": questions,
    }
    return metrics, {"judge": report}


def _applies(question: JudgeQuestion, row: Conversation, characters: Sequence[Character]) -> bool:
    return question not in ABOUT_RULES or bool(rules_of(row.character, characters))


def _rates(
    question: JudgeQuestion,
    users: list[str],
    candidate: list[bool | None],
    baseline: list[bool | None],
    params: EvaluateParams,
    asked: JudgeParams,
    seed: int,
) -> tuple[dict[Metric, Measurement], dict[str, Any]]:
    """Over the prompts with two readable answers. Too many without: not measured, for they need not be missing at
    random (a reply may provoke them)."""
    both = [k for k in range(len(users)) if candidate[k] is not None and baseline[k] is not None]
    readable = sum(a is not None for a in (*candidate, *baseline))
    told: dict[str, Any] = {"asked": 2 * len(users), "answered": readable}
    if not users or len(both) < asked.min_answered * len(users):
        return {}, told
    yes, yes_before = (np.array([bool(side[k]) for k in both], dtype=np.float64) for side in (candidate, baseline))
    owners = [users[k] for k in both]

    def measured(values: np.ndarray) -> Measurement:
        estimate = intervals.mean(owners, values, samples=params.bootstrap_samples, seed=seed)
        return estimate.measurement(params.confidence)

    rate, increase = METRICS[question]
    told |= {"candidate": float(yes.mean()), "baseline": float(yes_before.mean())}
    return {rate: measured(yes), increase: measured(yes - yes_before)}, told


def _agreement(
    answers: Sequence[bool | None], known: Sequence[tuple[Item, bool]], question: JudgeQuestion
) -> Agreement:
    here = [k for k, (item, _) in enumerate(known) if item.question is question]
    return agreement([answers[k] for k in here], [known[k][1] for k in here])
