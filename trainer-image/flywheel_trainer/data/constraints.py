"""Stratified sampling: conversations are drawn so that each origin's kept set has the shares that were asked for.

The two origins are sampled by themselves, each towards its own traffic or the declared target; the dimension `origin`
is the balance between them. What could not be met is said with the reason, never passed over.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flywheel_contract.curation_params import ConstraintDimension, ConstraintsParams
from flywheel_contract.stages import Origin
from flywheel_trainer.data.dimensions import COMPUTED, labeller
from flywheel_trainer.data.raking import Table, quotas
from flywheel_trainer.data.rows import Conversation
from flywheel_trainer.data.split import draw_key
from flywheel_trainer.errors import ConfigError

ORIGIN: Final = "origin"
MAX_VALUES: Final = 1000
"""Values of a dimension; one with more is a measurement, not a stratum."""

GONE: Final = "(none left)"
"""Stands for a value that no conversation has any more, and that nobody has named in a target."""

_TOLD: Final = 3
"""Unmet shares in the stage's message, which has room for a thousand characters."""

Shares = Mapping[str, float]
Traffic = Mapping[tuple[str, Origin], Counter[str]]
"""Conversations by value, of each dimension and origin."""


@dataclass(frozen=True, slots=True)
class Share:
    """One value along one dimension: what was wanted, what there was, what came out."""

    dimension: str
    origin: Origin | None
    """None for the balance between the origins."""
    value: str
    target: float
    available: int
    kept: int
    achieved: float
    reason: str
    """Why the target was not met; empty where it was."""

    def to_json(self) -> dict[str, Any]:
        """The row of the report."""
        origin = {"origin": self.origin.value} if self.origin else {}
        return {
            "dimension": self.dimension, **origin, "value": self.value, "target": round(self.target, 6),
            "achieved": round(self.achieved, 6), "available": self.available, "kept": self.kept,
            **({"unmet": self.reason} if self.reason else {}),
        }  # fmt: skip


def count(rows: Sequence[Conversation], dimensions: Sequence[ConstraintDimension]) -> Traffic:
    """The traffic along each dimension, by origin.

    Raises:
        ConfigError: a dimension has more than MAX_VALUES values.
    """
    found: dict[tuple[str, Origin], Counter[str]] = {}
    for dimension in dimensions:
        label = labeller(dimension.name)
        for origin in Origin:
            counter = Counter(label(row) for row in rows if row.origin is origin)
            if len(counter) > MAX_VALUES:
                raise ConfigError(
                    f"curation.constraints: {dimension.name} has {len(counter)} values, "
                    f"at most {MAX_VALUES} are strata; name a field with fewer, or write a bucketed one into metadata"
                )
            found[dimension.name, origin] = counter
    return found


def sample(
    rows: Sequence[Conversation], traffic: Traffic, params: ConstraintsParams, *, cap: int | None, seed: int
) -> tuple[set[int], list[Share]]:
    """The numbers of the rows that are kept, and each wanted share beside the achieved one.

    `cap` is the most conversations of one origin; the seed draws within a stratum.
    """
    within = [d for d in params.dimensions if d.name != ORIGIN]
    balance = next((d for d in params.dimensions if d.name == ORIGIN), None)
    strata = {o: _Strata(rows, o, within, traffic, seed) for o in Origin if any(row.origin is o for row in rows)}
    most = {o: len(s.numbers) if cap is None else min(cap, len(s.numbers)) for o, s in strata.items()}
    least = {o: min(most[o], _at_least(params, len(s.numbers))) for o, s in strata.items()}
    drawn = {o: s.draw(params.tolerance, least[o], most[o]) for o, s in strata.items()}
    shares: list[Share] = []
    if balance is not None:
        wanted = _targets(balance, _totals(traffic, ORIGIN))
        sizes = _balanced(wanted, {o: len(d) for o, d in drawn.items()}, least)
        drawn = {o: s.draw(params.tolerance, sizes[o], sizes[o]) for o, s in strata.items()}
        there = Counter({o.value: len(s.numbers) for o, s in strata.items()})
        kept = Counter({o.value: len(d) for o, d in drawn.items()})
        shares += _compared(balance, None, wanted, _totals(traffic, ORIGIN), there, kept, params)
    for dimension in within:
        label = labeller(dimension.name)
        for origin, stratum in strata.items():
            before = traffic[dimension.name, origin]
            there = Counter(label(rows[n]) for n in stratum.numbers)
            kept = Counter(label(rows[n]) for n in drawn[origin])
            shares += _compared(dimension, origin, _targets(dimension, before), before, there, kept, params)
    return set().union(*drawn.values()), shares


def sentence(shares: Sequence[Share]) -> str:
    """For the stage's message: how near the shares came, and the first that were not met, with the reason."""
    unmet = [s for s in shares if s.reason]
    far = max((abs(s.achieved - s.target) for s in shares if not s.reason), default=0.0)
    met = f"{len(shares) - len(unmet)} of {len(shares)} target shares met"
    if len(unmet) < len(shares):
        met += f" to within {far:.2%}"
    told = [f"{_where(s)} {s.value[:40]} is {s.achieved:.1%} of {s.target:.1%}: {s.reason}" for s in unmet[:_TOLD]]
    more = [f"{len(unmet) - _TOLD} more in the report"] if len(unmet) > _TOLD else []
    return "; ".join([met, *told, *more])


def _where(share: Share) -> str:
    return share.dimension if share.origin is None else f"{share.dimension} ({share.origin.value})"


class _Strata:
    """The conversations of one origin by their values along all dimensions."""

    def __init__(
        self,
        rows: Sequence[Conversation],
        origin: Origin,
        dimensions: Sequence[ConstraintDimension],
        traffic: Traffic,
        seed: int,
    ) -> None:
        numbers = [n for n, row in enumerate(rows) if row.origin is origin]
        # Sorted once, in an order that the seed draws: of every cell the first so many are taken.
        self.numbers = sorted(numbers, key=lambda n: draw_key(seed, rows[n].conversation))
        codes, targets = [], []
        for dimension in dimensions:
            label = labeller(dimension.name)
            labels = [label(rows[n]) for n in self.numbers]
            values = sorted(set(labels))
            number = {value: code for code, value in enumerate(values)}
            codes.append(np.array([number[value] for value in labels], dtype=np.intp))
            targets.append(_reachable(_targets(dimension, traffic[dimension.name, origin]), values))
        columns = np.stack(codes, axis=1) if codes else np.zeros((len(self.numbers), 1), dtype=np.intp)
        cells, self._cell, sizes = np.unique(columns, axis=0, return_inverse=True, return_counts=True)
        self._cell = self._cell.reshape(-1)
        self._table = Table(sizes, [cells[:, d] for d in range(len(codes))], targets)

    def draw(self, tolerance: float, least: int, most: int) -> list[int]:
        """Numbers of the rows that are kept: at least `least`, and as many up to `most` as the shares allow."""
        left = quotas(self._table, tolerance=tolerance, least=least, most=most)
        drawn = []
        for number, cell in zip(self.numbers, self._cell, strict=True):
            if left[cell] > 0:
                left[cell] -= 1
                drawn.append(number)
        return drawn


def _at_least(params: ConstraintsParams, size: int) -> int:
    return max(1, round(params.min_kept_fraction * size))


def _totals(traffic: Traffic, dimension: str) -> Counter[str]:
    return sum((traffic[dimension, o] for o in Origin), Counter())


def _targets(dimension: ConstraintDimension, traffic: Counter[str]) -> Shares:
    """The wanted share of each value: declared ones as they are, the rest of 1 spread as in the traffic."""
    declared = {t.value: t.share for t in dimension.target or ()}
    others = {value: n for value, n in sorted(traffic.items()) if value not in declared}
    rest, total = 1 - sum(declared.values()), sum(others.values())
    spread = {value: max(rest, 0.0) * n / total for value, n in others.items()}
    shares = declared | spread
    whole = sum(shares.values())
    return {value: share / whole if whole > 0 else 0.0 for value, share in shares.items()}


def _reachable(targets: Shares, values: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The targets over the values that are there, made to add up to 1; where none of them is wanted, all alike."""
    shares = np.array([targets.get(value, 0.0) for value in values])
    return shares / shares.sum() if shares.sum() > 0 else np.full(len(values), 1 / len(values))


def _balanced(wanted: Shares, possible: Mapping[Origin, int], least: Mapping[Origin, int]) -> dict[Origin, int]:
    """How many of each origin: as many as the wanted balance allows, never fewer than `least`."""
    reachable = {o: wanted.get(o.value, 0.0) for o in possible}
    whole = sum(reachable.values())
    limits = [possible[o] / (share / whole) for o, share in reachable.items() if share > 0]
    total = min(limits, default=0.0)
    sizes = {o: round(total * share / whole) if whole else 0 for o, share in reachable.items()}
    return {o: min(possible[o], max(least[o], size)) for o, size in sizes.items()}


def _compared(
    dimension: ConstraintDimension,
    origin: Origin | None,
    targets: Shares,
    traffic: Counter[str],
    there: Counter[str],
    kept: Counter[str],
    params: ConstraintsParams,
) -> list[Share]:
    total = kept.total()
    # A share is a whole number of conversations: half a one is as near as it can come.
    bound = max(params.tolerance, 0.5 / total) + 1e-9
    had = sum(target for value, target in targets.items() if there[value] > 0)
    named = {t.value for t in dimension.target or ()}
    found = []
    for value in sorted(set(targets) | set(there)):
        target, achieved = targets.get(value, 0.0), kept[value] / total
        reason = ""
        if abs(achieved - target) > bound:
            reason = _reason(achieved < target, traffic[value], there[value], kept[value], params)
            if there[value] > 0 and 0 < had < 1 and abs(achieved - target / had) <= bound:
                reason = "it takes its part of what is left by values that no conversation has"
        # What only dropped conversations had may be what they were dropped for: it is not written down.
        told = value if dimension.name in COMPUTED or there[value] or value in named else GONE
        found.append(Share(dimension.name, origin, told, target, there[value], kept[value], achieved, reason))
    return found


def _reason(lacking: bool, in_traffic: int, there: int, kept: int, params: ConstraintsParams) -> str:
    if there == 0:
        return "no conversation has it" if in_traffic == 0 else f"all {in_traffic} that had it were dropped before"
    if lacking and kept == there:
        return f"all {there} that there are were kept"
    floor = f"minKeptFraction {params.min_kept_fraction:g}"
    return f"the other targets and {floor} leave no room for {'more' if lacking else 'fewer'}"
