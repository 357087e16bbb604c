"""Which reward model may do what: gates by type, refusals of a Generation, weight and scale in the snapshot."""

from datetime import timedelta
from typing import Any

import pytest

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_spec import RewardScale
from flywheel_contract.stages import Stage
from flywheel_operator.decide.gates import REWARD_MODEL_GATES, describe_failures, evaluate_gates, passed, rules_in_force
from flywheel_operator.model.common import GatesSpec
from flywheel_operator.model.objects import RewardModel
from flywheel_operator.model.observed import ObservedGeneration
from flywheel_operator.model.phases import RewardModelPhase
from flywheel_operator.model.status import MetricStatus, ModelRef, RewardModelStatus, StageStatus
from flywheel_operator.plan.prerequisites import Missing, Prerequisites, check
from flywheel_operator.watch.routing import Router
from tests.unit.build import (
    HEALTHY_REWARD,
    HEALTHY_SIGNAL,
    SETTINGS,
    T0,
    digest,
    generation,
    generation_spec,
    reward_model,
    reward_model_spec,
)

SIGNAL = {
    "type": "UserSignal",
    "signal": {"name": "continued"},
    "preferences": [],
    "traffic": [{"name": "chats", "origin": "User", "uri": "pvc://data/chats"}],
}
PAIRWISE = {"type": "Pairwise"}
UNSTABLE = {
    Metric.SIGNAL_AUC_LOWEST_SLICE: Measurement(value=0.48, low=0.4, high=0.56, n=90),
    Metric.SIGNAL_DRIFT: Measurement(value=0.31, n=90),
}


def judged(
    name: str,
    metrics: dict[Metric, Measurement],
    gates: dict[str, Any] | None = None,
    **spec: Any,  # noqa: ANN401 -- fields of the spec
) -> RewardModel:
    """A RewardModel at its end, with these metrics held against its gates."""
    model = reward_model(name, reward_model_spec(gates=gates or {}, **spec))
    found = {m.value: v for m, v in metrics.items()}
    verdicts = evaluate_gates(rules_in_force(GatesSpec(**(gates or {})), REWARD_MODEL_GATES[model.spec.type]), found)
    good = passed(verdicts)
    status = RewardModelStatus(
        phase=RewardModelPhase.READY if good else RewardModelPhase.GATED,
        gates=verdicts,
        model=ModelRef(uri=f"pvc://rm/{name}", digest=digest(name)) if good else None,
        stages=[
            StageStatus(
                name=Stage.REWARD_MODEL, metrics=[MetricStatus(name=n, **m.model_dump()) for n, m in found.items()]
            )
        ],
    )
    return model.model_copy(update={"status": status})


def found(*models: RewardModel) -> Prerequisites | Missing:
    """What a Generation that names them finds."""
    raw = generation_spec(rewards=[{"rewardModel": m.metadata.name, "weight": 2} for m in models])
    return look(raw, *models)


def look(raw: dict[str, Any], *models: RewardModel) -> Prerequisites | Missing:
    named = {m.metadata.name: m for m in models}
    observed = ObservedGeneration(generation("gen-1", raw), T0 + timedelta(hours=1), SETTINGS, reward_models=named)
    return check(observed)


def refused(answer: Prerequisites | Missing) -> tuple[str, str]:
    assert isinstance(answer, Missing)
    return answer.reason, answer.message


def test_terms_carry_weight_and_scale_into_the_snapshot() -> None:
    answer = found(judged("rm-1", HEALTHY_REWARD), judged("goes-on", HEALTHY_SIGNAL, **SIGNAL))
    assert isinstance(answer, Prerequisites)
    assert [(i.name, i.weight, i.scale) for i in answer.rewards] == [
        ("reward-rm-1", 2, RewardScale(mean=0.25, std=2)),
        ("reward-goes-on", 2, RewardScale(mean=-1.5, std=0.8)),
    ]
    assert answer.pairwise is None


@pytest.mark.parametrize("std", [None, Measurement(value=0)])
def test_a_scale_that_was_not_measured_is_no_scale(std: Measurement | None) -> None:
    metrics = {m: v for m, v in HEALTHY_REWARD.items() if m is not Metric.REWARD_STD}
    answer = found(judged("rm-1", metrics | ({Metric.REWARD_STD: std} if std else {})))
    assert isinstance(answer, Prerequisites)
    assert answer.rewards[0].scale is None


def test_an_unstable_signal_is_refused_with_its_numbers() -> None:
    reason, message = refused(found(judged("thumbs", HEALTHY_SIGNAL | UNSTABLE, **SIGNAL)))
    assert reason == "SignalNotStable"
    assert "spec.rewards refuses the RewardModel thumbs" in message
    assert "stable-auc: signalAucLowestSlice 0.48 [0.4, 0.56], n=90: is not >= 0.53" in message
    assert "stable-scores: signalDrift 0.31, n=90: is not <= 0.25" in message


def test_stability_that_could_not_be_measured_is_none() -> None:
    metrics = {m: v for m, v in HEALTHY_SIGNAL.items() if m not in UNSTABLE}
    reason, message = refused(found(judged("thumbs", metrics, **SIGNAL)))
    assert reason == "SignalNotStable"
    assert "signalDrift was not measured" in message


def test_without_a_gate_on_stability_nobody_knows() -> None:
    bare = judged("thumbs", HEALTHY_SIGNAL | UNSTABLE, {"defaults": "Disabled"}, **SIGNAL)
    reason, message = refused(found(bare))
    assert reason == "SignalNotStable"
    assert "no gate of it holds signalAucLowestSlice and signalDrift" in message
    own = [
        {"name": "stable-auc", "metric": "signalAucLowestSlice", "min": 0.4, "compare": "Estimate"},
        {"name": "stable-scores", "metric": "signalDrift", "max": 0.5, "compare": "Estimate"},
    ]
    assert isinstance(found(judged("thumbs", HEALTHY_SIGNAL | UNSTABLE, {"rules": own}, **SIGNAL)), Prerequisites), (
        "a team may draw its own line"
    )


def test_a_pairwise_judge_evaluates_and_selects_nothing() -> None:
    metrics = HEALTHY_REWARD | {Metric.CALIBRATION_ERROR: Measurement(value=0.05, n=200)}
    judge = judged("pw", metrics, **PAIRWISE)
    reason, message = refused(found(judge))
    assert reason == "RewardModelUnfit"
    assert "for evaluation only" in message
    raw = generation_spec(evaluation={"pairwise": {"rewardModel": "pw"}})
    answer = look(raw, judge)
    assert isinstance(answer, Prerequisites)
    assert answer.pairwise is not None
    assert (answer.pairwise.name, answer.pairwise.role, answer.pairwise.uri) == (
        "pairwise-pw",
        "pairwise",
        "pvc://rm/pw",
    )


def test_the_evaluation_takes_no_other_kind_and_waits_for_its_judge() -> None:
    raw = generation_spec(evaluation={"pairwise": {"rewardModel": "rm-1"}})
    assert refused(look(raw))[0] == "RewardModelNotFound"
    reason, message = refused(look(raw, judged("rm-1", HEALTHY_REWARD)))
    assert reason == "RewardModelUnfit"
    assert "of type Pointwise" in message
    assert refused(look(raw, reward_model("rm-1")))[0] == "RewardModelNotReady"


def test_a_pairwise_judge_has_not_learned_from_those_who_judge_either() -> None:
    metrics = HEALTHY_REWARD | {Metric.CALIBRATION_ERROR: Measurement(value=0.05, n=200)}
    judge = judged("pw", metrics, **PAIRWISE, training={"holdoutFraction": 0.1})
    reason, message = refused(look(generation_spec(evaluation={"pairwise": {"rewardModel": "pw"}}), judge))
    assert reason == "RewardModelHoldoutTooSmall"
    assert "the RewardModel pw learned from users who are to judge" in message


def test_a_gated_model_of_pairs_is_refused_with_the_gate() -> None:
    weak = HEALTHY_REWARD | {Metric.ACCURACY_OVER_SURFACE: Measurement(value=-0.02, low=-0.1, high=0.05, n=200)}
    reason, message = refused(found(judged("rm-1", weak)))
    assert reason == "RewardModelNotReady"
    assert "beyond-surface: accuracyOverSurface -0.02" in message


def test_labels_of_coins_must_show_a_coin() -> None:
    leaking = HEALTHY_REWARD | {Metric.SHUFFLED_LABEL_ACCURACY: Measurement(value=0.61, n=200)}
    gates = judged("rm-1", leaking).status.gates
    assert "shuffled-labels: shuffledLabelAccuracy 0.61" in describe_failures(gates)


def test_a_generation_wakes_when_its_pairwise_judge_is_ready() -> None:
    raw = {
        "kind": "Generation",
        "metadata": {"name": "gen-1", "namespace": "lab"},
        "spec": generation_spec(evaluation={"pairwise": {"rewardModel": "pw"}}),
    }
    router = Router()
    router.own(raw)
    judge = {"kind": "RewardModel", "metadata": {"name": "pw", "namespace": "lab"}, "spec": reward_model_spec()}
    assert "gen-1" in {key.name for key in router.own(judge)}
    assert generation("gen-1", raw["spec"]).spec.reward_models == ["pw"]
