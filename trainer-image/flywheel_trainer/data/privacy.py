"""The privacy filter: conversations and pairs that hold personal identifiers are dropped, or the identifiers replaced.

Messages are looked at whole, and so are texts in signals and metadata. Of the words of a row that are no prose (its
character, its locale, names of signals, reviewers) only patterns are asked: the named-entity model takes `en-US` for a
place and one hash in ten for a person. Ids are looked at for mail addresses only: any number may be an id, and a mail
address is never one that may be passed on.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic

from presidio_analyzer import RecognizerResult
from presidio_anonymizer import AnonymizerEngine

from flywheel_contract.filters import PrivacyMode, PrivacyParams
from flywheel_trainer.data.executors import HERE, Executor
from flywheel_trainer.data.recognizers import (
    NAMED_ENTITIES,
    Finder,
    NamedEntityFinder,
    OwnFinder,
    PatternFinder,
    pattern_entities,
)
from flywheel_trainer.data.rows import Message, Row, RowT, texts_in, texts_of
from flywheel_trainer.errors import SpecError

WINDOW: Final = 10_000
"""Characters that are looked at together: a text of any length takes time in proportion to its length."""
OVERLAP: Final = 256
"""Characters that two windows share, longer than any identifier."""
_BATCH: Final = 512
_MAIL: Final = "EMAIL_ADDRESS"
_MESSAGES: Final = ("messages", "prompt", "chosen", "rejected")
_CARD: Final = 10**12
"""A whole number in signals or metadata is looked at from here on: cards have 13 digits and more. Of the others too
many pass for telephone numbers: three Unix times in four, one fraction in eight."""


@dataclass
class Screened(Generic[RowT]):
    """What is left of some rows, and what was found."""

    rows: list[RowT] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Entity -> rows left out because of it; one that held several counts for each."""
    redacted: Counter[str] = field(default_factory=Counter)
    """Entity -> rows in which it was replaced."""
    redacted_rows: int = 0

    def add(self, further: "Screened[RowT]") -> None:
        """Takes in what came of the rows after these."""
        self.rows += further.rows
        self.dropped += further.dropped
        self.redacted += further.redacted
        self.redacted_rows += further.redacted_rows


class PrivacyFilter:
    """Finds identifiers in texts, as the settings say."""

    def __init__(self, params: PrivacyParams, names: Iterable[str] = ()) -> None:
        """`names` (the characters') are nobody's, like `params.allow_list`.

        Raises:
            SpecError: an unknown entity, or an expression that cannot be used.
            ConfigError: the named-entity model is not installed.
        """
        self._made_of = (params, tuple(names))
        entities = list(dict.fromkeys(params.entities))
        own = {r.name for r in params.recognizers}
        by_pattern = pattern_entities()
        unknown = sorted(set(entities) - set(by_pattern) - NAMED_ENTITIES - own)
        if unknown:
            known = sorted({*by_pattern, *NAMED_ENTITIES, *own})
            raise SpecError(f"privacy.entities: unknown {', '.join(unknown)}; the filter knows: {', '.join(known)}")
        self._min_score, self._mode = params.min_score, params.mode
        self._allowed = _any_of([*params.allow_list, *self._made_of[1]])
        # What only a pattern can find is looked for again in a redacted text.
        self._certain: list[Finder] = []
        patterns = [e for e in entities if e in by_pattern]
        if patterns:
            self._certain.append(PatternFinder(patterns))
        if params.recognizers:
            self._certain.append(OwnFinder(params.recognizers))
        self._finders = list(self._certain)
        named = [e for e in entities if e in NAMED_ENTITIES]
        if named:
            self._finders.append(NamedEntityFinder(params.named_entity_model, named))
        self._looks_at_ids = _MAIL in entities
        self._anonymizer = AnonymizerEngine()

    def __reduce__(self) -> tuple[type["PrivacyFilter"], tuple[PrivacyParams, tuple[str, ...]]]:
        """On another machine it is made anew, not copied: it holds a model."""
        return type(self), self._made_of

    def __call__(self, rows: Sequence[RowT]) -> Screened[RowT]:
        """As `screen`, on a batch of rows that fits into memory several times over."""
        found = self._by_text((text for row in rows for text in _texts_of(row)), self._finders)
        in_words = self._by_text((word for row in rows for word in _words_of(row)), self._certain)
        screened: Screened[RowT] = Screened()
        for row in rows:
            kept_words = {r.entity_type for word in _words_of(row) for r in in_words.get(word, [])}
            self._decide(screened, row, {text: found[text] for text in _texts_of(row) if text in found}, kept_words)
        return screened

    def found(self, texts: Sequence[str]) -> list[list[RecognizerResult]]:
        """The identifiers in each text, those of a low score and the allowed ones left out."""
        return self._found(texts, self._finders)

    def first(self, text: str) -> str | None:
        """The kind of the first identifier in `text`, or None."""
        found = self.found([text])[0]
        return found[0].entity_type if found else None

    def redact(self, text: str, found: Sequence[RecognizerResult]) -> str:
        """`text` with `<ENTITY>` in place of what was found."""
        return str(self._anonymizer.anonymize(text, list(found)).text) if found else text

    def screen(self, rows: Sequence[RowT], executor: Executor = HERE) -> Screened[RowT]:
        """Drops or redacts the rows with identifiers. A row in which one is left after redaction is dropped."""
        screened: Screened[RowT] = Screened()
        for part in executor.map(self, rows, _BATCH):
            screened.add(part)
        return screened

    def _decide(
        self, screened: Screened[RowT], row: RowT, found: Mapping[str, list[RecognizerResult]], in_words: set[str]
    ) -> None:
        """`found` is by text; `in_words` is found where nothing can be put in its place."""
        entities = {r.entity_type for results in found.values() for r in results}
        fixed = in_words | ({_MAIL} if self._named_by_mail(row) else set())
        if fixed:
            screened.dropped.update(entities | fixed)
        elif not entities:
            screened.rows.append(row)
        elif self._mode is PrivacyMode.DROP:
            screened.dropped.update(entities)
        else:
            clean = _with_texts(row, {text: self.redact(text, results) for text, results in found.items()})
            again = list(_texts_of(clean))
            left = {r.entity_type for results in self._found(again, self._certain) for r in results}
            # Names of tools and of arguments, and numbers, stay as they are, whatever was found in them.
            left |= {r.entity_type for text in again for r in found.get(text, [])}
            if left:
                screened.dropped.update(left)
            else:
                screened.rows.append(clean)
                screened.redacted.update(entities)
                screened.redacted_rows += 1

    def _named_by_mail(self, row: Row) -> bool:
        names = [name for name in (row.user, row.conversation) if "@" in name] if self._looks_at_ids else []
        return any(r.entity_type == _MAIL for found in self._found(names, self._certain) for r in found)

    def _by_text(self, texts: Iterable[str], finders: Sequence[Finder]) -> dict[str, list[RecognizerResult]]:
        """The texts in which something was found. Each is looked at once: rows share prompts and names."""
        distinct = list(dict.fromkeys(texts))
        found = zip(distinct, self._found(distinct, finders), strict=True)
        return {text: results for text, results in found if results}

    def _found(self, texts: Sequence[str], finders: Sequence[Finder]) -> list[list[RecognizerResult]]:
        windows = [(number, start, part) for number, text in enumerate(texts) for start, part in _windows(text)]
        found: list[list[RecognizerResult]] = [[] for _ in texts]
        for finder in finders:
            for (number, start, part), results in zip(windows, finder([part for _, _, part in windows]), strict=True):
                for r in results:
                    if self._counts(part, r):
                        moved = RecognizerResult(r.entity_type, r.start + start, r.end + start, r.score)
                        found[number].append(moved)
        return found

    def _counts(self, text: str, result: RecognizerResult) -> bool:
        if result.score < self._min_score:
            return False
        allowed = self._allowed.finditer(text) if self._allowed is not None else ()
        return not any(match.start() <= result.start and result.end <= match.end() for match in allowed)


def _windows(text: str) -> Iterator[tuple[int, str]]:
    """Parts of a text with the place where they begin; an empty text has none."""
    step = WINDOW - OVERLAP
    for start in range(0, max(len(text) - OVERLAP, min(len(text), 1)), step):
        yield start, text[start : start + WINDOW]


def _texts_of(row: Row) -> Iterator[str]:
    for name in _MESSAGES:
        for message in getattr(row, name, ()):
            yield from texts_of(message)
    yield from texts_in([row.signals, row.metadata])


def _words_of(row: Row) -> Iterator[str]:
    """What a row carries on beside ids and texts."""
    yield from filter(None, (row.character, row.locale, *(review.reviewer for review in row.reviews)))
    for flat in (row.signals, row.metadata):
        yield from flat
        yield from (str(int(v)) for v in flat.values() if isinstance(v, int | float) and v >= _CARD and v == int(v))


def _with_texts(row: RowT, new: Mapping[str, str]) -> RowT:
    """The row with some of its texts replaced."""
    messages = {
        name: [_cleaned(message, new) for message in getattr(row, name)] for name in _MESSAGES if hasattr(row, name)
    }
    flat = {"signals": _replaced(row.signals, new), "metadata": _replaced(row.metadata, new)}
    return row.model_copy(update={**messages, **flat})


def _cleaned(message: Message, new: Mapping[str, str]) -> Message:
    clean: Message = {**message, "content": new.get(message["content"], message["content"])}
    if "tool_calls" in message:
        clean["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _replaced(call["function"]["arguments"], new)}}
            for call in message["tool_calls"]
        ]
    return clean


def _replaced(value: Any, new: Mapping[str, str]) -> Any:  # noqa: ANN401 -- any JSON value
    if isinstance(value, str):
        return new.get(value, value)
    if isinstance(value, Mapping):
        return {key: _replaced(inner, new) for key, inner in value.items()}
    return [_replaced(inner, new) for inner in value] if isinstance(value, list) else value


def _any_of(phrases: Sequence[str]) -> re.Pattern[str] | None:
    """Whole words, in any case and with any white space between them; what is found inside of one is nobody's."""
    ways = [r"\s+".join(map(re.escape, phrase.split())) for phrase in phrases if phrase.strip()]
    return re.compile(rf"(?<!\w)(?:{'|'.join(ways)})(?!\w)", re.IGNORECASE) if ways else None
