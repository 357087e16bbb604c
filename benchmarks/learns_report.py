"""The tables of `learns`: what the judges know, what the generations won, what they write like, what it took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.local_wheel import Run
from e2e.demo.tables import Grid
from e2e.demo.view import measured
from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stages import Stage
from flywheel_operator.model.objects import Generation, RewardModel

MEBIBYTE: Final = 2**20

JUDGES: Final = (
    ("accuracy", Metric.REWARD_ACCURACY),
    ("accuracy, Internal", Metric.REWARD_ACCURACY_INTERNAL),
    ("accuracy, User", Metric.REWARD_ACCURACY_USER),
    ("baseline: length alone", Metric.LENGTH_ONLY_ACCURACY),
    ("baseline: length, lists, emoji", Metric.SURFACE_ACCURACY),
    ("control: shuffled labels", Metric.SHUFFLED_LABEL_ACCURACY),
    ("share of the signal", Metric.SIGNAL_RATE),
    ("AUC", Metric.SIGNAL_AUC),
    ("AUC, Internal", Metric.SIGNAL_AUC_INTERNAL),
    ("AUC, User", Metric.SIGNAL_AUC_USER),
    ("AUC, worst slice of time", Metric.SIGNAL_AUC_LOWEST_SLICE),
    ("baseline: AUC of length, lists, emoji", Metric.SURFACE_AUC),
    ("control: AUC with shuffled labels", Metric.SHUFFLED_LABEL_AUC),
    ("calibration error", Metric.CALIBRATION_ERROR),
    ("rank correlation with length", Metric.LENGTH_CORRELATION),
    ("the two orders agree", Metric.ORDER_AGREEMENT),
)
RATES: Final = (
    ("win rate", Metric.WIN_RATE),
    ("win rate, Internal", Metric.WIN_RATE_INTERNAL),
    ("win rate, User", Metric.WIN_RATE_USER),
    ("gap between the origins", Metric.WIN_RATE_GAP),
    ("pairwise win rate", Metric.PAIRWISE_WIN_RATE),
    ("pairwise win rate, Internal", Metric.PAIRWISE_WIN_RATE_INTERNAL),
    ("pairwise win rate, User", Metric.PAIRWISE_WIN_RATE_USER),
    ("the judges contradict each other", Metric.PAIRWISE_DISAGREEMENT),
    ("reward gained", Metric.REWARD_GAIN),
    ("KL from the parent, nats per token", Metric.HELD_OUT_KL),
    ("perplexity of people's replies", Metric.PERPLEXITY),
    ("perplexity, candidate : baseline", Metric.PERPLEXITY_RATIO),
    ("reply length, words", Metric.REPLY_LENGTH),
)


@dataclass(frozen=True, slots=True)
class Claim:
    """What would be an improvement: a metric beyond a bound, or beyond another metric."""

    name: str
    metric: Metric
    bound: float | Metric
    lower_is_better: bool = False


JUDGE_CLAIMS: Final = (
    Claim("more right than length alone", Metric.REWARD_ACCURACY, Metric.LENGTH_ONLY_ACCURACY),
    Claim("more right than length, lists and emoji", Metric.REWARD_ACCURACY, Metric.SURFACE_ACCURACY),
    Claim("AUC above chance", Metric.SIGNAL_AUC, 0.5),
    Claim("AUC above that of length, lists and emoji", Metric.SIGNAL_AUC, Metric.SURFACE_AUC),
)
TURN_CLAIMS: Final = (
    Claim("wins on Internal prompts", Metric.WIN_RATE_INTERNAL, 0.5),
    Claim("wins on User prompts", Metric.WIN_RATE_USER, 0.5),
    Claim("wins by the pairwise judge", Metric.PAIRWISE_WIN_RATE, 0.5),
    Claim("predicts people's replies better", Metric.PERPLEXITY_RATIO, 1.0, lower_is_better=True),
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """What was turned: where the data came from, the judges, the generations with their reports, every stage's cost."""

    rule: str
    judges: Sequence[RewardModel]
    generations: Sequence[Generation]
    reports: Sequence[Mapping[str, Any]]
    runs: Sequence[Run]


def report(wheel: Wheel) -> str:
    """All tables as Markdown."""
    judges = {judge.metadata.name: _metrics(judge, Stage.REWARD_MODEL) for judge in wheel.judges}
    turns = {turn.metadata.name: _metrics(turn, Stage.EVALUATE) for turn in wheel.generations}
    grids = [
        _side_by_side("Reward models, on held-out users", JUDGES, judges),
        _side_by_side("Generations, on held-out users", RATES, turns),
        _outcomes(wheel),
        *(_way(turn, found) for turn, found in zip(wheel.generations, wheel.reports, strict=True)),
        _claims(
            [*((JUDGE_CLAIMS, *each) for each in judges.items()), *((TURN_CLAIMS, *each) for each in turns.items())]
        ),
        _costs(wheel.runs),
    ]
    return "\n".join([wheel.rule, "", *(grid.markdown() for grid in grids)])


def verdict(claim: Claim, metrics: Mapping[str, Measurement]) -> str | None:
    """Whether the 95 % interval shows the improvement, in words; None where it was not measured.

    Against another metric of the same rows the intervals must be apart, which asks for more than a paired test would.
    """
    found = metrics.get(claim.metric.value)
    other = metrics.get(claim.bound.value) if isinstance(claim.bound, Metric) else None
    if found is None or (other is None and isinstance(claim.bound, Metric)):
        return None
    sign = -1 if claim.lower_is_better else 1
    limits = [other.low, other.high] if other is not None else [claim.bound, claim.bound]
    if None in (found.low, found.high, *limits):
        return "no interval: not shown"
    low, high = sorted(sign * float(end) for end in (found.low, found.high))
    floor, ceiling = sorted(sign * float(end) for end in limits)
    return "yes" if low > ceiling else "no, the opposite" if high < floor else "not shown"


def _metrics(made: RewardModel | Generation, stage: Stage) -> dict[str, Measurement]:
    return {m.name: m for s in made.status.stages if s.name is stage for m in s.metrics}


def _side_by_side(
    title: str, rows: Sequence[tuple[str, Metric]], columns: Mapping[str, Mapping[str, Measurement]]
) -> Grid:
    grid = Grid(title, ["", *columns], note="95 % intervals over users")
    for label, metric in rows:
        cells = [found.get(metric.value) for found in columns.values()]
        if any(cells):
            grid.rows.append([label, *(measured(cell) if cell is not None else "" for cell in cells)])
    return grid


def _outcomes(wheel: Wheel) -> Grid:
    """Where each came from, and what the gates said."""
    grid = Grid("Gates", ["", "phase", "trained from", "did not pass"])
    for made in (*wheel.judges, *wheel.generations):
        spec = made.spec
        start = spec.parent.model if isinstance(made, Generation) else spec.base_model
        failed = [gate.message for gate in made.status.gates if gate.verdict != "Passed"]
        grid.rows.append([made.metadata.name, made.status.phase.value, str(start), "; ".join(failed)])
    return grid


def _way(turn: Generation, found: Mapping[str, Any]) -> Grid:
    """From the parent over the model of each stage to the candidate: reward, divergence and style."""
    points = found["way"]
    grid = Grid(f"{turn.metadata.name}: style of each stage's model", ["", *(p["model"] for p in points)])
    for label, key in (("reward gained", "rewardGain"), ("KL from the parent", "kl")):
        grid.rows.append([label, *(measured(Measurement.model_validate(p[key])) for p in points)])
    for feature in points[0]["style"]:
        grid.rows.append([feature, *(f"{p['style'][feature]:.3f}" for p in points)])
    grid.note = "Jumped with the reward: " + (", ".join(found["jumps"]) or "nothing")
    return grid


def _claims(claims: Sequence[tuple[Sequence[Claim], str, Mapping[str, Measurement]]]) -> Grid:
    grid = Grid("What improved", ["", "improved", "by the interval"])
    for asked, name, metrics in claims:
        for claim in asked:
            said = verdict(claim, metrics)
            if said is not None:
                grid.rows.append([name, claim.name, said])
    return grid


def _costs(runs: Sequence[Run]) -> Grid:
    grid = Grid("What each stage took", ["", "stage", "minutes", "CPU minutes", "peak memory, MiB"])
    for run in runs:
        cells = [f"{run.seconds / 60:.1f}", f"{run.cpu_seconds / 60:.1f}", f"{run.peak_bytes / MEBIBYTE:.0f}"]
        grid.rows.append([run.owner, run.stage.value, *cells])
    wall, cpu = (sum(each) / 60 for each in zip(*((run.seconds, run.cpu_seconds) for run in runs), strict=True))
    grid.rows.append(["all", "", f"{wall:.1f}", f"{cpu:.1f}", ""])
    return grid
