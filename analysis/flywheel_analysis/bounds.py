"""Bounds of rates that hold with few events, and with none."""

import math
from dataclasses import dataclass
from typing import Final

from scipy import special

from flywheel_analysis.metrics import Counting

ONE_SIDED_95: Final = 1.6448536269514722
TWO_SIDED_95: Final = 1.959963984540054
"""Quantiles of the normal distribution."""

_EACH_ARM: Final = 0.025
"""Both arms' one-sided bounds hold together with 95 % (Bonferroni)."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`events` of `opportunities` (messages, requests)."""

    events: float
    opportunities: float


def upper(rate: Rate, counting: Counting, alpha: float = _EACH_ARM) -> float:
    """The exact one-sided upper bound of level 1 - alpha.

    Poisson: Garwood, "Fiducial limits for the Poisson distribution", 1936; binomial: Clopper and Pearson, "The use of
    confidence or fiducial limits", 1934.
    """
    if counting is Counting.POISSON:
        return float(special.gammaincinv(rate.events + 1, 1 - alpha)) / rate.opportunities
    if rate.events >= rate.opportunities:
        return 1.0
    return float(special.betaincinv(rate.events + 1, rate.opportunities - rate.events, 1 - alpha))


def lower(rate: Rate, counting: Counting, alpha: float = _EACH_ARM) -> float:
    """The exact one-sided lower bound of level 1 - alpha; sources as for `upper`."""
    if rate.events <= 0:
        return 0.0
    if counting is Counting.POISSON:
        return float(special.gammaincinv(rate.events, alpha)) / rate.opportunities
    return float(special.betaincinv(rate.events, rate.opportunities - rate.events + 1, alpha))


def difference_upper(treatment: Rate, control: Rate, counting: Counting) -> float:
    """The one-sided 95 % upper bound of treatment - control: the one's upper end less the other's lower end."""
    return upper(treatment, counting) - lower(control, counting)


def harm_p_value(treatment: Rate, control: Rate) -> float:
    """The exact one-sided p-value that the treatment's rate is higher.

    Given all events, the treatment's are binomial by its share of the opportunities where the rates are equal
    (Przyborowski and Wilenski, "Homogeneity of results in testing samples from Poisson series", 1940). For parts of
    requests it is on the safe side.
    """
    if treatment.events <= 0:
        return 1.0
    share = treatment.opportunities / (treatment.opportunities + control.opportunities)
    # P(X >= k) for X ~ Binomial(n, share), as the incomplete beta function.
    return float(special.betainc(treatment.events, control.events + 1, share))


def two_sided_p_value(z: float) -> float:
    """The p-value of a standard normal statistic."""
    return math.erfc(abs(z) / math.sqrt(2))
