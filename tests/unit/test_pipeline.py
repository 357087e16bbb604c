"""One stage's life, look by look."""

from datetime import timedelta
from typing import Any

import pytest

from flywheel_contract.base import digest_of
from flywheel_contract.progress import Progress
from flywheel_contract.stage_result import Reason, StageResult
from flywheel_contract.stage_spec import Input, ResolveSpec, SftSpec, StageSpec, stage_uri
from flywheel_contract.stages import Role, Stage
from flywheel_operator.manifests.stage import job_name
from flywheel_operator.manifests.stage_owner import StageOwner
from flywheel_operator.model.common import RetryPolicy
from flywheel_operator.model.objects import Metadata
from flywheel_operator.model.observed import JobState, JobView
from flywheel_operator.model.phases import StageState
from flywheel_operator.model.runtime import Runtime
from flywheel_operator.model.status import StageStatus
from flywheel_operator.plan.pipeline import BACKOFF_LIMIT_SECONDS, LOST_RESULT_SECONDS, Step, advance, manifest_uri
from tests.unit.build import T0, result_of

OWNER = StageOwner("Generation", Metadata(name="gen-1", namespace="lab", uid="uid"), "luna", Runtime(), "trainer:1")
SPEC = SftSpec(owner="gen-1", group="luna", artifacts="pvc://artifacts/runs")
RETRY = RetryPolicy(max_retries=2, backoff_seconds=10)


def look(status: StageStatus, view: JobView | None = None, spec: StageSpec = SPEC, **more: Any) -> Step:  # noqa: ANN401
    return advance(status, spec, view, OWNER, more.pop("retry", RETRY), more.pop("now", T0), **more)


def running(**changes: Any) -> StageStatus:  # noqa: ANN401 -- fields of the status
    started = look(StageStatus(name=Stage.SFT)).status
    return started.model_copy(update=changes)


def view(state: JobState, **fields: Any) -> JobView:  # noqa: ANN401 -- fields of the view
    return JobView(running().job or "", state, **fields)


def told(reason: Reason, message: str = "") -> StageResult:
    return StageResult(stage=Stage.SFT, reason=reason, message=message)


def test_the_first_look_starts_it() -> None:
    step = look(StageStatus(name=Stage.SFT))
    assert (step.status.state, step.status.attempts, step.status.start_time) == (StageState.RUNNING, 1, T0)
    config, job = step.create
    assert (config["kind"], job["kind"]) == ("ConfigMap", "Job")
    assert job["metadata"]["name"] == step.status.job
    again = look(step.status.model_copy(update={"job": None}), now=T0 + timedelta(hours=1))
    assert (again.status.attempts, again.status.start_time) == (2, T0), "it started when it first did"


def test_a_new_attempt_waits_for_its_time() -> None:
    waiting = StageStatus(name=Stage.SFT, retry_time=T0 + timedelta(seconds=7))
    step = look(waiting)
    assert (step.status, step.create, step.requeue_after) == (waiting, (), 7.0)
    assert look(waiting, now=T0 + timedelta(seconds=7)).create


def test_a_new_attempt_waits_for_the_end_of_an_earlier_job_but_not_for_itself() -> None:
    status = StageStatus(name=Stage.SFT, attempts=1)
    step = look(status, unfinished=["gen-1-sft-1-00000000"])
    assert step.create == ()
    assert step.status.job is None
    assert step.requeue_after == 1.0
    # The status write after its creation was lost: it is taken up, not waited for.
    mine = job_name(OWNER.metadata, Stage.SFT, 2, step_digest())
    assert look(status, unfinished=[mine]).status.job == mine


def step_digest() -> str:
    return running().inputs_digest or ""


def test_a_job_that_is_gone_is_created_again_under_its_name() -> None:
    step = look(running())
    assert step.status == running()
    assert [m["metadata"]["name"] for m in step.create if m["kind"] == "Job"] == [running().job]
    assert look(running(), unfinished=["gen-1-sft-0-00000000"]).create == (), "not beside one that is on its way out"


def test_a_job_that_is_gone_and_whose_inputs_have_changed_is_another_attempt() -> None:
    step = look(running(inputs_digest=digest_of("other")))
    assert (step.status.state, step.status.job, step.status.reason) == (StageState.RETRYING, None, "InputsChanged")
    assert step.status.failures == 0


@pytest.mark.parametrize(
    ("job", "state", "message"),
    [
        (view(JobState.SUSPENDED), StageState.QUEUED, "held by its queue"),
        (view(JobState.SUSPENDED, waiting="quota"), StageState.QUEUED, "quota"),
        (view(JobState.PENDING, waiting="0/3 nodes"), StageState.QUEUED, "0/3 nodes"),
        (view(JobState.PENDING), StageState.RUNNING, "its pod starts"),
        (view(JobState.RUNNING), StageState.RUNNING, "running"),
        (view(JobState.RUNNING, progress=Progress(percent=3)), StageState.RUNNING, "running"),
        (view(JobState.RUNNING, progress=Progress(message="epoch 2")), StageState.RUNNING, "epoch 2"),
        (view(JobState.DELETING), StageState.RUNNING, "attempt 1 starts"),
    ],
)
def test_while_it_runs(job: JobView, state: StageState, message: str) -> None:
    step = look(running(), job)
    assert (step.status.state, step.status.message, step.create) == (state, message, ())
    assert step.requeue_after


def test_progress_stays_when_a_pod_cannot_be_asked() -> None:
    first = look(running(), view(JobState.RUNNING, progress=Progress(percent=40, loss=1.5))).status
    second = look(first, view(JobState.RUNNING)).status
    assert second.progress is not None
    assert (second.progress.percent, second.progress.loss) == (40, 1.5)


def test_success_is_taken_over() -> None:
    step = look(running(), view(JobState.SUCCEEDED, result=result_of(SPEC, reused=True), exit_code=0))
    status = step.status
    assert (status.state, status.reused, status.completion_time) == (StageState.SUCCEEDED, True, T0)
    assert [(o.name, o.uri) for o in status.outputs] == [("model", f"{stage_uri(SPEC)}/model")]
    assert status.manifest_uri == manifest_uri(SPEC)


def test_what_resolve_answers_are_the_digests_of_its_inputs() -> None:
    inputs = [Input(name="parent", role=Role.POLICY, kind="Model", uri="hf://owner/base")]
    spec = ResolveSpec(owner="gen-1", group="luna", artifacts="pvc://artifacts/runs", inputs=inputs)
    started = look(StageStatus(name=Stage.RESOLVE), spec=spec).status
    step = look(started, JobView("x", JobState.SUCCEEDED, result=result_of(spec), exit_code=0), spec)
    assert [(o.name, o.uri) for o in step.status.outputs] == [("parent", "hf://owner/base")]
    empty = StageResult(stage=Stage.RESOLVE, reason=Reason.SUCCEEDED)
    step = look(started, JobView("x", JobState.SUCCEEDED, result=empty, exit_code=0), spec)
    assert (step.status.state, step.status.reason) == (StageState.RETRYING, "BadResult")
    assert "lacks the digest of parent" in step.status.message


@pytest.mark.parametrize(
    ("job", "reason", "burns"),
    [
        (view(JobState.SUCCEEDED), "ResultLost", 0),
        (view(JobState.SUCCEEDED, exit_code=0, fault="UnreadableResult"), "UnreadableResult", 1),
        (view(JobState.SUCCEEDED, exit_code=0), "BadResult", 1),
        (view(JobState.SUCCEEDED, exit_code=0, result=told(Reason.FAULT)), "BadResult", 1),
        (view(JobState.SUCCEEDED, exit_code=0, result=told(Reason.SUCCEEDED)), "BadResult", 1),
        (
            view(JobState.SUCCEEDED, exit_code=0, result=StageResult(stage=Stage.DPO, reason=Reason.SUCCEEDED)),
            "BadResult",
            1,
        ),
        (
            view(
                JobState.SUCCEEDED,
                exit_code=0,
                result=result_of(SPEC).model_copy(update={"manifest_uri": "pvc://other/manifest.json"}),
            ),
            "BadResult",
            1,
        ),
        (view(JobState.FAILED, exit_code=143), "Interrupted", 0),
        (view(JobState.FAILED, exit_code=1, result=told(Reason.INTERRUPTED, "SIGTERM")), "Interrupted", 0),
        (view(JobState.FAILED, exit_code=137, disrupted=True, fault="Preempted"), "Interrupted", 0),
        (view(JobState.FAILED, exit_code=137, fault="OOMKilled"), "OOMKilled", 1),
        (view(JobState.FAILED, exit_code=1, result=told(Reason.DISK_FULL, "disk full")), "DiskFull", 1),
        (view(JobState.FAILED, exit_code=1), "Fault", 1),
        (view(JobState.FAILED), "Fault", 1),
    ],
)
def test_what_another_attempt_may_mend(job: JobView, reason: str, burns: int) -> None:
    status = look(running(), job).status
    assert (status.state, status.reason, status.failures, status.job) == (StageState.RETRYING, reason, burns, None)
    wait = 10 if burns else LOST_RESULT_SECONDS
    assert status.retry_time == T0 + timedelta(seconds=wait)
    # Out of budget, only what burns a retry is the end.
    last = look(running(failures=2), job).status
    assert last.state is (StageState.FAILED if burns else StageState.RETRYING)
    if burns:
        assert "retryPolicy.maxRetries is 2" in last.message
        assert last.failures == 3


@pytest.mark.parametrize(
    ("job", "reason", "message"),
    [
        (view(JobState.FAILED, exit_code=65, result=told(Reason.INVALID_DATA, "line 3")), "InvalidData", "line 3"),
        (view(JobState.FAILED, exit_code=65), "Data", "exit code 65, without a word from the stage"),
        (view(JobState.FAILED, exit_code=68), "Fault", "exit code 68, without a word from the stage"),
        # torchrun answers 1 whatever its processes answered.
        (view(JobState.FAILED, exit_code=1, result=told(Reason.NOT_FINITE, "step 7")), "NotFinite", "step 7"),
        # The user's mistake stays one, also where the pod was taken away afterwards.
        (view(JobState.FAILED, exit_code=66, disrupted=True), "Model", "exit code 66, without a word from the stage"),
    ],
)
def test_the_users_mistakes_end_it_at_once(job: JobView, reason: str, message: str) -> None:
    status = look(running(), job).status
    assert (status.state, status.reason, status.message) == (StageState.FAILED, reason, message)
    assert status.failures == 0


def test_waits_grow_up_to_a_limit() -> None:
    retry = RetryPolicy(max_retries=100, backoff_seconds=10)
    waits = []
    for failures in (0, 1, 2, 20, 99):
        status = look(running(failures=failures), view(JobState.FAILED, exit_code=1), retry=retry).status
        assert status.retry_time is not None
        waits.append((status.retry_time - T0).total_seconds())
    assert waits == [10, 20, 40, BACKOFF_LIMIT_SECONDS, BACKOFF_LIMIT_SECONDS]


def test_pods_on_several_nodes_get_the_service_that_names_them_once() -> None:
    live = view(JobState.PENDING, uid="uid-job", nodes=2, peers=False)
    [service] = look(running(), live).create
    assert service["kind"] == "Service"
    assert service["metadata"]["ownerReferences"][0]["uid"] == "uid-job"
    assert look(running(), view(JobState.RUNNING, uid="uid-job", nodes=2)).create == ()
