"""The classifier that needs nothing: alt-profanity-check for abuse, and lists of phrases by category.

Both look at words: quick, offline, and blind to harm that is said politely or in another language than English. It is
the floor of what a production line needs.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Final

from flywheel_contract.safety import WordList
from flywheel_safety.classifier import Classifier, RefusedError, Scores
from flywheel_safety.sentences import sentences

ABUSE: Final = "abuse"
"""The category of alt-profanity-check."""
NAME: Final = "alt-profanity-check/1.9.1+words/1"
"""Raise the last number when a list in words/ changes: verdicts of two versions are not compared."""

_APOSTROPHES: Final = str.maketrans({"\u2019": "'", "\u2018": "'", "`": "'"})


class Embedded(Classifier):
    """Scores the sentences of a text; the worst one counts, so that much harmless text around it hides nothing."""

    name = NAME

    def __init__(self, words: Iterable[WordList] = ()) -> None:
        """`words` come beside the built-in lists."""
        phrases = {category: list(found) for category, found in built_in().items()}
        for given in words:
            phrases.setdefault(given.category, []).extend(given.phrases)
        self._phrases = {category: _any_of(found) for category, found in sorted(phrases.items())}

    def score(self, texts: Sequence[str]) -> list[Scores]:
        """One set of scores per text: the probability of abuse, and 1 for each category with a listed phrase.

        Raises:
            RefusedError: alt-profanity-check cannot be loaded.
        """
        parts = [sentences(text) for text in texts]
        abuse = iter(_abuse([part for found in parts for part in found]))
        return [
            {ABUSE: max((next(abuse) for _ in found), default=0.0), **self._listed(text)}
            for text, found in zip(texts, parts, strict=True)
        ]

    def _listed(self, text: str) -> dict[str, float]:
        folded = fold(text)
        return {category: 1.0 for category, pattern in self._phrases.items() if pattern.search(folded)}


@cache
def built_in() -> dict[str, tuple[str, ...]]:
    """Category -> phrases, from the files in words/: one phrase per line, `#` begins a comment."""
    found = {}
    for file in sorted(resources.files("flywheel_safety").joinpath("words").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".txt"):
            lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
            found[file.name.removesuffix(".txt")] = tuple(line for line in lines if line)
    return found


def fold(text: str) -> str:
    """`text` as phrases are compared: one case and width, straight apostrophes, no invisible characters."""
    plain = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).casefold()
    return "".join(c for c in plain if unicodedata.category(c) != "Cf")


def _any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    """Whole words; between two words of a phrase may stand any white space."""
    ways = sorted({r"\s+".join(re.escape(word) for word in fold(phrase).split()) for phrase in phrases})
    return re.compile(rf"(?<!\w)(?:{'|'.join(ways)})(?!\w)")


def _abuse(texts: Sequence[str]) -> list[float]:
    if not texts:
        return []
    try:
        from profanity_check import predict_prob  # noqa: PLC0415 -- unpickles its own model files: seconds
    except (ImportError, OSError) as error:
        raise RefusedError(
            f"alt-profanity-check cannot be loaded ({error}): install the image's requirements"
        ) from error
    return [float(p) for p in predict_prob(list(texts))]
