"""From labels to what the stages read: preference pairs, conversations to imitate, tool calls, and rates."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from flywheel_contract.pairs import AgreementParams
from flywheel_contract.stages import Origin
from flywheel_trainer.annotation.agreement import agreed, alpha, majority
from flywheel_trainer.annotation.formats import CARRIED, Item, Kind, Label, Review
from flywheel_trainer.data.rows import Message

Row = dict[str, Any]

CHOSEN, REJECTED, TIE = "Chosen", "Rejected", "Tie"


@dataclass
class Outcome:
    """What labels become. Each list is a data source of its own."""

    preferences: list[Row] = field(default_factory=list)
    """Pairs, for reward-model and dpo."""
    rewrites: list[Row] = field(default_factory=list)
    """Conversations that end with a rewrite, for sft."""
    tool_calls: list[Row] = field(default_factory=list)
    """Conversations that end with a call that reviewers agree on, or without one where they agree on that, for sft."""
    tool_preferences: list[Row] = field(default_factory=list)
    """The same as pairs, with and without the call, for dpo."""
    counts: Counter[str] = field(default_factory=Counter)


def outcome(labels: Sequence[Label], params: AgreementParams) -> Outcome:
    """The rows that labels give."""
    out = Outcome()
    for label in labels:
        out.counts["items"] += 1
        out.counts["reviews"] += len(label.reviews)
        if label.kind is Kind.TOOL_CALL:
            _tool_call(label, params, out)
        elif label.kind is not Kind.SIDE_BY_SIDE:
            _pairs(label, out)
            _rewrites(label, out)
    return out


def compared(review: Review, first: int, second: int) -> int:
    """1 where the reviewer finds the first of two replies better, -1 the second, 0 neither.

    A reply that keeps to the character is better than one that breaks it, whatever their ranks.
    """
    if review.breaks is not None and review.breaks[first] != review.breaks[second]:
        return 1 if review.breaks[second] else -1
    if review.ranks is None or review.ranks[first] == review.ranks[second]:
        return 0
    return 1 if review.ranks[first] < review.ranks[second] else -1


def _pairs(label: Label, out: Outcome) -> None:
    for first, second in combinations(range(len(label.replies)), 2):
        won = [compared(review, first, second) for review in label.reviews]
        total = sum(won)
        if not total:
            out.counts["pairsUndecided"] += 1
            continue
        sign = 1 if total > 0 else -1
        better, worse = (first, second) if sign > 0 else (second, first)
        words = {1: CHOSEN, 0: TIE, -1: REJECTED}
        reviews = [
            {"reviewer": review.reviewer, "choice": words[sign * value]}
            for review, value in zip(label.reviews, won, strict=True)
        ]
        out.preferences.append(_pair(label, label.replies[better].message(), label.replies[worse].message(), reviews))
        out.counts["pairs"] += 1


def _rewrites(label: Label, out: Outcome) -> None:
    """A rewrite is better than the reply it improves: than all of them, or than those that break the character."""
    for review in label.reviews:
        text = (review.rewrite or "").strip()
        if not text:
            continue
        said: Message = {"role": "assistant", "content": text}
        one = [{"reviewer": review.reviewer, "choice": CHOSEN}]
        out.rewrites.append({**_about(label), "messages": [*label.prompt, said]})
        out.counts["rewrites"] += 1
        for index, reply in enumerate(label.replies):
            improved = review.breaks is None or review.breaks[index]
            if improved and reply.text.strip() != text:
                out.preferences.append(_pair(label, said, reply.message(), one))
                out.counts["pairsFromRewrites"] += 1


def _tool_call(label: Label, params: AgreementParams, out: Outcome) -> None:
    """Only what reviewers agree on: first whether to call, then whether this is the call."""
    call = agreed([review.call or "None" for review in label.reviews], params)
    wanted = agreed(["None" if review.call == "None" else "Call" for review in label.reviews], params)
    good = agreed([str(bool(review.call_is_good)) for review in label.reviews], params)
    if wanted == "Call" and good == "False":
        out.counts["toolCallsThatAreBad"] += 1
        return
    if wanted is None or (wanted == "Call" and good is None):
        out.counts["toolCallsWithoutAgreement"] += 1
        return
    # Reviewers who agree on a call may differ in why: then the more frequent reason stands there.
    reason = call or majority([r.call or "None" for r in label.reviews if r.call != "None"])[0]
    plain, calling = label.replies
    best, other = (calling, plain) if wanted == "Call" else (plain, calling)
    out.counts[f"toolCalls{reason}"] += 1
    common = {**_about(label), "toolCall": reason}
    reviews = [{"reviewer": r.reviewer, "choice": _for(wanted, r)} for r in label.reviews]
    if best.text.strip() or best.tool_calls:
        out.tool_calls.append({**common, "messages": [*label.prompt, best.message()], "reviews": reviews})
    if plain.text.strip():
        out.tool_preferences.append({**_pair(label, best.message(), other.message(), reviews), "toolCall": reason})


def _for(wanted: str, review: Review) -> str:
    calls = review.call != "None" and bool(review.call_is_good)
    return CHOSEN if calls == (wanted == "Call") else REJECTED


def _about(label: Item) -> Row:
    return label.model_dump(mode="json", include=set(CARRIED), exclude_none=True)


def _pair(label: Item, chosen: Message, rejected: Message, reviews: list[dict[str, str]]) -> Row:
    return {**_about(label), "prompt": label.prompt, "chosen": [chosen], "rejected": [rejected], "reviews": reviews}


def questions(labels: Sequence[Label]) -> dict[str, Any]:
    """For each question and origin: how often the answer was yes (by majority), and how far reviewers agree."""
    answered: dict[tuple[str, str], list[list[str]]] = defaultdict(list)
    for label in labels:
        for question, answers in _asked(label):
            answered[question, label.origin.value].append(answers)
    report: dict[str, Any] = {}
    for (question, origin), items in sorted(answered.items()):
        values = sorted({answer for answers in items for answer in answers})
        firsts = Counter(majority(answers)[0] for answers in items)
        entry: dict[str, Any] = {
            "items": len(items),
            "itemsWithSeveralReviews": sum(len(answers) > 1 for answers in items),
            "shares": {value: firsts[value] / len(items) for value in values},
        }
        measured = alpha(items, values)
        if measured is not None:
            entry["alpha"] = measured
        report.setdefault(question, {})[origin] = entry
    return report


def _asked(label: Label) -> Iterator[tuple[str, list[str]]]:
    """Each question about each reply, with the answers of all reviewers."""
    for index in range(len(label.replies)):
        yield "falseRefusal", [_word(review.false_refusal[index]) for review in label.reviews]
        yield "templated", [_word(review.templated[index]) for review in label.reviews]
        if label.kind is Kind.STEERABILITY:
            yield "breaks", [_word(review.breaks[index]) for review in label.reviews if review.breaks is not None]
    for first, second in combinations(range(len(label.replies)), 2):
        if any(review.ranks is not None or review.breaks is not None for review in label.reviews):
            words = {1: "first", 0: "tie", -1: "second"}
            yield "preference", [words[compared(review, first, second)] for review in label.reviews]
    if label.kind is Kind.TOOL_CALL:
        yield "call", [review.call or "None" for review in label.reviews]
        yield "callIsGood", [_word(bool(review.call_is_good)) for review in label.reviews]


def _word(answer: bool) -> str:
    return "yes" if answer else "no"


def by_origin(labels: Sequence[Label]) -> dict[str, int]:
    """How many items there are of each origin."""
    return {origin.value: sum(label.origin is origin for label in labels) for origin in Origin}
