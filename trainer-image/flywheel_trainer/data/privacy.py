"""The privacy filter: Presidio's pattern recognisers, each used by itself.

The whole analyzer would load a language model; the identifiers that patterns and checksums find (cards, addresses,
phone and account numbers) need none. Names of people are not found this way.
"""

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Final

import tldextract
from presidio_analyzer import LocalRecognizer, PatternRecognizer, predefined_recognizers
from presidio_analyzer.predefined_recognizers import EmailRecognizer, PhoneRecognizer

from flywheel_trainer.errors import SpecError

MIN_SCORE: Final = 0.4
"""Presidio's score from which a match counts: below are patterns that any long number fits."""

_DIGITS_ONLY: Final = frozenset({"CREDIT_CARD", "IBAN_CODE", "PHONE_NUMBER", "US_SSN"})
"""Identifiers that cannot be without a digit; most messages have none, and these recognisers are slow."""

_SUFFIX_LIST: Final = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
"""The list of domain suffixes that is part of the package; the default fetches a newer one from the network."""


class _OfflineEmailRecognizer(EmailRecognizer):
    def validate_result(self, pattern_text: str) -> bool:
        return _SUFFIX_LIST(pattern_text).fqdn != ""


class PrivacyFilter:
    """Finds the named identifiers in texts.

    Raises:
        SpecError: an entity that no pattern recogniser knows; names those that are known.
    """

    def __init__(self, entities: Sequence[str]) -> None:
        known = _recognizer_classes()
        unknown = sorted(set(entities) - set(known))
        if unknown:
            raise SpecError(
                f"privacy.entities: unknown {', '.join(unknown)}; the filter knows: {', '.join(sorted(known))}"
            )
        self._recognizers = [(entity, [cls() for cls in known[entity]]) for entity in dict.fromkeys(entities)]

    def found(self, text: str) -> str | None:
        """The first identifier in `text`, by its entity's name, or None."""
        has_digit = any(c.isdigit() for c in text)
        for entity, recognizers in self._recognizers:
            if entity in _DIGITS_ONLY and not has_digit:
                continue
            for recognizer in recognizers:
                results = recognizer.analyze(text, [entity], None)
                if any(r.entity_type == entity and r.score >= MIN_SCORE for r in results):
                    return entity
        return None


@cache
def _recognizer_classes() -> dict[str, list[type[LocalRecognizer]]]:
    """Entity -> the recognisers that find it by pattern alone."""
    found: dict[str, list[type[LocalRecognizer]]] = {}
    for _, cls in inspect.getmembers(predefined_recognizers, inspect.isclass):
        if not issubclass(cls, PatternRecognizer | PhoneRecognizer) or cls is PatternRecognizer:
            continue
        used = _OfflineEmailRecognizer if cls is EmailRecognizer else cls
        for entity in used().supported_entities:
            found.setdefault(entity, []).append(used)
    return found
