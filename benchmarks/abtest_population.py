"""Simulated chat users for abtest_errors: who comes on which day, how much they write, and what goes wrong.

The shapes are those of a chat product: few users write most of the messages, few cause most of the violations, and what
somebody did last week tells much of what they do this week. `docs/abtest.md` lists the figures that come out.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DAYS: Final = 7
PRE_DAYS: Final = 7


@dataclass(frozen=True)
class Effect:
    """What the treatment does; the default does nothing."""

    lift: float = 0.0
    """Relative change of the days on which users are active, and with them of their messages."""
    violations: float = 1.0
    refusals: float = 1.0
    errors: float = 1.0
    latency: float = 1.0
    """Factors."""


@dataclass(frozen=True)
class Habits:
    """How users of a product are; the rates are per message."""

    violation_rate: float = 0.003
    violation_shape: float = 0.3
    """Shape of the gamma distribution of users' own rates: the smaller, the fewer users cause most of it."""
    refusal_rate: float = 0.015
    error_rate: float = 0.005
    latency_ms: float = 1200.0
    new_users: float = 0.25
    """Share of users without a past."""
    active_when_open: float = 0.8
    """Chance that somebody who opens the app on a day writes; a treatment's lift multiplies it."""
    messages_sigma: float = 0.9
    """Of the log of users' mean number of messages on an active day."""


@dataclass(frozen=True)
class Behaviour:
    """Running totals at the end of each day, users x days, and the past of each user."""

    exposed: Floats
    active_days: Floats
    messages: Floats
    violations: Floats
    refusals: Floats
    errors: Floats
    latency: Floats
    pre_active_days: Floats
    pre_messages: Floats


@dataclass(frozen=True)
class Traits:
    """What stays of a user from day to day: drawn once, the same in either arm."""

    opens: NDArray[np.bool_]
    """Users x days; everybody opens the app at least once, or would not be in the test."""
    messages_a_day: Floats
    violation: Floats
    refusal: Floats
    error: Floats
    latency: Floats
    pre_active_days: Floats
    pre_messages: Floats


def draw_traits(rng: np.random.Generator, users: int, habits: Habits) -> Traits:
    """`users` users who open the app at least once in the window."""
    rates = np.empty(0)
    opens = np.empty((0, DAYS), dtype=bool)
    while len(rates) < users:
        drawn = rng.beta(0.9, 1.6, users)
        came = rng.random((users, DAYS)) < drawn[:, None]
        seen = came.any(axis=1)
        rates, opens = np.concatenate([rates, drawn[seen]]), np.concatenate([opens, came[seen]])
    rates, opens = rates[:users], opens[:users]
    volume = np.exp(rng.normal(np.log(5.0), habits.messages_sigma, users))
    # Last week resembles this week and is not the same: half of the log-odds' unit, a third of the log volume's.
    odds = rates / (1 - rates) * np.exp(rng.normal(0.0, 0.5, users))
    past = np.where(rng.random(users) < habits.new_users, 0.0, odds / (1 + odds))
    pre_days = rng.binomial(PRE_DAYS, past * habits.active_when_open).astype(float)
    pre_volume = volume * np.exp(rng.normal(0.0, 0.3, users))
    return Traits(
        opens=opens,
        messages_a_day=volume,
        violation=habits.violation_rate * rng.standard_gamma(habits.violation_shape, users) / habits.violation_shape,
        refusal=habits.refusal_rate * rng.standard_gamma(1.0, users),
        error=habits.error_rate * rng.standard_gamma(0.5, users) / 0.5,
        latency=habits.latency_ms * np.exp(rng.normal(-0.03, 0.25, users)),
        pre_active_days=pre_days,
        pre_messages=pre_days + rng.poisson(pre_volume * rng.standard_gamma(2 * pre_days) / 2),
    )


def behave(rng: np.random.Generator, traits: Traits, habits: Habits, effect: Effect) -> Behaviour:
    """A week of these users in an arm with this effect."""
    shape = traits.opens.shape
    chance = habits.active_when_open * (1 + effect.lift)
    if not 0 <= chance <= 1:
        raise ValueError(f"a lift of {effect.lift} makes the chance to write {chance:.2f}")
    active = traits.opens & (rng.random(shape) < chance)
    volume = traits.messages_a_day[:, None] * rng.standard_gamma(2.0, shape) / 2
    messages = np.where(active, 1 + rng.poisson(volume), 0).astype(float)
    # A message's latency has a coefficient of variation of 0.7: so does the sum of gamma variables of this shape.
    latency = rng.standard_gamma(messages / 0.49) * 0.49 * traits.latency[:, None] * effect.latency
    violations = rng.poisson(messages * traits.violation[:, None] * effect.violations)
    refusals = rng.poisson(messages * traits.refusal[:, None] * effect.refusals)
    errors = rng.poisson(messages * traits.error[:, None] * effect.errors)
    return Behaviour(
        exposed=np.maximum.accumulate(traits.opens, axis=1).astype(float),
        active_days=_running(active),
        messages=_running(messages),
        violations=_running(violations),
        refusals=_running(refusals),
        errors=_running(errors),
        latency=_running(latency),
        pre_active_days=traits.pre_active_days,
        pre_messages=traits.pre_messages,
    )


def _running(daily: NDArray[Any]) -> Floats:
    """Totals from the first day on."""
    return np.cumsum(daily, axis=1, dtype=float)
