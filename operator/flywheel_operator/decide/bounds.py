"""Bounds of a relative lift, at any level, from its estimate and standard error on the log scale.

`log(treatment / control)` is close to normal where arms are large; `(1 + lift) * exp(z * se) - 1` is then a bound of
the lift (delta method; Deng et al., "Applying the Delta Method in Metric Analytics", KDD 2018).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from flywheel_contract.experiment import MeasureStatus, MetricReading

NORMAL: Final = NormalDist()
_MAX_EXPONENT: Final = 700.0
"""exp() of more does not fit into a float; a bound of 10^304 is as good as none."""


@dataclass(frozen=True, slots=True)
class Lift:
    """A relative difference, treatment / control - 1, with the standard error of log(treatment / control)."""

    lift: float
    standard_error: float

    def bound(self, z: float) -> float:
        """The lift that lies `z` standard errors above the estimate (below, where `z` is negative)."""
        exponent = math.log1p(self.lift) + z * self.standard_error
        return math.expm1(min(exponent, _MAX_EXPONENT))

    def lower(self, alpha: float) -> float:
        """One-sided lower bound: above it with confidence 1 - alpha."""
        return self.bound(NORMAL.inv_cdf(alpha))

    def upper(self, alpha: float) -> float:
        """One-sided upper bound: below it with confidence 1 - alpha."""
        return self.bound(-NORMAL.inv_cdf(alpha))

    def increase_p_value(self) -> float:
        """One-sided p-value of "the treatment's is not higher"."""
        if self.standard_error == 0:
            return 1.0  # see `lift_of`: then the arms are equal
        return NORMAL.cdf(-math.log1p(self.lift) / self.standard_error)

    def decrease_p_value(self) -> float:
        """One-sided p-value of "the treatment's is not lower"."""
        if self.standard_error == 0:
            return 1.0
        return NORMAL.cdf(math.log1p(self.lift) / self.standard_error)


def lift_of(reading: MetricReading | None) -> Lift | None:
    """The lift of a reading; None where there is none, or no usable standard error.

    A standard error of zero (the same value for every user) is taken for arms that are equal, and for nothing else.
    """
    if reading is None or reading.status is not MeasureStatus.MEASURED:
        return None
    lift, error = reading.lift, reading.log_standard_error
    if lift is None or error is None or lift <= -1 or error < 0 or (error == 0 and lift != 0):
        return None
    return Lift(lift, error)


def percent(value: float) -> str:
    """A relative difference as people read it, e.g. `+5.2 %`."""
    return f"{100 * value:+.3g} %" if abs(value) < 1000 else "over +100000 %"


def number(value: float) -> str:
    """A plain number, short."""
    return f"{value:.4g}"
