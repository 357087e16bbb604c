"""The books of curation: what is still in, what was dropped, for which reason and of which origin."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import BY_ORIGIN, Metric, of_origin
from flywheel_contract.params import CurateParams
from flywheel_contract.stages import Origin
from flywheel_trainer.context import StageContext
from flywheel_trainer.data.constraints import Share, Traffic
from flywheel_trainer.data.executors import Executor
from flywheel_trainer.data.rows import Conversation
from flywheel_trainer.data.split import is_keyed
from flywheel_trainer.errors import DataError

RETENTION: Final = "retention"
ERASED: Final = "erased"
EARLIER: Final = "earlierTurn"
NO_REPLY: Final = "noReply"
SHARED: Final = "sharedConversation"
FOREIGN_CALL: Final = "foreignCall"
CONSENT: Final = "consent"
PRIVACY: Final = "privacy"
SAFETY: Final = "safety"
DUPLICATE: Final = "duplicate"
DIVERSITY: Final = "diversity"
CONSTRAINTS: Final = "constraints"
OVER_CAP: Final = "overCap"

_METRICS: Final = {
    RETENTION: Metric.DROPPED_RETENTION,
    ERASED: Metric.DROPPED_ERASED,
    CONSENT: Metric.DROPPED_CONSENT,
    PRIVACY: Metric.DROPPED_PRIVACY,
    SAFETY: Metric.DROPPED_SAFETY,
    DUPLICATE: Metric.DROPPED_DUPLICATE,
    DIVERSITY: Metric.DROPPED_DIVERSITY,
    CONSTRAINTS: Metric.DROPPED_CONSTRAINTS,
}
_EVALUATION: Final = {
    Origin.INTERNAL: Metric.EVALUATION_PROMPTS_INTERNAL,
    Origin.USER: Metric.EVALUATION_PROMPTS_USER,
}
_FIXES: Final = {
    RETENTION: "were past the time that they may be kept",
    ERASED: "were of users who were erased",
    EARLIER: "were earlier turns of a conversation that is there in full",
    NO_REPLY: "had no reply of the character",
    SHARED: "belonged to several users",
    FOREIGN_CALL: "called what their character has no tool for",
    CONSENT: "must not be trained on",
    PRIVACY: "held personal identifiers",
    SAFETY: "were unsafe",
    DUPLICATE: "were near-duplicates",
    DIVERSITY: "said the same as others or were left out for diversity",
    CONSTRAINTS: "would have moved the shares away from their targets",
    OVER_CAP: "were over maxConversations",
}


@dataclass
class Curation:
    """The conversations still in, and why the others are out."""

    rows: list[Conversation]
    ctx: StageContext
    executor: Executor
    """Who looks at the rows one by one."""
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_of: Counter[tuple[str, Origin]] = field(default_factory=Counter)
    """The same by origin."""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    """What marks of retention are compared with."""
    redacted: int | None = None
    """Conversations in which identifiers were replaced; None where that was not asked for."""
    traffic: Traffic = field(default_factory=dict)
    """What the constraints are measured against, before any filter."""
    counts: dict[str, int] = field(default_factory=dict)
    """What a step counts beside the conversations that it drops."""
    shares: list[Share] = field(default_factory=list)
    """What the constraints wanted and what came out."""

    def keep(self, rows: list[Conversation], reason: str) -> None:
        """Goes on with `rows` only."""
        self.dropped[reason] += len(self.rows) - len(rows)
        for origin in Origin:
            self.dropped_of[reason, origin] += _of(origin, self.rows) - _of(origin, rows)
        self.rows = rows


def reasons(dropped: Mapping[str, int]) -> str:
    """How many rows were dropped for which reason, as a sentence."""
    return ", ".join(f"{n} {_FIXES[reason]}" for reason, n in dropped.items() if n) or "there were none"


def refuse_empty(prompts: list[Conversation], evaluation: list[Conversation], params: CurateParams) -> None:
    """Raises DataError where one side of the split is empty."""
    users = len({row.user for row in (*prompts, *evaluation)})
    share = f"holdoutFraction {params.holdout_fraction:g}"
    if not evaluation:
        raise DataError(
            f"none of the {users} users left falls into the hold-out ({share}): bring more users or raise it"
        )
    if not prompts:
        raise DataError(f"all of the {users} users left fall into the hold-out ({share}): bring more users or lower it")


def all_counts(
    curation: Curation, read: list[Conversation], prompts: list[Conversation], evaluation: list[Conversation]
) -> dict[str, int]:
    """Every count by its name in the manifest; what was dropped also by origin."""

    def by_origin(name: str, rows: list[Conversation]) -> Iterator[tuple[str, int]]:
        for origin in Origin:
            yield f"{name}{origin.value}", _of(origin, rows)

    return {
        **dict(by_origin("read", read)),
        **{_dropped(reason): n for reason, n in curation.dropped.items()},
        **{f"{_dropped(reason)}{origin.value}": n for (reason, origin), n in curation.dropped_of.items()},
        **curation.counts,
        **dict(by_origin("prompts", prompts)),
        **dict(by_origin("evaluation", evaluation)),
        **{
            f"plainUserIds{o.value}": len({r.user for r in read if r.origin is o and not is_keyed(r.user)})
            for o in Origin
        },
        "promptsUsers": len({row.user for row in prompts}),
        "evaluationUsers": len({row.user for row in evaluation}),
    }


def all_metrics(
    curation: Curation, read: list[Conversation], evaluation: list[Conversation]
) -> dict[Metric, Measurement]:
    """What the stage reports; a filter that did not run has no metric."""

    def count(value: int) -> Measurement:
        return Measurement(value=value, n=len(read))

    found = {Metric.ROWS_READ: count(len(read)), Metric.ROWS_KEPT: count(len(curation.rows))}
    found |= {metric: count(curation.dropped[r]) for r, metric in _METRICS.items() if r in curation.dropped}
    if curation.redacted is not None:
        found[Metric.REDACTED_PRIVACY] = count(curation.redacted)
    for origin, prompts in _EVALUATION.items():
        own, kept = _of(origin, read), _of(origin, curation.rows)
        values = {Metric.ROWS_READ: own, Metric.ROWS_KEPT: kept}
        values |= {m: curation.dropped_of[r, origin] for r, m in _METRICS.items() if r in curation.dropped}
        found |= {of_origin(m, origin): Measurement(value=n, n=own) for m, n in values.items() if m in BY_ORIGIN}
        found[prompts] = count(_of(origin, evaluation))
    return found


def _of(origin: Origin, rows: list[Conversation]) -> int:
    return sum(row.origin is origin for row in rows)


def _dropped(reason: str) -> str:
    return f"dropped{reason[0].upper()}{reason[1:]}"
