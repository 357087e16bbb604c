"""What finds identifiers: Presidio's recognisers by pattern, the user's own expressions, a named-entity model.

Presidio's whole analyzer would load a language model for every text. Identifiers that patterns and checksums find need
none, so each recogniser is used by itself, and the model is loaded only where a named entity is asked for.
"""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final, Protocol

import regex
import spacy
import tldextract
from presidio_analyzer import LocalRecognizer, PatternRecognizer, RecognizerResult, predefined_recognizers
from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
from presidio_analyzer.predefined_recognizers import EmailRecognizer, PhoneRecognizer, SpacyRecognizer

from flywheel_contract.filters import PrivacyRecognizer
from flywheel_trainer.errors import ConfigError, SpecError

NAMED_ENTITIES: Final = frozenset(SpacyRecognizer.ENTITIES)
"""DATE_TIME, LOCATION, NRP, ORGANIZATION, PERSON."""
MATCH_SECONDS: Final = 2.0
"""What one expression of the user's may take for one text of at most WINDOW characters."""
_PROBE_SECONDS: Final = 0.5
_PROBE_LENGTH: Final = 2000

_DIGITS_ONLY: Final = frozenset({"CREDIT_CARD", "IBAN_CODE", "PHONE_NUMBER", "US_SSN"})
"""Identifiers that cannot be without a digit; most messages have none, and these recognisers are slow."""

_SUFFIX_LIST: Final = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
"""The list of domain suffixes that is part of the package; the default fetches a newer one from the network."""

Results = list[list[RecognizerResult]]


class Finder(Protocol):
    """Finds identifiers in a batch of texts."""

    def __call__(self, texts: Sequence[str]) -> Results:
        """The matches in each text, with places and scores."""
        ...


class PatternFinder:
    """Presidio's recognisers by pattern and checksum."""

    def __init__(self, entities: Sequence[str]) -> None:
        """`entities` are among `pattern_entities()`."""
        known = _recognizer_classes()
        self._recognizers = [(entity, [cls() for cls in known[entity]]) for entity in entities]

    def __call__(self, texts: Sequence[str]) -> Results:
        """The matches in each text."""
        return [list(self._in(text)) for text in texts]

    def _in(self, text: str) -> Iterator[RecognizerResult]:
        has_digit = any(c.isdigit() for c in text)
        for entity, recognizers in self._recognizers:
            if entity in _DIGITS_ONLY and not has_digit:
                continue
            for recognizer in recognizers:
                yield from (r for r in recognizer.analyze(text, [entity], None) if r.entity_type == entity)


class OwnFinder:
    """The user's expressions. Each is tried at the start on texts that make a careless one take for ever."""

    def __init__(self, recognizers: Sequence[PrivacyRecognizer]) -> None:
        """Raises SpecError: an expression is none, matches nothing at all, or takes too long."""
        self._patterns = [(r, _compiled(r)) for r in recognizers]

    def __call__(self, texts: Sequence[str]) -> Results:
        """The matches in each text.

        Raises:
            SpecError: an expression took too long; the text is not quoted.
        """
        return [list(self._in(text)) for text in texts]

    def _in(self, text: str) -> Iterator[RecognizerResult]:
        for recognizer, pattern in self._patterns:
            try:
                for match in pattern.finditer(text, timeout=MATCH_SECONDS):
                    if match.end() > match.start():
                        yield RecognizerResult(recognizer.name, match.start(), match.end(), recognizer.score)
            except TimeoutError:
                raise _too_slow(recognizer, f"{MATCH_SECONDS:g} seconds for a text of {len(text)} characters") from None


class NamedEntityFinder:
    """A spaCy model, which is loaded from the image and never downloaded."""

    def __init__(self, model: str, entities: Sequence[str]) -> None:
        """Raises ConfigError: the model is not installed, or finds no named entities."""
        if not spacy.util.is_package(model):
            raise ConfigError(
                f"privacy.namedEntityModel: the image has no package {model}; name one that is installed, nothing is "
                "downloaded"
            )
        configuration = NerModelConfiguration(labels_to_ignore=[])
        self._engine = SpacyNlpEngine([{"lang_code": "en", "model_name": model}], configuration)
        with warnings.catch_warnings():
            # The model's package asks for the spaCy that it was made with; the pinned one is a patch release later.
            warnings.filterwarnings("ignore", message=r"\[W095\]")
            self._engine.load()
        pipeline = self._engine.nlp["en"]
        if "ner" not in pipeline.pipe_names:
            raise ConfigError(f"privacy.namedEntityModel: {model} has no component that finds named entities")
        # Tagger, parser and lemmatizer take most of the time and tell nothing of identifiers.
        pipeline.select_pipes(
            enable=[name for name in ("tok2vec", "transformer", "ner") if name in pipeline.pipe_names]
        )
        self._entities = list(entities)
        self._recognizer = SpacyRecognizer(supported_entities=self._entities)

    def __call__(self, texts: Sequence[str]) -> Results:
        """The matches in each text."""
        analysed = self._engine.process_batch(list(texts), "en", batch_size=64)
        return [self._recognizer.analyze(text, self._entities, artifacts) for text, artifacts in analysed]


def pattern_entities() -> list[str]:
    """What Presidio finds by pattern alone."""
    return sorted(_recognizer_classes())


class _OfflineEmailRecognizer(EmailRecognizer):
    def validate_result(self, pattern_text: str) -> bool:
        return _SUFFIX_LIST(pattern_text).fqdn != ""


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


def _compiled(recognizer: PrivacyRecognizer) -> "regex.Pattern[str]":
    where = f"privacy.recognizers {recognizer.name}"
    try:
        pattern = regex.compile(recognizer.pattern, regex.IGNORECASE)
    except (regex.error, OverflowError, RecursionError) as error:
        raise SpecError(f"{where}: the pattern is no regular expression ({error}); correct it") from error
    try:
        if pattern.search("", timeout=_PROBE_SECONDS):
            raise SpecError(f"{where}: the pattern matches an empty text, so every message would hold it; correct it")
        # Nearly a match, over and over, is what nested repetitions take exponential time for. The literal parts stand
        # behind it: without them the engine sees at once that nothing can match.
        literal = "\0".join(regex.findall(r"[^\\\[\](){}.*+?|^$]+", recognizer.pattern))
        for character in sorted({c for c in recognizer.pattern if c.isalnum()} | set("a1 -.")):
            for _ in pattern.finditer(f"{character * _PROBE_LENGTH}\0{literal}", timeout=_PROBE_SECONDS):
                pass
    except TimeoutError:
        raise _too_slow(recognizer, f"{_PROBE_SECONDS:g} seconds for {_PROBE_LENGTH} characters") from None
    return pattern


def _too_slow(recognizer: PrivacyRecognizer, how: str) -> SpecError:
    return SpecError(
        f"privacy.recognizers {recognizer.name}: the pattern took more than {how}; repeat nothing that is repeated "
        "itself, and bound repetitions as in {1,20}"
    )
