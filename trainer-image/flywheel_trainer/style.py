"""Style artefacts: properties of a reply that a reward model may come to love for their own sake.

Each is a function of (history, reply), binary or real-valued. Their rates are compared between candidate and baseline;
a jump that comes with reward is stopped before it is optimised further.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

from flywheel_trainer.data.rows import Message

Artefact = Callable[[Sequence[Message], str], float]

_WORDS: Final = re.compile(r"\S+")
_LIST_LINE: Final = re.compile(r"^\s*(?:[-*+•‣]|\d{1,3}[.)])\s+\S", re.MULTILINE)
_EMOJI: Final = re.compile(
    "[\U0001f300-\U0001faff\U0001f1e6-\U0001f1ff\u2600-\u27bf\u2b50\u2b55\u231a\u231b\u23e9-\u23fa\u203c\u2049\ufe0f]"
)
_STOCK_PHRASES: Final = re.compile(
    r"\b(?:as an ai|as a language model|i'?m (?:just )?an? (?:ai|language model)|i'?m sorry,? but|i cannot assist"
    r"|i can'?t help with that|i'?m here to help|how can i (?:help|assist) you|feel free to|it'?s important to"
    r"|that'?s a great question|great question|i hope this helps|let me know if|certainly!|absolutely!|of course!"
    r"|i completely understand|i understand (?:that|how)|thank you for (?:sharing|asking))",
    re.IGNORECASE,
)


def words(history: Sequence[Message], reply: str) -> float:
    """The length of the reply in words."""
    return float(len(_WORDS.findall(reply)))


def has_list(history: Sequence[Message], reply: str) -> float:
    """1.0 where at least two lines are items of a list (bulleted or numbered)."""
    return float(len(_LIST_LINE.findall(reply)) >= 2)


def has_emoji(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply has at least one emoji."""
    return float(_EMOJI.search(reply) is not None)


def has_stock_phrase(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply has a phrase of assistants that the user did not use just before."""
    asked = history[-1]["content"].lower() if history else ""
    return float(any(m.group().lower() not in asked for m in _STOCK_PHRASES.finditer(_straight(reply))))


def _straight(text: str) -> str:
    return text.replace("\u2019", "'")
