"""The Lua health checks, run as Argo CD runs them: Lua 5.1, the object as the global `obj`."""

from collections.abc import Callable
from typing import Any

import pytest

from flywheel_operator.model.phases import ABTestPhase, Phase, RewardModelPhase
from flywheel_operator.plan import reasons
from tests.kubernetes_fixtures import ROOT

lua51 = pytest.importorskip("lupa.lua51", reason="lupa (Lua in Python) is not installed")

Check = Callable[..., tuple[str, str]]

GENERATION = {
    Phase.PENDING: "Progressing",
    Phase.QUEUED: "Progressing",
    Phase.RUNNING: "Progressing",
    Phase.EVALUATING: "Progressing",
    Phase.TESTING: "Progressing",
    Phase.AWAITING_PROMOTION: "Progressing",
    Phase.SUSPENDED: "Suspended",
    Phase.COMPLETED: "Healthy",
    Phase.FAILED: "Degraded",
    Phase.ABORTED: "Degraded",
}
REWARD_MODEL = {
    RewardModelPhase.PENDING: "Progressing",
    RewardModelPhase.QUEUED: "Progressing",
    RewardModelPhase.RUNNING: "Progressing",
    RewardModelPhase.SUSPENDED: "Suspended",
    RewardModelPhase.READY: "Healthy",
    RewardModelPhase.GATED: "Degraded",
    RewardModelPhase.FAILED: "Degraded",
    RewardModelPhase.ABORTED: "Degraded",
}

ABTEST = {
    ABTestPhase.PENDING: "Progressing",
    ABTestPhase.PROVISIONING: "Progressing",
    ABTestPhase.RUNNING: "Progressing",
    ABTestPhase.ANALYZING: "Progressing",
    ABTestPhase.COMPLETED: "Healthy",
    ABTestPhase.FAILED: "Degraded",
    ABTestPhase.ABORTED: "Degraded",
}


def health(kind: str, status: dict[str, Any] | None, generation: int = 2) -> tuple[str, str]:
    """Status and message of the check."""
    lua = lua51.LuaRuntime(unpack_returned_tuples=True)
    obj = {"metadata": {"name": "luna-1", "generation": generation}} | ({} if status is None else {"status": status})
    lua.globals().obj = lua.table_from(obj, recursive=True)
    result = lua.execute((ROOT / "manifests" / "argocd" / "health" / f"{kind}.lua").read_text())
    return result["status"], result["message"]


def progressing(reason: str, message: str) -> list[dict[str, str]]:
    """The condition among others."""
    return [{"type": "Complete", "message": "no"}, {"type": "Progressing", "reason": reason, "message": message}]


def test_every_phase_is_known() -> None:
    assert set(GENERATION) == set(Phase)
    assert set(REWARD_MODEL) == set(RewardModelPhase)
    assert set(ABTEST) == set(ABTestPhase)


@pytest.mark.parametrize("kind", ["generation", "rewardmodel", "abtest"])
@pytest.mark.parametrize("status", [None, {}, {"phase": "Completed"}, {"phase": "Ready", "observedGeneration": 1}])
def test_what_the_operator_has_not_seen_is_progressing(kind: str, status: dict[str, Any] | None) -> None:
    assert health(kind, status)[0] == "Progressing"


@pytest.mark.parametrize("phase", GENERATION)
def test_phases_of_a_generation(phase: Phase) -> None:
    status = {"phase": phase.value, "observedGeneration": 2, "conditions": progressing("Any", "what it does")}
    assert health("generation", status) == (GENERATION[phase], "what it does")


@pytest.mark.parametrize("phase", REWARD_MODEL)
def test_phases_of_a_reward_model(phase: RewardModelPhase) -> None:
    assert health("rewardmodel", {"phase": phase.value, "observedGeneration": 2}) == (REWARD_MODEL[phase], phase.value)


@pytest.mark.parametrize("phase", ABTEST)
def test_phases_of_a_test(phase: ABTestPhase) -> None:
    status = {"phase": phase.value, "observedGeneration": 2, "conditions": progressing("Any", "what it does")}
    assert health("abtest", status) == (ABTEST[phase], "what it does")


def test_a_paused_test_waits_for_a_person() -> None:
    status = {"phase": "Running", "observedGeneration": 2, "paused": True, "conditions": progressing("Any", "paused")}
    assert health("abtest", status) == ("Suspended", "paused")


def test_what_waits_for_a_person_is_suspended() -> None:
    conditions = progressing(reasons.AWAITING_APPROVAL, "annotate it")
    status = {"phase": "AwaitingPromotion", "observedGeneration": 2, "conditions": conditions}
    assert health("generation", status) == ("Suspended", "annotate it")


def test_a_verdict_is_told() -> None:
    verdict = {"result": "Gated", "reason": "GatesFailed", "message": "win rate 0.48"}
    assert health("generation", {"phase": "Completed", "observedGeneration": 2, "verdict": verdict}) == (
        "Healthy",
        "Gated: win rate 0.48",
    )
