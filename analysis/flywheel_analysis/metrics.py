"""What is measured: each metric as columns of the per-user table. docs/analysis.md holds the formulas."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from flywheel_contract.experiment import (
    COVARIATE_OF,
    CUPED_SUFFIX,
    BuiltinMetric,
    Covariate,
    MetricDefinition,
    MetricKind,
)

MESSAGES_CAP: Final = 100
"""The most messages of a user that `messagesPerUserCapped` counts."""

ACTIVE: Final = "active"
ACTIVE_DAYS: Final = "active_days"
MESSAGES: Final = "messages"
MESSAGES_CAPPED: Final = "messages_capped"
VIOLATIONS: Final = "safety_violations"
REFUSALS: Final = "false_refusals"
ERRORS: Final = "errors"
REQUESTS: Final = "requests"
LATENCY_SUM: Final = "latency_sum"
LATENCY_COUNT: Final = "latency_count"
BUILTIN_COLUMNS: Final = (
    ACTIVE, ACTIVE_DAYS, MESSAGES, MESSAGES_CAPPED, VIOLATIONS, REFUSALS, ERRORS, REQUESTS, LATENCY_SUM, LATENCY_COUNT,
)  # fmt: skip
"""Numbers of one user in the window, never null."""

OWN_PREFIX: Final = "own_"
"""How the per-user columns of the user's own metrics begin."""

COVARIATE_COLUMN: Final = {Covariate.PRE_MESSAGES: "pre_messages", Covariate.PRE_ACTIVE_DAYS: "pre_active_days"}


class Counting(StrEnum):
    """What distribution bounds a rate exactly."""

    POISSON = "Poisson"
    """Events that a message may have several of."""
    BINOMIAL = "Binomial"
    """Events that are a part of what they are divided by."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as sums of per-user columns; without a denominator it is a mean over exposed users."""

    name: str
    numerator: str
    denominator: str | None = None
    per: str = "exposed users"
    """What it is divided by, in words."""
    covariate: Covariate | None = None
    counting: Counting | None = None

    @property
    def kind(self) -> MetricKind:
        """Mean, or Ratio where there is a denominator."""
        return MetricKind.MEAN if self.denominator is None else MetricKind.RATIO

    @property
    def covariate_column(self) -> str | None:
        """The per-user column of its covariate."""
        return None if self.covariate is None else COVARIATE_COLUMN[self.covariate]

    @property
    def columns(self) -> tuple[str, ...]:
        """All per-user columns that it needs."""
        found = (self.numerator, self.denominator, self.covariate_column)
        return tuple(column for column in found if column is not None)


_B = BuiltinMetric
PLAIN: Final = (
    Metric(_B.ACTIVE_SHARE.value, ACTIVE),
    Metric(_B.ACTIVE_DAYS_PER_USER.value, ACTIVE_DAYS),
    Metric(_B.MESSAGES_PER_USER.value, MESSAGES),
    Metric(_B.MESSAGES_PER_USER_CAPPED.value, MESSAGES_CAPPED),
    Metric(_B.MESSAGES_PER_ACTIVE_USER.value, MESSAGES, ACTIVE, "active users"),
    Metric(_B.MESSAGES_PER_ACTIVE_DAY.value, MESSAGES, ACTIVE_DAYS, "active days"),
    Metric(_B.SAFETY_VIOLATIONS_PER_MESSAGE.value, VIOLATIONS, MESSAGES, "messages", counting=Counting.POISSON),
    Metric(_B.FALSE_REFUSALS_PER_MESSAGE.value, REFUSALS, MESSAGES, "messages", counting=Counting.POISSON),
    Metric(_B.ERRORS_PER_REQUEST.value, ERRORS, REQUESTS, "messages and errors", counting=Counting.BINOMIAL),
    Metric(_B.LATENCY_MEAN.value, LATENCY_SUM, LATENCY_COUNT, "messages with a latency"),
)

BUILTIN: Final = (
    *PLAIN,
    *(
        replace(metric, name=metric.name + CUPED_SUFFIX, covariate=COVARIATE_OF[BuiltinMetric(metric.name)])
        for metric in PLAIN
        if BuiltinMetric(metric.name) in COVARIATE_OF
    ),
)
"""The metrics that need no definition, and those with a covariate once more in their CUPED form."""


def own(index: int, definition: MetricDefinition) -> Metric:
    """The user's metric number `index`; its columns are made by `own_metrics`."""
    return Metric(
        definition.name,
        own_numerator(index),
        None if definition.denominator is None else own_denominator(index),
        "exposed users" if definition.denominator is None else definition.denominator,
        definition.covariate,
    )


def own_numerator(index: int) -> str:
    """The per-user column of an own metric's numerator."""
    return f"{OWN_PREFIX}{index}_numerator"


def own_denominator(index: int) -> str:
    """The per-user column of an own metric's denominator."""
    return f"{OWN_PREFIX}{index}_denominator"
