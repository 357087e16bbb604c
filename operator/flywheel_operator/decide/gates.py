"""Gates: bounds on measured metrics. What was not measured, or on too little, did not pass."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stages import RewardModelType
from flywheel_operator.model.common import GateRule, GatesSpec
from flywheel_operator.model.generation import EvaluationSpec
from flywheel_operator.model.status import GateStatus

GENERATION_GATES: Final = (
    GateRule(name="win-rate", metric=Metric.WIN_RATE, min=0.5),
    # The overfitting guard: healthy launches show 50-65 %; above, or with a wide gap between the origins, the reward
    # model is being exploited. A stop sign goes by the estimate: waiting until the interval proves harm would be the
    # wrong way round, and demanding that it proves health would stop every healthy launch of a few hundred prompts.
    GateRule(name="win-rate-ceiling-user", metric=Metric.WIN_RATE_USER, max=0.65, compare="Estimate"),
    GateRule(name="win-rate-ceiling-internal", metric=Metric.WIN_RATE_INTERNAL, max=0.65, compare="Estimate"),
    GateRule(name="win-rate-gap", metric=Metric.WIN_RATE_GAP, max=0.10, compare="Estimate"),
    GateRule(name="perplexity", metric=Metric.PERPLEXITY_RATIO, max=1.10),
    GateRule(name="reply-length", metric=Metric.REPLY_LENGTH_RATIO, min=0.5, max=1.5),
    GateRule(name="lists", metric=Metric.LIST_RATE_INCREASE, max=0.10),
    GateRule(name="emoji", metric=Metric.EMOJI_RATE_INCREASE, max=0.10),
    GateRule(name="stock-phrases", metric=Metric.STOCK_PHRASE_RATE_INCREASE, max=0.10),
    GateRule(name="style-jumps", metric=Metric.STYLE_JUMPS, max=0, compare="Estimate"),
    # Divergence that was spent after the checkpoint with the best held-out reward, beyond what noise explains.
    GateRule(name="kl-without-reward", metric=Metric.KL_WITHOUT_REWARD, max=0.05, compare="Estimate"),
)
"""The default gates of a Generation, whatever its evaluation asks for."""

JUDGE_GATES: Final = (
    # Landis and Koch (1977) call more than 0.4 moderate. The labelled set is small and has no users.
    GateRule(name="judge-agreement", metric=Metric.JUDGE_AGREEMENT, min=0.4, compare="Estimate", min_samples=20),
)
"""Added where a judge is asked: one that does not agree with people measures nothing."""

PAIRWISE_GATES: Final = (
    # Two views of one policy: the guard holds for both, and they must not contradict each other on most prompts.
    GateRule(name="pairwise-ceiling-user", metric=Metric.PAIRWISE_WIN_RATE_USER, max=0.65, compare="Estimate"),
    GateRule(name="pairwise-ceiling-internal", metric=Metric.PAIRWISE_WIN_RATE_INTERNAL, max=0.65, compare="Estimate"),
    GateRule(name="pairwise-gap", metric=Metric.PAIRWISE_WIN_RATE_GAP, max=0.10, compare="Estimate"),
    GateRule(name="pairwise-disagreement", metric=Metric.PAIRWISE_DISAGREEMENT, max=0.4, compare="Estimate"),
)
"""Added where a pairwise reward model judges."""


def generation_gates(evaluation: EvaluationSpec) -> list[GateRule]:
    """The default gates of a Generation with this evaluation."""
    found = [
        *GENERATION_GATES,
        *(PAIRWISE_GATES if evaluation.pairwise else ()),
        *(JUDGE_GATES if evaluation.judge else ()),
    ]
    if evaluation.benchmarks is not None:
        limit = -evaluation.benchmarks.tolerance
        found.append(GateRule(name="benchmarks", metric=Metric.BENCHMARK_CHANGE, min=limit, compare="Estimate"))
    return found


# Controls on coins must show a coin; they are over every held-out row, so they need no number of users.
_CHANCE: Final = {"min": 0.45, "max": 0.55, "compare": "Estimate", "min_samples": 0}
_PAIR_GATES: Final = (
    GateRule(name="accuracy", metric=Metric.REWARD_ACCURACY, min=0.5),
    GateRule(name="beyond-surface", metric=Metric.ACCURACY_OVER_SURFACE, min=0, compare="Estimate", min_samples=0),
    GateRule(name="shuffled-labels", metric=Metric.SHUFFLED_LABEL_ACCURACY, **_CHANCE),
)
SIGNAL_STABILITY: Final = (Metric.SIGNAL_AUC_LOWEST_SLICE, Metric.SIGNAL_DRIFT)
"""What a user signal must have passed gates on, before it may have a say in what is selected."""

REWARD_MODEL_GATES: Final = {
    # The score itself is used, its differences as probabilities nowhere: calibration is reported, and yours to gate.
    RewardModelType.POINTWISE: _PAIR_GATES,
    RewardModelType.PAIRWISE: (
        *_PAIR_GATES,
        GateRule(name="calibration", metric=Metric.CALIBRATION_ERROR, max=0.2, compare="Estimate"),
    ),
    RewardModelType.USER_SIGNAL: (
        GateRule(name="auc", metric=Metric.SIGNAL_AUC, min=0.5),
        GateRule(name="stable-auc", metric=Metric.SIGNAL_AUC_LOWEST_SLICE, min=0.53, compare="Estimate"),
        # 0.25 is the customary line between a population that has shifted a little and one that is another.
        GateRule(name="stable-scores", metric=Metric.SIGNAL_DRIFT, max=0.25, compare="Estimate"),
        GateRule(name="calibration", metric=Metric.CALIBRATION_ERROR, max=0.1, compare="Estimate"),
        GateRule(name="shuffled-labels", metric=Metric.SHUFFLED_LABEL_AUC, **_CHANCE),
    ),
}
"""The default gates of a RewardModel, by its type."""


def rules_in_force(spec: GatesSpec, defaults: Iterable[GateRule]) -> list[GateRule]:
    """The default gates with the user's added; a user's gate replaces the default of its name, in its place."""
    own = {rule.name: rule for rule in spec.rules}
    kept = [own.pop(rule.name, rule) for rule in defaults] if spec.defaults == "Enabled" else []
    return [*kept, *own.values()]


def evaluate_gates(rules: Sequence[GateRule], metrics: Mapping[str, Measurement]) -> list[GateStatus]:
    """Holds each rule against the measured metrics, in the order of the rules."""
    return [_evaluate(rule, metrics.get(rule.metric.value)) for rule in rules]


def passed(gates: Iterable[GateStatus]) -> bool:
    """Whether every gate passed; with no gates at all there is nothing to fail."""
    return all(gate.verdict == "Passed" for gate in gates)


def describe_failures(gates: Iterable[GateStatus]) -> str:
    """One sentence per gate that did not pass."""
    return "; ".join(f"{gate.name}: {gate.message}" for gate in gates if gate.verdict != "Passed")


def _evaluate(rule: GateRule, measured: Measurement | None) -> GateStatus:
    bound = _bound_text(rule)
    if measured is None:
        return GateStatus(
            name=rule.name,
            metric=rule.metric.value,
            verdict="NotMeasured",
            bound=bound,
            message=f"{rule.metric.value} was not measured, so it cannot be {bound}",
        )
    verdict, message = _judge(rule, measured)
    return GateStatus(
        name=rule.name,
        metric=rule.metric.value,
        verdict=verdict,
        value=measured.value,
        low=measured.low,
        high=measured.high,
        n=measured.n,
        bound=bound,
        message=message,
    )


def _judge(rule: GateRule, measured: Measurement) -> tuple[str, str]:
    said = f"{rule.metric.value} {_number(measured.value)}"
    if measured.low is not None and measured.high is not None:
        said += f" [{_number(measured.low)}, {_number(measured.high)}]"
    if measured.n is not None:
        said += f", n={measured.n}"
    if rule.min_samples and (measured.n is None or measured.n < rule.min_samples):
        return "NotMeasured", f"{said}: needs at least {rule.min_samples} samples"
    low = measured.value if rule.compare == "Estimate" else measured.low
    high = measured.value if rule.compare == "Estimate" else measured.high
    if (rule.min is not None and low is None) or (rule.max is not None and high is None):
        return (
            "NotMeasured",
            f"{said}: has no interval, so it cannot be {_bound_text(rule)}",
        )
    too_low = rule.min is not None and low is not None and low < rule.min
    too_high = rule.max is not None and high is not None and high > rule.max
    if too_low or too_high:
        return "Failed", f"{said}: is not {_bound_text(rule)}"
    return "Passed", f"{said}: is {_bound_text(rule)}"


def _bound_text(rule: GateRule) -> str:
    ends = {"Bound": (" at its low end", " at its high end"), "Estimate": ("", "")}[rule.compare]
    parts = []
    if rule.min is not None:
        parts.append(f">= {_number(rule.min)}{ends[0]}")
    if rule.max is not None:
        parts.append(f"<= {_number(rule.max)}{ends[1]}")
    return " and ".join(parts)


def _number(value: float) -> str:
    return f"{value:.4g}"
