"""What the log says of the time before a test: what its power is computed from."""

from typing import Final

from flywheel_analysis import analysis, lifts, sufficient, users
from flywheel_analysis.lifts import Sufficient
from flywheel_analysis.period import Period
from flywheel_analysis.sources import Source
from flywheel_analysis.spec import deciding, metrics_of
from flywheel_contract.experiment import (
    CUPED_SUFFIX,
    AnalysisSpec,
    Arm,
    BaselineMetric,
    BaselineReport,
    BuiltinMetric,
)

DEFAULT: Final = (
    BuiltinMetric.ACTIVE_SHARE.value,
    BuiltinMetric.ACTIVE_DAYS_PER_USER + CUPED_SUFFIX,
    BuiltinMetric.MESSAGES_PER_USER + CUPED_SUFFIX,
    BuiltinMetric.MESSAGES_PER_USER_CAPPED + CUPED_SUFFIX,
    BuiltinMetric.SAFETY_VIOLATIONS_PER_MESSAGE.value,
    BuiltinMetric.FALSE_REFUSALS_PER_MESSAGE.value,
    BuiltinMetric.ERRORS_PER_REQUEST.value,
    BuiltinMetric.LATENCY_MEAN.value,
)
"""What is measured where no spec names primaries and guardrails."""


def run(source: Source, period: Period, spec: AnalysisSpec) -> BaselineReport:
    """Measures all users who were exposed or active inside `period`, each from the first row on, as one group.

    Raises:
        AnalysisError: one of its kinds, as the source found it.
    """
    everybody = users.everybody(source.exposures, source.events, period)
    # Whoever was in another test is a user like all others here.
    counted = analysis.count(source, period, spec.model_copy(update={"test": ""}), users.exposed(everybody, period))
    known = {metric.name: metric for metric in metrics_of(spec)}
    wanted = [known[name] for name in (deciding(spec) or DEFAULT)]
    found = sufficient.read(source.engine, counted.users, (users.ARM,), wanted)
    arm = found.get((Arm.CONTROL.value,), Sufficient())
    return BaselineReport(
        window=period.window(),
        users=arm.n,
        metrics=[
            BaselineMetric(name=m.name, kind=m.kind, covariate=m.covariate, statistics=lifts.single(m, arm))
            for m in wanted
        ],
    )
