"""The privacy filter of curation, as annotation uses it: no identifier leaves for annotators, and none comes back."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from flywheel_contract.filters import PrivacyParams
from flywheel_trainer.annotation.formats import Item, Label, Review
from flywheel_trainer.data.privacy import PrivacyFilter
from flywheel_trainer.data.rows import explained, texts_of
from flywheel_trainer.errors import ConfigError

Finder = Callable[[str], str | None]


def finder(settings: Path | None, names: Iterable[str] = ()) -> Finder:
    """Tells the kind of the first identifier in a text, None where there is none.

    `settings` is a file with `curation.privacy` as JSON; without it, its defaults count. `names`, the characters', are
    nobody's.

    Raises:
        ConfigError, SpecError: the settings cannot be read or used.
    """
    return PrivacyFilter(PrivacyParams() if settings is None else _read(settings), names).first


def found_in(item: Item, private: Finder) -> str | None:
    """The kind of the first identifier in what would be handed on: prompt and replies, with their calls."""
    messages = [*item.prompt, *(reply.message() for reply in item.replies)]
    return next(filter(None, (private(text) for message in messages for text in texts_of(message))), None)


def without_identifiers(labels: Sequence[Label], private: Finder) -> tuple[list[Label], dict[str, int]]:
    """The labels without those on texts with an identifier, and without rewrites that hold one; counts of both."""
    counts: Counter[str] = Counter()
    kept = []
    for label in labels:
        entity = found_in(label, private)
        if entity is not None:
            counts[f"droppedPrivacy.{entity}"] += 1
            continue
        kept.append(label.model_copy(update={"reviews": [_clean(review, private, counts) for review in label.reviews]}))
    return kept, dict(counts)


def _clean(review: Review, private: Finder, counts: Counter[str]) -> Review:
    entity = private(review.rewrite) if review.rewrite else None
    if entity is None:
        return review
    counts[f"rewritesDroppedPrivacy.{entity}"] += 1
    return review.model_copy(update={"rewrite": None})


def _read(path: Path) -> PrivacyParams:
    try:
        return PrivacyParams.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--privacy {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"--privacy {path}: {explained(error)}; write spec.curation.privacy as JSON") from error
