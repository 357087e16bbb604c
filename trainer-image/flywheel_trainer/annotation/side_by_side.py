"""The human side-by-side: how often people prefer the candidate, with agreement and interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_contract.pairs import AgreementParams
from flywheel_contract.stages import Origin
from flywheel_trainer import intervals
from flywheel_trainer.annotation.agreement import agreed, alpha
from flywheel_trainer.annotation.formats import Label
from flywheel_trainer.annotation.outcomes import compared
from flywheel_trainer.errors import DataError

CANDIDATE, BASELINE = "candidate", "baseline"
WORTH = {CANDIDATE: 1.0, "tie": 0.5, BASELINE: 0.0}
_SAMPLES, _CONFIDENCE = 2000, 0.95


def report(labels: Sequence[Label], params: AgreementParams, seed: int = 0) -> dict[str, Any]:
    """Win rates of the candidate over all items and over the agreed ones, in all and by origin.

    Of an item counts the mean over its reviewers (a tie a half), of an agreed one what they agree on. Intervals are
    bootstraps over users. What cannot be measured is left out.

    Raises:
        DataError: an item is not a candidate's and a baseline's reply.
    """
    parts: dict[str, Sequence[Label]] = {"all": labels}
    parts |= {origin.value: [label for label in labels if label.origin is origin] for origin in Origin}
    return {name: _part(part, params, seed) for name, part in parts.items() if part}


def choices(label: Label) -> list[str]:
    """Whom each reviewer prefers, with the blinding undone."""
    sources = [reply.source for reply in label.replies]
    if sorted(sources) != [BASELINE, CANDIDATE]:
        raise DataError(
            f"item {label.item}: its replies are of {' and '.join(sources).strip() or 'nobody'}, not of candidate "
            "and baseline; write each reply's source"
        )
    words = {1: sources[0], 0: "tie", -1: sources[1]}
    return [words[compared(review, 0, 1)] for review in label.reviews]


def _part(labels: Sequence[Label], params: AgreementParams, seed: int) -> dict[str, Any]:
    said = [choices(label) for label in labels]
    verdicts = [agreed(each, params) for each in said]
    several = [each for each in said if len(each) > 1]
    found: dict[str, Any] = {
        "items": len(labels),
        "itemsWithSeveralReviews": len(several),
        "itemsAgreed": sum(verdict is not None for verdict in verdicts),
        "reviews": {name: sum(each.count(name) for each in said) for name in WORTH},
        "winRate": _rate(labels, [float(np.mean([WORTH[c] for c in each])) for each in said], seed),
    }
    kept = [(label, verdict) for label, verdict in zip(labels, verdicts, strict=True) if verdict is not None]
    if kept:
        found["winRateAgreed"] = _rate([label for label, _ in kept], [WORTH[verdict] for _, verdict in kept], seed)
    measured = alpha(said, list(WORTH))
    if measured is not None:
        found["alpha"] = measured
    return found


def _rate(labels: Sequence[Label], worth: Sequence[float], seed: int) -> dict[str, Any]:
    estimate = intervals.mean([label.user for label in labels], worth, samples=_SAMPLES, seed=seed)
    return estimate.measurement(_CONFIDENCE).to_json()
