"""The verdict of an online test: what must hold of every result that can be reported."""

import math

from hypothesis import given
from hypothesis import strategies as st

from flywheel_contract.experiment import (
    AnalysisReason,
    AnalysisResult,
    MeasureStatus,
    MetricReading,
    SampleRatio,
    Users,
)
from flywheel_operator.decide.abtest import final_verdict, harm_look
from flywheel_operator.model.experiment import AbReason, AbVerdict, GuardrailOutcome, LookOutcome
from tests.unit.abtest_reports import DAYS, LATENCY, LOOKS, MESSAGES, REASONS, RULE, VIOLATIONS, report


def ratio(p: float | None) -> SampleRatio:
    return SampleRatio(expected_treatment_share=0.5, p_value=p)


numbers = st.floats(-1.5, 5) | st.sampled_from([-1.0, 0.0, 0.05])
maybe = st.none() | numbers
readings = st.builds(
    MetricReading,
    name=st.sampled_from([DAYS, MESSAGES, VIOLATIONS, LATENCY]),
    status=st.sampled_from(MeasureStatus),
    control=maybe, treatment=maybe, lift=maybe, difference_upper=st.none() | st.floats(-0.01, 0.01),
    log_standard_error=st.none() | st.floats(-0.01, 0.3), harm_p_value=st.none() | st.floats(0, 1),
)  # fmt: skip
sizes = st.integers(0, 5000)
results = st.none() | st.builds(
    AnalysisResult,
    reason=st.just(AnalysisReason.SUCCEEDED) | st.sampled_from(AnalysisReason),
    users=st.builds(Users, control=sizes, treatment=sizes),
    sample_ratio=st.none() | (st.none() | st.floats(0, 1) | st.just(0.5)).map(ratio),
    metrics=st.lists(readings, max_size=6),
)
sound = st.lists(readings, max_size=4).map(lambda changed: report(*changed))


@given(results | sound, st.integers(1, LOOKS))
def test_every_report_has_an_answer_with_a_reason_of_its_own(result: AnalysisResult | None, day: int) -> None:
    decision = final_verdict(result, RULE)
    assert decision.reason in REASONS[decision.verdict]
    assert decision.message
    look = harm_look(result, RULE, day, LOOKS)
    assert (look.decision is not None) is (look.outcome is LookOutcome.STOP)
    assert look.decision is None or look.decision.verdict is not AbVerdict.TREATMENT_WINS
    # What stops a test before its end would not have won at its end.
    assert look.decision is None or decision.verdict is not AbVerdict.TREATMENT_WINS


@given(results | sound)
def test_a_win_needs_everything_measured(result: AnalysisResult | None) -> None:
    decision = final_verdict(result, RULE)
    if decision.verdict is AbVerdict.TREATMENT_WINS:
        assert result is not None
        assert all(g.outcome is GuardrailOutcome.PASSED for g in decision.guardrails)
        for guardrail in RULE.guardrails:
            kept = [reading for reading in result.metrics if reading.name != guardrail.metric]
            lost = result.model_copy(update={"metrics": kept})
            assert final_verdict(lost, RULE).verdict is not AbVerdict.TREATMENT_WINS
        nobody = result.model_copy(update={"metrics": [m for m in result.metrics if m.name not in RULE.primaries]})
        assert final_verdict(nobody, RULE).verdict is not AbVerdict.TREATMENT_WINS


@given(sound, st.floats(0, 0.5), st.sampled_from([DAYS, MESSAGES, VIOLATIONS, LATENCY]))
def test_worse_numbers_never_win_what_better_ones_did_not(result: AnalysisResult, by: float, metric: str) -> None:
    """`by` less of a primary, or more of a guardrail, with the same certainty."""
    sign = -1 if metric in RULE.primaries else 1

    def worse(reading: MetricReading) -> MetricReading:
        if reading.name != metric:
            return reading
        changes: dict[str, float] = {}
        if reading.lift is not None:
            changes["lift"] = (1 + reading.lift) * math.exp(sign * by) - 1
        if reading.difference_upper is not None:
            changes["difference_upper"] = reading.difference_upper + by
        return reading.model_copy(update=changes)

    before = final_verdict(result, RULE)
    after = final_verdict(result.model_copy(update={"metrics": [worse(m) for m in result.metrics]}), RULE)
    assert before.verdict is AbVerdict.TREATMENT_WINS or after.verdict is not AbVerdict.TREATMENT_WINS
    if before.verdict is AbVerdict.CONTROL_WINS and sign < 0:
        assert after.verdict is AbVerdict.CONTROL_WINS


@given(results | sound, st.floats(0, 0.00099))
def test_a_broken_split_outweighs_every_number(result: AnalysisResult | None, p: float) -> None:
    if result is None or result.reason is not AnalysisReason.SUCCEEDED or result.users is None:
        return
    if result.users.control + result.users.treatment == 0:
        return
    broken = result.model_copy(update={"sample_ratio": ratio(p)})
    assert final_verdict(broken, RULE).reason is AbReason.SAMPLE_RATIO_MISMATCH
    assert harm_look(broken, RULE, 1, LOOKS).outcome is LookOutcome.PAUSE
