"""The runs of an ABTest's analysis: which is due, which attempt runs, what its end means."""

from datetime import datetime, timedelta
from typing import Final

from flywheel_contract.durations import seconds
from flywheel_contract.exit_codes import USER_MISTAKES
from flywheel_contract.experiment import AnalysisReason, AnalysisResult
from flywheel_operator.manifests.analysis import BASELINE, Measurement, config_map, job, job_name
from flywheel_operator.model.abtest_status import ABTestStatus, AnalysisRun
from flywheel_operator.model.observed import JobState, JobView, ObservedABTest
from flywheel_operator.plan.draft import Draft

FINAL: Final = "final"
POLL_SECONDS: Final = 5.0
BACKOFF_LIMIT_SECONDS: Final = 900
_MEASURED: Final = (AnalysisReason.SUCCEEDED, AnalysisReason.NO_DATA)
_MISTAKES: Final = (AnalysisReason.INVALID_SPEC, AnalysisReason.INVALID_DATA)


def window_of(status: ABTestStatus) -> tuple[datetime, datetime]:
    """The window of a test that runs: both ends are written at once, when it opens."""
    assert status.window_start is not None
    assert status.window_end is not None
    return status.window_start, status.window_end


def day_of(status: ABTestStatus, observed: ObservedABTest) -> tuple[int, int]:
    """Whole days of the window that are over, and how many there are."""
    start, end = window_of(status)
    length = timedelta(seconds=seconds(observed.test.spec.day_length))
    passed = (observed.now - start) // length
    days = (end - start) // length
    return max(0, min(passed, days)), days


def first_day(now: datetime, day_seconds: int) -> datetime:
    """When the window may begin: whole UTC days begin at midnight, the short ones of a trial at once."""
    now = now.replace(microsecond=0) + (timedelta(seconds=1) if now.microsecond else timedelta())
    if day_seconds < 86400:
        return now
    midnight = now.replace(hour=0, minute=0, second=0)
    return midnight if midnight == now else midnight + timedelta(days=1)


def due(status: ABTestStatus, observed: ObservedABTest) -> Measurement | None:
    """The look that is due: that at the newest full day, or the last one once the window is over.

    Days that nobody looked at in time are passed by: later looks see all that they would have seen.
    """
    start, end = window_of(status)
    spec = observed.test.spec
    settled = observed.now - timedelta(seconds=seconds(spec.analysis.settle))
    if settled >= end:
        return Measurement(f"{FINAL}-{status.extensions}" if status.extensions else FINAL, start, end)
    length = timedelta(seconds=seconds(spec.day_length))
    full = (settled - start) // length
    return Measurement(f"day-{full}", start, start + full * length) if full >= 1 else None


def next_look(status: ABTestStatus, observed: ObservedABTest) -> float:
    """Seconds until the window opens, or until the next look is due."""
    start, end = window_of(status)
    if observed.now < start:
        return (start - observed.now).total_seconds()
    spec = observed.test.spec
    settle = timedelta(seconds=seconds(spec.analysis.settle))
    length = timedelta(seconds=seconds(spec.day_length))
    full = max((observed.now - settle - start) // length, 0)
    at = min(start + (full + 1) * length, end) + settle
    return max((at - observed.now).total_seconds(), 1.0)


def baseline(observed: ObservedABTest) -> Measurement:
    """The time before the test, as long as the test."""
    spec = observed.test.spec
    end = first_day(observed.now, seconds(spec.day_length))
    return Measurement(BASELINE, end - timedelta(seconds=seconds(spec.duration)), end)


def find(status: ABTestStatus, name: str) -> AnalysisRun | None:
    """The run of that name."""
    return next((r for r in status.runs if r.name == name), None)


def advance(
    draft: Draft[ABTestStatus], observed: ObservedABTest, wanted: Measurement
) -> tuple[AnalysisRun, AnalysisResult | None]:
    """Takes the run `wanted` one step further; the result is there in the step in which it succeeded."""
    run = find(draft.status, wanted.name) or AnalysisRun(name=wanted.name)
    result = None
    if run.state == "Pending" and (run.retry_time is None or run.retry_time <= observed.now):
        run = _start(draft, observed, wanted, run)
    elif run.state == "Running":
        run, result = _look(observed, run, observed.jobs.get(run.job or ""))
    _put(draft, run)
    if run.state == "Running":
        draft.look_again(POLL_SECONDS)
    elif run.retry_time is not None:
        draft.look_again((run.retry_time - observed.now).total_seconds())
    return run, result


def _start(draft: Draft[ABTestStatus], observed: ObservedABTest, wanted: Measurement, run: AnalysisRun) -> AnalysisRun:
    test = observed.test
    attempt = run.attempts + 1
    draft.create.append(config_map(test))
    pull = observed.settings.image_pull_secrets
    draft.create.append(job(test, wanted, attempt, observed.settings.analysis_image, pull))
    name = job_name(test, wanted.name, attempt)
    return run.model_copy(update={"state": "Running", "job": name, "attempts": attempt, "retry_time": None})


def _look(
    observed: ObservedABTest, run: AnalysisRun, view: JobView | None
) -> tuple[AnalysisRun, AnalysisResult | None]:
    if view is None:
        # It was removed by its TTL, or by a person: the same look again finds the same numbers.
        return _again(observed, run, "its Job is gone", counts=False), None
    if view.state in (JobState.SUSPENDED, JobState.PENDING, JobState.RUNNING, JobState.DELETING):
        return run.model_copy(update={"message": view.waiting}), None
    result = view.analysis
    if view.state is JobState.SUCCEEDED and result is not None and result.reason in _MEASURED:
        update = {
            "state": "Succeeded",
            "message": result.message,
            "report_uri": result.report_uri,
            "report_digest": result.report_digest,
        }
        return run.model_copy(update=update), result
    said = (result.message if result is not None else "") or view.fault or f"exit code {view.exit_code}"
    if view.exit_code in USER_MISTAKES or (result is not None and result.reason in _MISTAKES):
        return run.model_copy(update={"state": "Failed", "failures": run.failures + 1, "message": said}), None
    return _again(observed, run, said, counts=not view.disrupted), None


def _again(observed: ObservedABTest, run: AnalysisRun, said: str, *, counts: bool) -> AnalysisRun:
    retry = observed.test.spec.retry_policy
    failures = run.failures + counts
    if failures > retry.max_retries:
        said = f"{said}; that was attempt {run.attempts}, retryPolicy.maxRetries is {retry.max_retries}"
        return run.model_copy(update={"state": "Failed", "failures": failures, "message": said})
    wait = min(retry.backoff_seconds * 2 ** max(failures - 1, 0), BACKOFF_LIMIT_SECONDS)
    update = {
        "state": "Pending",
        "job": None,
        "failures": failures,
        "message": said,
        "retry_time": observed.now + timedelta(seconds=wait),
    }
    return run.model_copy(update=update)


def _put(draft: Draft[ABTestStatus], run: AnalysisRun) -> None:
    if any(r.name == run.name for r in draft.status.runs):
        draft.set(runs=[run if r.name == run.name else r for r in draft.status.runs])
    else:
        draft.set(runs=[*draft.status.runs, run])
