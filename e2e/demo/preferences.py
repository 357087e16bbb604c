"""Preferences for the demo's reward model: what a person really replied against what the base model would have said.

The rule: the human's own reply is chosen, a reply that the base model sampled to the same prefix is rejected. It says
"be more like these people", nothing finer. People write shorter replies than the model, so length alone would tell the
two apart; therefore the sampled reply is cut at the end of the sentence that brings it closest to the human's length,
pairs whose lengths still differ by more than `MAX_RATIO` are dropped, and of the rest as many are kept in which the
human's is the longer as in which it is the shorter one. Length is counted in characters. Other surface is not matched:
half of the humans' replies end without a full stop and none of the model's, so a reward model can learn that, and
facts.json says how far that alone goes.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from e2e.demo.chitchat import CHARACTER, SYSTEM_PROMPT
from flywheel_contract.characters import Character
from flywheel_contract.params import Precision, SamplingParams
from flywheel_trainer.models import load_policy, load_tokenizer
from flywheel_trainer.prompts import with_character
from flywheel_trainer.sampling import sample_replies

MAX_RATIO: Final = 1.5
SAMPLING: Final = SamplingParams(max_new_tokens=40, max_prompt_tokens=224, temperature=0.8, top_p=0.95, batch_size=16)

_SENTENCE: Final = re.compile(r".+?(?:[.!?]+(?=\s|$)|\n|$)", re.DOTALL)


@dataclass
class Pairs:
    """Rows in the preference format, and what was dropped why."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def sample(
    model: Path, rows: Sequence[dict[str, Any]], seed: int, report: Callable[[float], None] = lambda share: None
) -> list[str]:
    """The base model's reply to each conversation's prefix, as Luna."""
    characters = [Character(name=CHARACTER, system_prompt=SYSTEM_PROMPT)]
    prompts = [with_character(row["messages"][:-1], CHARACTER, characters) for row in rows]
    policy, tokenizer = load_policy(model, Precision.BF16), load_tokenizer(model)
    return [texts[0] for texts in sample_replies(policy, tokenizer, prompts, SAMPLING, seed=seed, report=report)]


def pair(rows: Sequence[dict[str, Any]], replies: Sequence[str]) -> Pairs:
    """Human against model, with lengths matched."""
    pairs = Pairs()
    longer: list[dict[str, Any]] = []
    shorter: list[dict[str, Any]] = []
    for row, reply in zip(rows, replies, strict=True):
        human = row["messages"][-1]["content"]
        cut = closest(reply, len(human))
        if not cut:
            pairs.dropped["no whole sentence"] += 1
        elif max(len(cut), len(human)) > MAX_RATIO * min(len(cut), len(human)):
            pairs.dropped["lengths too different"] += 1
        elif len(cut) == len(human):
            pairs.dropped["same length"] += 1
        else:
            (longer if len(human) > len(cut) else shorter).append(_pair(row, human, cut))
    kept = min(len(longer), len(shorter))
    pairs.dropped["surplus of one length order"] = len(longer) + len(shorter) - 2 * kept
    pairs.rows = [row for both in zip(longer[:kept], shorter[:kept], strict=True) for row in both]
    return pairs


def closest(reply: str, characters: int) -> str:
    """`reply` up to the end of the sentence that brings it closest to so many characters; half a sentence is no end."""
    ends = [m.end() for m in _SENTENCE.finditer(reply) if m.group().strip() and m.group().rstrip()[-1] in ".!?"]
    options = [reply[:end].strip() for end in ends]
    return min(options, key=lambda text: abs(len(text) - characters), default="")


def length_only_accuracy(rows: Sequence[dict[str, Any]], measure: Callable[[str], int]) -> float:
    """The accuracy of the better of the two rules "the longer wins" and "the shorter wins"; ties count half."""
    if not rows:
        return 0.5
    score = 0.0
    for row in rows:
        chosen, rejected = measure(row["chosen"][0]["content"]), measure(row["rejected"][0]["content"])
        score += 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
    return max(score, len(rows) - score) / len(rows)


def unfinished_accuracy(rows: Sequence[dict[str, Any]]) -> float:
    """The accuracy of the rule "the reply without a full stop at its end wins"; ties count half."""
    score = 0.0
    for row in rows:
        chosen, rejected = (row[side][0]["content"].rstrip()[-1:] in ".!?" for side in ("chosen", "rejected"))
        score += 0.5 + (rejected - chosen) / 2
    return score / len(rows) if rows else 0.5


def _pair(row: dict[str, Any], human: str, reply: str) -> dict[str, Any]:
    common = {key: row[key] for key in ("conversation", "user", "character", "origin", "time")}
    return {
        **common,
        "prompt": row["messages"][:-1],
        "chosen": [{"role": "assistant", "content": human}],
        "rejected": [{"role": "assistant", "content": reply}],
    }
