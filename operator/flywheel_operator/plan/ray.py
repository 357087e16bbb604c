"""The Ray cluster of curation: there while its Job runs, and no longer."""

from typing import Final

from flywheel_contract.stage_spec import StageSpec
from flywheel_contract.stages import Stage
from flywheel_operator.manifests.ray import API_VERSION, KIND, ray_cluster, ray_cluster_name
from flywheel_operator.manifests.stage_owner import StageOwner
from flywheel_operator.model.observed import JobState, JobView, ObservedGeneration
from flywheel_operator.model.phases import StageState
from flywheel_operator.model.status import GenerationStatus
from flywheel_operator.plan import reasons
from flywheel_operator.plan.actions import Ref
from flywheel_operator.plan.draft import Draft
from flywheel_operator.plan.prerequisites import Missing

_AT_WORK: Final = (JobState.PENDING, JobState.RUNNING)
"""Not while a queue holds the Job back: the cluster would wait, and cost, with it."""


def missing_ray(observed: ObservedGeneration) -> Missing | None:
    """Why there can be no Ray cluster although one is asked for."""
    if observed.generation.spec.curation.ray is None or observed.ray_clusters is not None:
        return None
    return Missing(
        reasons.KUBERAY_MISSING,
        "spec.curation.ray needs KubeRay (rayclusters.ray.io), which is not installed: install it, or create the "
        "Generation without ray; curation then works in its own pod",
    )


def start_ray(
    draft: Draft[GenerationStatus],
    observed: ObservedGeneration,
    owner: StageOwner,
    spec: StageSpec,
    view: JobView | None,
) -> None:
    """Makes the cluster of a Job at work. Only now is there a Job that can own it, and be followed into the grave."""
    if owner.ray is None or spec.stage is not Stage.CURATE or observed.ray_clusters is None:
        return
    if view is None or view.state not in _AT_WORK:
        return
    if ray_cluster_name(owner.metadata, view.name) not in observed.ray_clusters:
        draft.create.append(ray_cluster(owner, owner.ray, spec, view.name, view.uid))


def stop_ray(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> None:
    """Removes the clusters of Jobs that have ended: a finished Job stays for a day."""
    at_work = (StageState.RUNNING, StageState.QUEUED)
    jobs = [s.job for s in draft.status.stages if s.name is Stage.CURATE and s.state in at_work]
    wanted = {ray_cluster_name(draft.metadata, job) for job in jobs if job is not None}
    for name in sorted((observed.ray_clusters or frozenset()) - wanted):
        draft.delete.append(Ref(API_VERSION, KIND, name))
