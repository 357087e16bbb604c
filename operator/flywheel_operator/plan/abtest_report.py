"""What an ABTest's status says of its numbers."""

from typing import Literal

from flywheel_contract.experiment import AnalysisResult, MetricReading
from flywheel_operator.decide.abtest import Decision
from flywheel_operator.model.abtest import ABTestSpec
from flywheel_operator.model.abtest_status import ABTestStatus, ExposedUsers, MetricOutcome
from flywheel_operator.model.observed import ObservedABTest
from flywheel_operator.plan import abtest_runs as runs
from flywheel_operator.plan import reasons
from flywheel_operator.plan.draft import Draft


def show_day(draft: Draft[ABTestStatus], observed: ObservedABTest) -> None:
    """The column Day and the condition Progressing."""
    status = draft.status
    done, days = runs.day_of(status, observed)
    draft.set(day=f"{done}/{days}" + (" (trial)" if status.trial else ""), stage="window")
    start, end = runs.window_of(status)
    if observed.now < start:
        said = f"users are split already; the window opens at {start:%Y-%m-%dT%H:%M:%SZ}"
    elif observed.now < end:
        said = f"day {done + 1} of {days}, until {end:%Y-%m-%dT%H:%M:%SZ}"
    else:
        failing = [r for r in status.runs if r.name.startswith(runs.FINAL) and r.message and r.state != "Succeeded"]
        said = f"the window is over; {failing[-1].name}: {failing[-1].message}" if failing else "the window is over"
    seen = f"; {status.exposed} users exposed (control/treatment)" if status.exposed else ""
    lift = f"; {status.lift}" if status.lift else ""
    held = ""
    if status.mismatch:
        held = "; the treatment is paused: the sizes of the arms are not what they should be"
    elif status.paused:
        held = "; the treatment is paused"
    draft.condition(reasons.PROGRESSING, "True", "Testing", f"{said}{seen}{lift}{held}")


def show_result(draft: Draft[ABTestStatus], spec: ABTestSpec, result: AnalysisResult) -> None:
    """Whom an analysis counted, its numbers, and the columns Exposed and Lift."""
    users, ratio = result.users, result.sample_ratio
    if users is not None:
        counted = ExposedUsers(
            control=users.control,
            treatment=users.treatment,
            in_both_arms=users.in_both_arms,
            fallback=users.fallback,
            sample_ratio_p_value=ratio.p_value if ratio is not None else None,
        )
        draft.set(users=counted, exposed=f"{users.control}/{users.treatment}")
    readings = {m.name: m for m in result.metrics}
    guardrails = [g.metric for g in spec.guardrails]
    draft.set(
        metrics=[
            *(_outcome(name, "Primary", "", "", readings.get(name)) for name in spec.primaries),
            *(_outcome(name, "Guardrail", "", "", readings.get(name)) for name in guardrails),
        ]
    )
    first = readings.get(spec.primaries[0])
    if first is not None and first.lift is not None and first.low is not None and first.high is not None:
        draft.set(lift=f"{first.lift:+.1%} [{first.low:+.1%}, {first.high:+.1%}]")


def show_findings(draft: Draft[ABTestStatus], decision: Decision, result: AnalysisResult | None) -> None:
    """How each primary and guardrail came out."""
    readings = {m.name: m for m in result.metrics} if result is not None else {}
    draft.set(
        metrics=[
            *(
                _outcome(f.metric, "Primary", f.outcome.value, f.message, readings.get(f.metric))
                for f in decision.primaries
            ),
            *(
                _outcome(f.metric, "Guardrail", f.outcome.value, f.message, readings.get(f.metric))
                for f in decision.guardrails
            ),
        ]
    )


def _outcome(
    name: str, role: Literal["Primary", "Guardrail"], outcome: str, message: str, reading: MetricReading | None
) -> MetricOutcome:
    if reading is None:
        return MetricOutcome(name=name, role=role, outcome=outcome, message=message)
    return MetricOutcome(
        name=name,
        role=role,
        outcome=outcome,
        message=message,
        control=reading.control,
        treatment=reading.treatment,
        lift=reading.lift,
        low=reading.low,
        high=reading.high,
    )
