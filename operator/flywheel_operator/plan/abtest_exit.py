"""The way out of a test: users go back to what serves, then what the test started goes."""

from datetime import datetime

from flywheel_contract.experiment import Arm
from flywheel_operator.model.abtest_status import ABTestStatus
from flywheel_operator.model.names import FINALIZER_ROUTING
from flywheel_operator.model.observed import JobState, ObservedABTest
from flywheel_operator.model.phases import ABTEST_TERMINAL
from flywheel_operator.plan import abtest_routing as routing
from flywheel_operator.plan.abtest_arms import remove_arm, remove_services
from flywheel_operator.plan.actions import Ref
from flywheel_operator.plan.draft import Draft


def wind_down(draft: Draft[ABTestStatus], observed: ObservedABTest) -> None:
    """After the end: users go back to what serves, then what the test started goes."""
    if draft.status.start_time is None:
        return
    if not routing.point_away(draft, observed):
        return
    if not routing.serves_alone(observed):
        _take_down(draft, observed)
        return
    assert draft.status.completion_time is not None
    if not _waits(draft, draft.status.completion_time, observed.test.spec.serving.drain_seconds):
        remove_arm(draft, observed, Arm.TREATMENT)


def leave(draft: Draft[ABTestStatus], observed: ObservedABTest) -> None:
    """Deletion: users have another way first, then what the test made goes, and at last the test.

    Its Deployments and Services have no owner: a foreground deletion would take them away from their users at once, and
    a background one as soon as the finalizer is off. So where someone takes the finalizer off by force they stay; their
    labels say whose they were (kubectl delete deploy,svc -l characterflywheel.dev/owner=NAME).
    """
    if FINALIZER_ROUTING not in observed.test.metadata.finalizers:
        return
    if not observed.namespace_terminating:
        if not routing.retire(draft, observed) or not _take_down(draft, observed):
            return
        remove_services(draft, observed)
    draft.remove_finalizer = FINALIZER_ROUTING


def _take_down(draft: Draft[ABTestStatus], observed: ObservedABTest) -> bool:
    """Removes what users were sent to before: the router, and the arms once its pods, which send the clients that they
    still have to them, have drained. Says whether all is gone."""
    away = draft.status.away_time or observed.now
    draft.set(away_time=away)
    drain = observed.test.spec.serving.drain_seconds
    if _waits(draft, away, drain):
        return False
    routing.remove_router(draft, observed)
    if _waits(draft, away, drain + routing.drain_seconds(observed)):
        return False
    for arm in Arm:
        remove_arm(draft, observed, arm)
    return True


def _waits(draft: Draft[ABTestStatus], since: datetime, wanted: float) -> bool:
    """Whether less than `wanted` seconds have passed; if so, looks again after the rest."""
    left = wanted - (draft.now - since).total_seconds()
    if left > 0:
        draft.look_again(left)
    return left > 0


def delete_stray_jobs(draft: Draft[ABTestStatus], observed: ObservedABTest) -> None:
    """Jobs of runs that nobody waits for any more."""
    wanted = {r.job for r in draft.status.runs if r.state == "Running"}
    if draft.status.phase in ABTEST_TERMINAL:
        wanted = set()
    for name, view in observed.jobs.items():
        if view.state in (JobState.SUSPENDED, JobState.PENDING, JobState.RUNNING) and name not in wanted:
            draft.delete.append(Ref("batch/v1", "Job", name))
