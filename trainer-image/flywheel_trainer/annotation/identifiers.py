"""The privacy filter of curation, as annotation uses it: no identifier leaves for annotators, and none comes back."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from flywheel_contract.filters import PrivacyParams
from flywheel_trainer.annotation.formats import Item, Label, Review, explained
from flywheel_trainer.data.privacy import PrivacyFilter
from flywheel_trainer.errors import ConfigError

Finder = Callable[[str], str | None]


def finder(settings: Path | None) -> Finder:
    """Names the first identifier in a text, None where there is none.

    `settings` is a file with `curation.privacy` as JSON; without it, its defaults count.

    Raises:
        ConfigError, SpecError: the settings cannot be read or used.
    """
    return PrivacyFilter(PrivacyParams() if settings is None else _read(settings)).first


def found_in(item: Item, private: Finder) -> str | None:
    """The kind of the first identifier in what annotators would read: prompt, replies, arguments of calls."""
    calls = [json.dumps(call["function"]["arguments"]) for reply in item.replies for call in reply.tool_calls]
    texts = [*(m["content"] for m in item.prompt), *(reply.text for reply in item.replies), *calls]
    return next(filter(None, map(private, texts)), None)


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
