"""What a test will be able to see, said before its window opens from the days behind it."""

from typing import Final, Literal

from flywheel_contract.durations import seconds
from flywheel_contract.experiment import AnalysisReason
from flywheel_operator.decide.abtest import DecisionRule
from flywheel_operator.decide.power import POWER, Outlook, outlook
from flywheel_operator.model.abtest_status import ABTestStatus, PowerStatus
from flywheel_operator.model.objects import ABTest
from flywheel_operator.model.observed import ObservedABTest
from flywheel_operator.plan import abtest_runs as runs
from flywheel_operator.plan.draft import Draft

POWERED: Final = "Powered"


def rule_of(test: ABTest) -> DecisionRule:
    """What the test is judged by."""
    spec = test.spec
    return DecisionRule(
        primaries=tuple(spec.primaries),
        guardrails=tuple(spec.guardrails),
        min_users_per_arm=spec.min_users_per_arm,
        decisions=2 if spec.on_inconclusive == "Extend" else 1,
    )


def show_power(draft: Draft[ABTestStatus], observed: ObservedABTest) -> bool:
    """Whether what can be said of the power is said."""
    if any(c.type == POWERED for c in draft.status.conditions):
        return True
    wanted = runs.baseline(observed)
    run, result = runs.advance(draft, observed, wanted)
    if result is not None and result.baseline is not None and result.reason is AnalysisReason.SUCCEEDED:
        spec = observed.test.spec
        seen = outlook(
            result.baseline,
            rule_of(observed.test),
            spec.allocation,
            seconds(spec.duration),
            spec.target_lift,
        )
        power = [
            PowerStatus(metric=p.metric, role="Primary", detectable_lift=p.detectable_lift) for p in seen.primaries
        ] + [
            PowerStatus(metric=g.metric, role="Guardrail", pass_probability=g.pass_probability) for g in seen.guardrails
        ]
        draft.set(power=power)
        status, reason = _sight(seen)
        draft.condition(POWERED, status, reason, seen.message)
        if status == "False":
            draft.event("Warning", reason, seen.message)
        return True
    if run.state in ("Succeeded", "Failed"):
        said = run.message or "the log of the lineage holds no users of the time before the test"
        draft.condition(POWERED, "Unknown", "NoHistory", f"what it can see is not known: {said}")
        return True
    return False


def _sight(seen: Outlook) -> tuple[Literal["True", "False", "Unknown"], str]:
    if seen.sees_target is None:
        return "Unknown", "NoHistory"
    if not seen.sees_target:
        return "False", "CannotSeeTarget"
    if seen.win_probability is not None and seen.win_probability < POWER:
        # It would see the lift, and still not win: its guardrails have too few events to pass.
        return "False", "GuardrailsCannotPass"
    return "True", "SeesTarget"
