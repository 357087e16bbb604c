"""What the analysis tells the operator: the largest result fits, and a result is whole or says why not."""

import itertools
import string

import pytest
from pydantic import ValidationError

from flywheel_contract.base import digest_of
from flywheel_contract.experiment import (
    BUILTIN_NAMES,
    COVARIATE_OF,
    MAX_GUARDRAILS,
    MAX_PRIMARIES,
    RATES,
    AnalysisReason,
    AnalysisResult,
    AnalysisSpec,
    ArmStatistics,
    BaselineMetric,
    BaselineReport,
    BuiltinMetric,
    Covariate,
    Guardrail,
    MeasureStatus,
    MetricDefinition,
    MetricKind,
    MetricReading,
    MetricResult,
    SampleRatio,
    Users,
    Window,
)
from flywheel_contract.stage_result import TERMINATION_MESSAGE_BYTES
from flywheel_contract.uris import OUTPUT_URI_MAX_LENGTH

MOST = MAX_PRIMARIES + MAX_GUARDRAILS
# With six significant digits these are the longest numbers that JSON knows.
LONGEST = [-1234570000000000.0, -1.23457e-300, -1.23457e300]
CHARACTERS = ['"', "\\", "\0", "é", "…", "🌙", "a"]
NAMES = [f"m{letter}".ljust(40, "x") for letter in itertools.islice(string.ascii_letters, MOST)]
WINDOW = Window(start="2026-03-02T00:00:00Z", end="2027-03-02T00:00:00Z", day_length_seconds=86400, days=400)


def measured(number: float, character: str) -> AnalysisResult:
    readings = [
        MetricReading(
            name=name, status=max(MeasureStatus, key=len), control=number, treatment=number, control_sum=number,
            treatment_sum=number, lift=number, low=number, high=number, log_standard_error=number,
            difference_upper=number, harm_p_value=number,
        )
        for name in NAMES
    ]  # fmt: skip
    return AnalysisResult(
        reason=AnalysisReason.SUCCEEDED,
        message=character * 512,
        report_uri="s3://" + "k" * (OUTPUT_URI_MAX_LENGTH - 5),
        report_digest=digest_of("report"),
        window=WINDOW,
        users=Users(
            control=10**9, treatment=10**9, in_both_arms=10**9, fallback=10**9, fallback_events=number,
            without_covariates=10**9,
        ),
        sample_ratio=SampleRatio(expected_treatment_share=number, observed_treatment_share=number, p_value=number),
        metrics=readings,
    )  # fmt: skip


def baseline(number: float, character: str) -> AnalysisResult:
    statistics = ArmStatistics(n=10**9, mean=number, variance=number, numerator=number, denominator=number)
    metrics = [
        BaselineMetric(name=name, kind=MetricKind.RATIO, covariate=Covariate.PRE_ACTIVE_DAYS, statistics=statistics)
        for name in NAMES
    ]
    return AnalysisResult(
        reason=AnalysisReason.SUCCEEDED,
        message=character * 512,
        report_uri="s3://" + "k" * (OUTPUT_URI_MAX_LENGTH - 5),
        report_digest=digest_of("report"),
        baseline=BaselineReport(window=WINDOW, users=10**9, metrics=metrics),
    )


@pytest.mark.parametrize("number", LONGEST)
@pytest.mark.parametrize("character", CHARACTERS)
@pytest.mark.parametrize("make", [measured, baseline])
def test_the_largest_result_fits(make: type, number: float, character: str) -> None:
    result: AnalysisResult = make(number, character)
    text = result.to_termination_message()
    assert len(text.encode()) <= TERMINATION_MESSAGE_BYTES
    read = AnalysisResult.model_validate_json(text)
    assert read.message in (result.message, "")
    assert read.users is None or read.users.control == 10**9
    assert [m.name for m in read.metrics] == [m.name for m in result.metrics]
    for ours, theirs in zip(read.metrics, result.metrics, strict=True):
        assert ours.low == pytest.approx(theirs.low, rel=1e-5)


def test_what_cannot_fit_is_an_error() -> None:
    both = measured(LONGEST[0], "a").model_copy(update={"baseline": baseline(LONGEST[0], "a").baseline})
    with pytest.raises(ValueError, match="more than 4096"):
        both.to_termination_message()


def test_a_measurement_says_whom_it_counted() -> None:
    with pytest.raises(ValidationError, match="whom it counted"):
        AnalysisResult(reason=AnalysisReason.SUCCEEDED)
    assert AnalysisResult(reason=AnalysisReason.FAULT, message="no").users is None


def test_a_reading_is_of_its_result() -> None:
    arm = ArmStatistics(n=3, mean=0.5, variance=0.25, numerator=2, denominator=4)
    result = MetricResult(
        name="errorsPerRequest", kind=MetricKind.RATIO, denominator="requests", control=arm, treatment=arm, lift=0.0,
        low=-0.5, high=1.0, log_standard_error=0.35, p_value=1.0, difference_upper=0.1, harm_p_value=0.6,
        method="log-delta", status=MeasureStatus.MEASURED,
    )  # fmt: skip
    reading = MetricReading.of(result)
    shared = set(MetricReading.model_fields) & set(MetricResult.model_fields) - {"control", "treatment"}
    assert {name: getattr(reading, name) for name in shared} == {name: getattr(result, name) for name in shared}
    assert (reading.control, reading.treatment, reading.control_sum, reading.treatment_sum) == (0.5, 0.5, 2, 2)


def test_names_of_builtin_metrics_are_metric_names() -> None:
    assert len(BUILTIN_NAMES) == len(set(BUILTIN_NAMES)) == len(BuiltinMetric) + len(COVARIATE_OF)
    spec = AnalysisSpec(guardrails=[Guardrail(metric=name, margin=0.1) for name in BUILTIN_NAMES[:MAX_GUARDRAILS]])
    assert len(spec.guardrails) == MAX_GUARDRAILS
    assert not RATES & set(COVARIATE_OF)


def test_a_denominator_makes_a_ratio() -> None:
    assert MetricDefinition(name="m", numerator="count(*)").kind is MetricKind.MEAN
    assert MetricDefinition(name="m", numerator="count(*)", denominator="count(*)").kind is MetricKind.RATIO
