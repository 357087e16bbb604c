"""Style artefacts: properties of a reply that a reward model may come to love for their own sake.

Each is a function of (history, reply), binary or real-valued. `style_report` compares their rates between sets of
replies; a jump that comes with reward is stopped before it is optimised further.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import regex
from numpy.typing import NDArray

from flywheel_contract.judging import StyleParams, StylePattern
from flywheel_trainer.data.rows import Message
from flywheel_trainer.errors import ConfigError

Artefact = Callable[[Sequence[Message], str], float]

PATTERN_SECONDS: Final = 1.0
"""How long a user's regular expression may search one reply."""
MAX_CHARACTERS: Final = 20_000
"""What lies behind this in a reply is not looked at."""
WALL_WORDS: Final = 120

_WORDS: Final = regex.compile(r"\S+")
_LIST_LINE: Final = regex.compile(r"^\s*(?:[-*+•‣]|\d{1,3}[.)])\s+\S", regex.MULTILINE)
_EMOJI: Final = regex.compile(
    "[\U0001f300-\U0001faff\U0001f1e6-\U0001f1ff\u2600-\u27bf\u2b50\u2b55\u231a\u231b\u23e9-\u23fa\u203c\u2049\ufe0f]"
)
_STOCK_PHRASES: Final = regex.compile(
    r"\b(?:as an ai|as a language model|i'?m (?:just )?an? (?:ai|language model)|i'?m sorry,? but|i cannot assist"
    r"|i can'?t help with that|i'?m here to help|how can i (?:help|assist) you|feel free to|it'?s important to"
    r"|that'?s a great question|great question|i hope this helps|let me know if|certainly!|absolutely!|of course!"
    r"|i completely understand|i understand (?:that|how)|thank you for (?:sharing|asking))",
    regex.IGNORECASE,
)
_REFUSAL: Final = regex.compile(
    r"\bi (?:can'?t|cannot|won'?t) (?:help|assist|answer|discuss|do that|comply|talk about|provide|continue|engage)"
    r"|\bi(?:'m| am) (?:not able|unable) to\b|\bi (?:must|have to) decline\b|\bnot (?:something|a topic) i can\b",
    regex.IGNORECASE,
)
_GREETING: Final = regex.compile(
    r"^\W*(?:hi|hey|heya|hello|hiya|howdy|greetings|good (?:morning|afternoon|evening)|welcome(?: back)?)\b",
    regex.IGNORECASE,
)
_CAPITALS: Final = regex.compile(r"\b\p{Lu}{3,}\b")
_EXCLAIMED: Final = regex.compile(r"!")
_MARKDOWN: Final = regex.compile(r"\*\*[^*\n]+\*\*|^#{1,6}\s+\S|```|^\|.+\|\s*$", regex.MULTILINE)
_ACTION: Final = regex.compile(r"(?<![*\w])\*[^*\s][^*\n]{0,200}\*(?!\*)")
_PARAGRAPH: Final = regex.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class Feature:
    """A named artefact. Binary ones have a rate; of the others (the length) the mean counts, relative to another."""

    name: str
    measure: Artefact
    binary: bool = True


def words(history: Sequence[Message], reply: str) -> float:
    """The length of the reply in words."""
    return float(len(_WORDS.findall(reply)))


def has_list(history: Sequence[Message], reply: str) -> float:
    """1.0 where at least two lines are items of a list (bulleted or numbered)."""
    return float(len(_LIST_LINE.findall(reply)) >= 2)


def has_emoji(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply has at least one emoji."""
    return _found(_EMOJI, reply)


def has_stock_phrase(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply has a phrase of assistants that the user did not use just before."""
    asked = _last(history).lower()
    return float(any(m.group().lower() not in asked for m in _STOCK_PHRASES.finditer(_straight(reply))))


def asks(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply ends with a question, whatever the character does meanwhile (*smiles*)."""
    return float(_ACTION.sub("", reply).rstrip(" \n\t*_\"'\u201d)").endswith(("?", "\uff1f")))


def greets(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply opens with a greeting though the user's last message did not."""
    return float(_GREETING.search(reply) is not None and _GREETING.search(_last(history)) is None)


def refuses(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply says that it will not or cannot do what was asked."""
    return _found(_REFUSAL, _straight(reply))


def shouts(history: Sequence[Message], reply: str) -> float:
    """1.0 where at least two words of three letters or more are all capitals."""
    return float(len(_CAPITALS.findall(reply)) >= 2)


def exclaims(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply has at least two exclamation marks."""
    return float(len(_EXCLAIMED.findall(reply)) >= 2)


def has_markdown(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply has bold text, a heading, a table row or a code block."""
    return _found(_MARKDOWN, reply)


def acts(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply describes an action between asterisks, as in role play."""
    return _found(_ACTION, reply)


def is_wall_of_text(history: Sequence[Message], reply: str) -> float:
    """1.0 where some paragraph has 120 words or more."""
    return float(any(words(history, part) >= WALL_WORDS for part in _PARAGRAPH.split(reply)))


def echoes(history: Sequence[Message], reply: str) -> float:
    """1.0 where the reply repeats at least five words of the user's last message in a row."""
    asked, said = _last(history).lower().split(), " ".join(reply.lower().split())
    return float(any(" ".join(asked[i : i + 5]) in said for i in range(len(asked) - 4)))


BUILT_IN: Final = (
    Feature("length", words, binary=False),
    Feature("list", has_list),
    Feature("emoji", has_emoji),
    Feature("stock-phrase", has_stock_phrase),
    Feature("question", asks),
    Feature("greeting", greets),
    Feature("refusal", refuses),
    Feature("all-caps", shouts),
    Feature("exclamation", exclaims),
    Feature("markdown", has_markdown),
    Feature("action", acts),
    Feature("wall-of-text", is_wall_of_text),
    Feature("echo", echoes),
)
"""The artefacts that every report looks for."""


def features(params: StyleParams) -> list[Feature]:
    """The built-in artefacts and the user's own.

    Raises:
        ConfigError: a pattern is no regular expression, or has the name of another artefact.
    """
    found = list(BUILT_IN)
    for pattern in params.patterns:
        if any(pattern.name == feature.name for feature in found):
            raise ConfigError(f"style.patterns: {pattern.name} is the name of another artefact; choose another one")
        found.append(Feature(pattern.name, _searcher(pattern)))
    return found


def values(feature: Feature, histories: Sequence[Sequence[Message]], replies: Sequence[str]) -> NDArray[np.float64]:
    """The artefact of each reply, in their order.

    Raises:
        ConfigError: a user's pattern took too long.
    """
    return np.array(
        [feature.measure(history, reply[:MAX_CHARACTERS]) for history, reply in zip(histories, replies, strict=True)],
        dtype=np.float64,
    )


def _searcher(pattern: StylePattern) -> Artefact:
    try:
        compiled = regex.compile(pattern.pattern, regex.IGNORECASE if pattern.ignore_case else 0)
    except regex.error as error:
        raise ConfigError(
            f"style.patterns: {pattern.name} is no regular expression: {error}; correct {pattern.pattern!r}"
        ) from error

    def search(history: Sequence[Message], reply: str) -> float:
        try:
            return float(compiled.search(reply, timeout=PATTERN_SECONDS) is not None)
        except TimeoutError as error:
            raise ConfigError(
                f"style.patterns: {pattern.name} took more than {PATTERN_SECONDS:g} s on one reply; "
                "write it without repetitions inside repetitions"
            ) from error

    return search


def _found(pattern: "regex.Pattern[str]", text: str) -> float:
    return float(pattern.search(text) is not None)


def _last(history: Sequence[Message]) -> str:
    return history[-1]["content"] if history else ""


def _straight(text: str) -> str:
    return text.replace("\u2019", "'")
