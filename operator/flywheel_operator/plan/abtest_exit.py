"""The way out of a test: users go back to what serves, then what the test started goes."""

from flywheel_contract.experiment import Arm
from flywheel_operator.model.abtest_status import ABTestStatus
from flywheel_operator.model.names import FINALIZER_ROUTING
from flywheel_operator.model.observed import JobState, ObservedABTest
from flywheel_operator.model.phases import ABTEST_TERMINAL
from flywheel_operator.plan import abtest_routing as routing
from flywheel_operator.plan.abtest_arms import remove_arm
from flywheel_operator.plan.actions import Ref
from flywheel_operator.plan.draft import Draft


def wind_down(draft: Draft[ABTestStatus], observed: ObservedABTest) -> None:
    """After the end: users go back to what serves, then what the test started goes."""
    if draft.status.start_time is None:
        return
    settled = routing.point_away(draft, observed)
    if not settled:
        return
    assert draft.status.completion_time is not None
    left = observed.test.spec.serving.drain_seconds - (observed.now - draft.status.completion_time).total_seconds()
    if left > 0:
        draft.look_again(left)
        return
    remove_arm(draft, observed, Arm.TREATMENT)
    if not routing.serves_alone(observed):
        remove_arm(draft, observed, Arm.CONTROL)
        routing.remove_router(draft, observed)


def leave(draft: Draft[ABTestStatus], observed: ObservedABTest) -> None:
    """Deletion: users have another way first; what the test made goes with it."""
    if FINALIZER_ROUTING not in observed.test.metadata.finalizers:
        return
    routing.retire(draft, observed)
    draft.remove_finalizer = FINALIZER_ROUTING


def delete_stray_jobs(draft: Draft[ABTestStatus], observed: ObservedABTest) -> None:
    """Jobs of runs that nobody waits for any more."""
    wanted = {r.job for r in draft.status.runs if r.state == "Running"}
    if draft.status.phase in ABTEST_TERMINAL:
        wanted = set()
    for name, view in observed.jobs.items():
        if view.state in (JobState.SUSPENDED, JobState.PENDING, JobState.RUNNING) and name not in wanted:
            draft.delete.append(Ref("batch/v1", "Job", name))
