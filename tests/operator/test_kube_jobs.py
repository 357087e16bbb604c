"""From Jobs, pods and Deployments, as the cluster words them, to the planner's views."""

import pytest

from flywheel_operator.kube.jobs import job_view, telling_pod
from flywheel_operator.kube.servers import server_view
from flywheel_operator.model.observed import JobState
from tests.operator.kube_objects import condition, ended, job_raw, pod_raw, result_text

FAILED = condition("Failed", reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit")
COMPLETE = condition("Complete")
DISRUPTED = condition("DisruptionTarget", reason="PreemptionByScheduler")
UNSCHEDULABLE = condition("PodScheduled", "False", "Unschedulable", "0/1 nodes are available: 1 Insufficient memory.")


@pytest.mark.parametrize(
    ("job", "pods", "state", "waiting"),
    [
        (job_raw(), [], JobState.PENDING, ""),
        (job_raw(deletionTimestamp="2026-01-01T00:00:00Z"), [pod_raw("Running")], JobState.DELETING, ""),
        (job_raw(suspend=True), [], JobState.SUSPENDED, ""),
        (
            job_raw(condition("Suspended", reason="JobSuspended", message="Job suspended"), suspend=True),
            [],
            JobState.SUSPENDED,
            "Job suspended",
        ),
        (
            job_raw(),
            [pod_raw(conditions=(UNSCHEDULABLE,))],
            JobState.PENDING,
            "0/1 nodes are available: 1 Insufficient memory.",
        ),
        (
            job_raw(),
            [pod_raw(conditions=(condition("PodScheduled", "False", "SchedulingGated"),))],
            JobState.PENDING,
            "SchedulingGated",
        ),
        (
            job_raw(),
            [pod_raw(state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}})],
            JobState.PENDING,
            "ImagePullBackOff: Back-off pulling image",
        ),
        (
            job_raw(),
            [pod_raw(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}})],
            JobState.PENDING,
            'CreateContainerConfigError: secret "s3" not found',
        ),
        (
            job_raw(),
            [pod_raw(state={"waiting": {"reason": "ContainerCreating"}})],
            JobState.PENDING,
            "ContainerCreating",
        ),
        (job_raw(), [pod_raw(conditions=(condition("PodScheduled"),))], JobState.PENDING, ""),
        (job_raw(), [pod_raw("Running", {"running": {}})], JobState.RUNNING, ""),
        # Ended, but the Job controller has not taken note of it yet.
        (job_raw(), [pod_raw("Succeeded", ended(0, result_text()))], JobState.RUNNING, ""),
        (job_raw(), [pod_raw("Failed", ended(137), conditions=(DISRUPTED,))], JobState.PENDING, ""),
        (job_raw(COMPLETE), [pod_raw("Succeeded", ended(0, result_text()))], JobState.SUCCEEDED, ""),
        (job_raw(FAILED), [pod_raw("Failed", ended(1))], JobState.FAILED, ""),
    ],
)
def test_the_state_of_a_job(job, pods, state, waiting):  # noqa: ANN001, ANN201
    view = job_view(job, pods)
    assert (view.name, view.state, view.waiting) == ("g1-sft-1", state, waiting)


@pytest.mark.parametrize(
    ("job", "pods", "fault", "disrupted", "code"),
    [
        (job_raw(COMPLETE), [pod_raw("Succeeded", ended(0, result_text(), "Completed"))], "", False, 0),
        (job_raw(COMPLETE), [pod_raw("Succeeded", ended(0, "not JSON", "Completed"))], "UnreadableResult", False, 0),
        (job_raw(COMPLETE), [pod_raw("Succeeded", ended(0, "", "Completed"))], "UnreadableResult", False, 0),
        (job_raw(COMPLETE), [], "PodLost", False, None),
        (job_raw(FAILED), [], "PodLost", True, None),
        (job_raw(FAILED), [pod_raw("Failed", ended(65, result_text(reason="InvalidData")))], "", False, 65),
        (job_raw(FAILED), [pod_raw("Failed", ended(143, result_text(reason="Interrupted")))], "", False, 143),
        (job_raw(FAILED), [pod_raw("Failed", ended(137, reason="OOMKilled"))], "OOMKilled", False, 137),
        # A child was killed for memory and the trainer made exit code 1 of it: the kubelet's word counts.
        (job_raw(FAILED), [pod_raw("Failed", ended(1, reason="OOMKilled"))], "OOMKilled", False, 1),
        (job_raw(FAILED), [pod_raw("Failed", ended(139, reason=""))], "Error", False, 139),
        (job_raw(FAILED), [pod_raw("Failed", ended(128, reason="StartError"))], "StartError", False, 128),
        (job_raw(FAILED), [pod_raw("Failed", reason="Evicted")], "Evicted", False, None),
        (job_raw(FAILED), [pod_raw("Failed", reason="NodeAffinity")], "NodeAffinity", False, None),
        (job_raw(FAILED), [pod_raw("Failed")], "BackoffLimitExceeded", False, None),
        (job_raw(condition("Failed")), [pod_raw("Failed")], "PodLost", False, None),
        (job_raw(FAILED), [pod_raw("Failed", ended(137), conditions=(DISRUPTED,))], "PreemptionByScheduler", True, 137),
        (
            job_raw(),
            [pod_raw("Running", {"running": {}}, conditions=(condition("DisruptionTarget"),))],
            "DisruptionTarget",
            True,
            None,
        ),
        (
            job_raw(FAILED),
            [
                pod_raw(
                    "Failed", ended(143, result_text(reason="Interrupted")), deletionTimestamp="2026-01-01T00:00:00Z"
                )
            ],
            "",
            True,
            143,
        ),
        (
            job_raw(condition("Failed", reason="DeadlineExceeded")),
            [pod_raw("Failed", ended(143))],
            "DeadlineExceeded",
            False,
            143,
        ),
        (job_raw(), [pod_raw("Running", {"running": {}})], "", False, None),
    ],
)
def test_what_broke(job, pods, fault, disrupted, code):  # noqa: ANN001, ANN201
    view = job_view(job, pods)
    assert (view.fault, view.disrupted, view.exit_code) == (fault, disrupted, code)
    assert (view.result is not None) == any("apiVersion" in str(pod["status"]) for pod in pods)


def test_the_telling_pod_of_this_job_counts() -> None:
    old = pod_raw("Failed", ended(1), name="pod-z")
    new = pod_raw("Running", {"running": {}}, created="2026-01-01T00:00:05Z", name="pod-b")
    other = pod_raw("Failed", created="2026-02-01T00:00:00Z", owner="a former job of this name")
    assert telling_pod(job_raw(), [new, old, other]) is new
    assert job_view(job_raw(), [old, new, other]).state is JobState.RUNNING


def test_a_queue_says_in_its_own_words_why_it_holds_a_job_back() -> None:
    quota = condition("QuotaReserved", "False", "Pending", "insufficient unused quota for nvidia.com/gpu")
    workload = {"status": {"conditions": [quota]}}
    assert job_view(job_raw(suspend=True), [], workload).waiting == quota["message"]
    checks = condition("Admitted", "False", "NoChecks", "waits for admission checks")
    assert job_view(job_raw(suspend=True), [], {"status": {"conditions": [checks]}}).waiting == checks["message"]


def deployment(*conditions: dict, ready: int = 0, replicas: int = 1, updated: int = 1, seen: int = 2) -> dict:
    return {
        "metadata": {
            "name": "g1-server",
            "generation": 2,
            "labels": {"characterflywheel.dev/owner": "g1", "app.kubernetes.io/component": "server"},
            "annotations": {"characterflywheel.dev/model-digest": "sha256:1"},
        },
        "spec": {"replicas": replicas},
        "status": {
            "readyReplicas": ready,
            "updatedReplicas": updated,
            "observedGeneration": seen,
            "conditions": list(conditions),
        },
    }


def server_pod(conditions: tuple = (), container: dict | None = None, component: str = "server") -> dict:
    labels = {"characterflywheel.dev/owner": "g1", "app.kubernetes.io/component": component}
    pod = pod_raw(conditions=conditions, labels=labels)
    pod["status"]["containerStatuses"] = [container] if container else []
    return pod


def test_a_server_that_is_ready() -> None:
    view = server_view(deployment(ready=1))
    assert (view.generation, view.model_digest, view.replicas, view.ready_replicas) == ("g1", "sha256:1", 1, 1)
    assert view.up_to_date
    assert view.message == ""


def test_a_server_whose_controller_lags_is_not_up_to_date() -> None:
    assert not server_view(deployment(ready=1, seen=1)).up_to_date
    assert not server_view(deployment(ready=1, updated=0)).up_to_date
    assert server_view(deployment(replicas=0, updated=0)).up_to_date


CRASHED = {
    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
}


@pytest.mark.parametrize(
    ("conditions", "pods", "message"),
    [
        ((), [], ""),
        ((condition("Available", "False"), condition("Progressing", "False", message="deadline")), [], "deadline"),
        ((condition("ReplicaFailure", "True", "FailedCreate"),), [], "FailedCreate"),
        ((), [server_pod((UNSCHEDULABLE,))], UNSCHEDULABLE["message"]),
        ((), [server_pod((condition("PodScheduled", "False", "Gated"),))], "Gated"),
        ((), [server_pod(container=CRASHED)], "CrashLoopBackOff: it ended with OOMKilled (exit code 137)"),
        ((), [server_pod(container={"state": {"running": {}}})], ""),
        (
            (),
            [server_pod(container={"state": {"running": {}}}), server_pod((UNSCHEDULABLE,))],
            UNSCHEDULABLE["message"],
        ),
        ((), [server_pod((UNSCHEDULABLE,), component="stage")], ""),
        ((), [pod_raw(conditions=(UNSCHEDULABLE,))], ""),
    ],
)
def test_why_a_server_is_not_ready(conditions, pods, message):  # noqa: ANN001, ANN201
    assert server_view(deployment(*conditions), pods).message == message


# ------------------------------------------------------------------ several nodes: one view of many pods


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02}Z"


def of_two(index: int, phase: str, state: dict | None = None, **more: object) -> dict:
    annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
    return pod_raw(phase, state, name=f"pod-{index}", annotations=annotations, **more)  # type: ignore[arg-type]


RUNS = {"running": {}}
POLICY = condition(
    "Failed",
    reason="PodFailurePolicy",
    message="Pod ns/g1-sft-1-1 has condition DisruptionTarget matching FailJob rule at index 0",
)
LOST = condition("DisruptionTarget", reason="DeletionByTaintManager") | {"lastTransitionTime": at(3)}
BAD_DATA = result_text(reason="InvalidData", message="line 3: no user id")


@pytest.mark.parametrize(
    ("job", "pods", "expected"),
    [
        # (state, waiting, fault, disrupted, exit code)
        ((), [of_two(0, "Running", RUNS)], (JobState.PENDING, "", "", False, None)),
        ((), [of_two(0, "Running", RUNS), of_two(1, "Running", RUNS)], (JobState.RUNNING, "", "", False, None)),
        (
            (),
            [of_two(0, "Running", RUNS), of_two(1, "Pending", conditions=(UNSCHEDULABLE,))],
            (JobState.PENDING, UNSCHEDULABLE["message"], "", False, None),
        ),
        # The first was cut off by the second's mistake, a second later.
        (
            (FAILED,),
            [of_two(0, "Failed", ended(1, at=at(5))), of_two(1, "Failed", ended(65, BAD_DATA, at=at(4)))],
            (JobState.FAILED, "", "", False, 65),
        ),
        # Within one second: who ended on purpose tells more.
        (
            (FAILED,),
            [of_two(0, "Failed", ended(137, at=at(4))), of_two(1, "Failed", ended(65, BAD_DATA, at=at(4)))],
            (JobState.FAILED, "", "", False, 65),
        ),
        (
            (FAILED,),
            [of_two(0, "Failed", ended(1, at=at(9))), of_two(1, "Failed", ended(137, reason="OOMKilled", at=at(2)))],
            (JobState.FAILED, "", "OOMKilled", False, 137),
        ),
        # Taken away before the others failed for want of it.
        (
            (POLICY,),
            [of_two(0, "Failed", ended(1, at=at(4))), of_two(1, "Failed", ended(143, at=at(5)), conditions=(LOST,))],
            (JobState.FAILED, "", "DeletionByTaintManager", True, 143),
        ),
        # The pod itself is gone: the Job still says why it ended.
        ((POLICY,), [], (JobState.FAILED, "", "DisruptionTarget", True, None)),
        ((POLICY,), [of_two(0, "Failed", ended(1, at=at(4)))], (JobState.FAILED, "", "DisruptionTarget", True, 1)),
        ((FAILED,), [], (JobState.FAILED, "", "PodLost", False, None)),
        ((FAILED,), [of_two(1, "Failed", reason="Evicted")], (JobState.FAILED, "", "Evicted", False, None)),
        # The Job controller takes the others away: that is no disruption.
        (
            (FAILED,),
            [
                of_two(0, "Failed", ended(143, at=at(6)), deletionTimestamp=at(5)),
                of_two(1, "Failed", ended(1, result_text(reason="Fault"), at=at(4))),
            ],
            (JobState.FAILED, "", "", False, 1),
        ),
        (
            (COMPLETE,),
            [
                of_two(1, "Succeeded", ended(0, result_text(), "Completed")),
                of_two(0, "Succeeded", ended(0, result_text(), "Completed")),
            ],
            (JobState.SUCCEEDED, "", "", False, 0),
        ),
    ],
)
def test_a_job_on_several_nodes_is_seen_as_a_whole(job: tuple, pods: list, expected: tuple) -> None:
    view = job_view(job_raw(*job, nodes=2), pods)
    assert (view.state, view.waiting, view.fault, view.disrupted, view.exit_code) == expected
    assert (view.uid, view.nodes) == ("job", 2)


def test_the_first_pod_reports_what_came_out() -> None:
    uri = "pvc://artifacts/runs/manifest.json"
    first = of_two(0, "Succeeded", ended(0, result_text(manifest_uri=uri), "Completed"))
    second = of_two(1, "Succeeded", ended(0, result_text(), "Completed"), created="2026-01-01T00:00:09Z")
    view = job_view(job_raw(COMPLETE, nodes=2), [first, second])
    assert view.result is not None
    assert view.result.manifest_uri == uri
