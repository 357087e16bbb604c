"""A judge reads replies and answers questions about each with yes or no.

It is a local language model, whose answer is the likelier one of the two words, or an OpenAI-compatible endpoint,
whose answer is read strictly. A reply is hostile input: it stands in the question as a JSON string between markers that
its author cannot know, and an endpoint's answer counts only if it repeats the marker. What cannot be read is no
measurement, and is counted. The prompts are the files of `judge_prompts`, each with its version in its name.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, Protocol

import numpy as np
from jinja2 import Environment, StrictUndefined

from flywheel_contract.base import digest_of
from flywheel_contract.judging import JudgeQuestion
from flywheel_trainer.data.rows import Message

VERSION: Final = "v1"
WORDS: Final = ("yes", "no")
MESSAGES: Final = 8
"""Of a conversation, the last messages are shown to the judge."""
CHARACTERS: Final = 6000
"""Of each message and of the reply, this much is shown."""
ABOUT_RULES: Final = frozenset({JudgeQuestion.INSTRUCTION_FOLLOWING, JudgeQuestion.INSTRUCTION_VIOLATION})
"""Asked only where the character has rules."""


@dataclass(frozen=True, slots=True)
class Item:
    """A reply and what to ask about it."""

    question: JudgeQuestion
    history: Sequence[Message]
    reply: str
    rules: Sequence[str] = ()

    @property
    def mark(self) -> str:
        """Eight digits that stand for this very item. Its text would have to contain its own hash to know them."""
        said = [self.question.value, [dict(m) for m in self.history], self.reply, list(self.rules)]
        text = json.dumps(said, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class Judge(Protocol):
    """Answers items: True for yes, False for no, None where there is no readable answer."""

    name: str

    def answer(self, items: Sequence[Item]) -> list[bool | None]:
        """One answer for each item, in their order."""
        ...


def ask(item: Item, answer_form: str) -> list[Message]:
    """The judge's messages. `answer_form` is `answer-json` or `answer-word`."""
    mark = item.mark
    frame = Environment(undefined=StrictUndefined, trim_blocks=True).from_string(_prompt("frame", ".txt.j2"))
    shown = [{"role": m["role"], "content": m["content"][:CHARACTERS]} for m in item.history[-MESSAGES:]]
    text = frame.render(
        mark=mark,
        rules=_quoted(list(item.rules)) if item.question in ABOUT_RULES else "",
        conversation=_quoted(shown),
        reply=_quoted(item.reply[:CHARACTERS]),
        question=_prompt(item.question.value).strip(),
    )
    return [{"role": "user", "content": f"{text}\n{_prompt(answer_form).strip().replace('MARK', mark)}"}]


def read_answer(text: str, mark: str) -> bool | None:
    """True or False for an answer of exactly the form that was asked for, else None."""
    said = text.strip()
    if said.startswith("```"):
        said = said.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        value = json.loads(said)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"mark", "answer"} or value["mark"] != mark:
        return None
    return {"yes": True, "no": False}.get(value["answer"]) if isinstance(value["answer"], str) else None


def prompts_digest() -> str:
    """Version and digest of all prompt files, for the report."""
    folder = files("flywheel_trainer") / "judge_prompts"
    texts = {p.name: p.read_text(encoding="utf-8") for p in folder.iterdir() if f".{VERSION}." in p.name}
    return f"{VERSION} {digest_of(texts)[:19]}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a judge agrees with people's labels. None: too few answers, or no variation, to tell."""

    n: int
    unanswered: int
    accuracy: float | None
    kappa: float | None

    def to_json(self) -> dict[str, Any]:
        """Without what could not be measured."""
        found = {"n": self.n, "unanswered": self.unanswered, "accuracy": self.accuracy, "kappa": self.kappa}
        return {key: value for key, value in found.items() if value is not None}


def agreement(answers: Sequence[bool | None], labels: Sequence[bool]) -> Agreement:
    """Accuracy, and Cohen's kappa = (observed - chance) / (1 - chance) (1960). An unanswered item agrees with nobody.

    So it counts as wrong in the accuracy, and in kappa as an answer opposite to the label: silence must not help.
    """
    given = np.array([label if a is None else a for a, label in zip(answers, labels, strict=True)], dtype=bool)
    truth = np.array(labels, dtype=bool)
    silent = np.array([a is None for a in answers], dtype=bool)
    given = np.where(silent, ~truth, given) if len(truth) else given
    if not len(truth):
        return Agreement(0, 0, None, None)
    accuracy = float((given == truth).mean())
    chance = float(given.mean() * truth.mean() + (1 - given.mean()) * (1 - truth.mean()))
    kappa = (accuracy - chance) / (1 - chance) if chance < 1 else None
    return Agreement(len(truth), int(silent.sum()), accuracy, kappa)


@cache
def labelled() -> tuple[tuple[Item, bool], ...]:
    """The labelled set that ships with the code: items and their right answers."""
    text = (files("flywheel_trainer") / "judge_prompts" / f"labelled.{VERSION}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return tuple(
        (
            Item(
                JudgeQuestion(row["question"]),
                [{"role": "user", "content": row["user"]}],
                row["reply"],
                tuple(row.get("rules", ())),
            ),
            row["answer"] == "yes",
        )
        for row in rows
    )


@cache
def _prompt(name: str, suffix: str = ".txt") -> str:
    return (files("flywheel_trainer") / "judge_prompts" / f"{name}.{VERSION}{suffix}").read_text(encoding="utf-8")


def _quoted(value: object) -> str:
    """JSON in which no bare marker can stand: its angle brackets are escaped, and line breaks are."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")
