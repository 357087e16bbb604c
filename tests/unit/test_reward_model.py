"""A RewardModel from its creation to its end."""

import random
from typing import Any

import pytest

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stages import Stage
from flywheel_operator.model.names import COMMAND_ABORT
from flywheel_operator.model.observed import JobState, JobView
from flywheel_operator.model.phases import RewardModelPhase
from flywheel_operator.model.status import RewardModelStatus
from tests.unit.build import HEALTHY_REWARD, raw_object, result_of, reward_model_spec
from tests.unit.world import World

NAME = "rm-1"


class Lab(World):
    """A world with one RewardModel."""

    def put(self, **spec: Any) -> None:  # noqa: ANN401 -- fields of the spec
        self.reward_models[NAME] = raw_object("RewardModel", NAME, reward_model_spec(**spec), annotations={})

    @property
    def status(self) -> RewardModelStatus:
        return self.reward_model(NAME).status

    def ready_condition(self) -> tuple[str, str]:
        found = next(c for c in self.status.conditions if c.type == "Ready")
        return found.status, found.reason

    def go(self, rounds: int = 10) -> None:
        for _ in range(rounds):
            self.step(NAME)
            self.settle()
            self.advance(10)

    def accuracy(self, measured: Measurement | None) -> None:
        """Goes on to the end, where this accuracy is measured."""
        for _ in range(10):
            self.step(NAME)
            self.advance(10)
            for job in self.jobs.values():
                if job.view.state is JobState.PENDING:
                    spec = self.stage_spec(job)
                    metrics = {m: v for m, v in HEALTHY_REWARD.items() if m is not Metric.REWARD_ACCURACY}
                    metrics |= {Metric.REWARD_ACCURACY: measured} if measured else {}
                    result = result_of(spec, metrics if spec.stage is Stage.REWARD_MODEL else {})
                    job.view = JobView(job.view.name, JobState.SUCCEEDED, result=result, exit_code=0)


@pytest.fixture
def lab() -> Lab:
    return Lab(random.Random(0))


def test_the_straight_way(lab: Lab) -> None:
    lab.put()
    lab.step(NAME)
    assert lab.status.phase is RewardModelPhase.RUNNING
    assert lab.ready_condition() == ("False", "StageRunning")
    lab.go()
    assert (lab.status.phase, lab.status.accuracy, lab.status.progress) == (RewardModelPhase.READY, "0.700", "2/2")
    assert lab.status.model is not None
    assert "/reward-models/rm-1/reward-model/" in lab.status.model.uri
    assert lab.ready_condition() == ("True", "AllGatesPassed")
    assert [i.name for i in lab.status.inputs] == ["preferences-pairs", "parent"]


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (Measurement(value=0.55, low=0.48, high=0.62, n=200), "is not >= 0.5 at its low end"),
        (Measurement(value=0.9, low=0.8, high=1.0, n=10), "needs at least 50 samples"),
        (None, "was not measured"),
    ],
)
def test_one_that_is_no_better_than_chance_is_gated(lab: Lab, measured: Measurement | None, said: str) -> None:
    lab.put()
    lab.accuracy(measured)
    assert lab.status.phase is RewardModelPhase.GATED
    assert lab.status.model is None
    assert (lab.status.accuracy is None) == (measured is None)
    progressing = next(c for c in lab.status.conditions if c.type == "Progressing")
    assert said in progressing.message


def test_without_gates_it_is_ready(lab: Lab) -> None:
    lab.put(gates={"defaults": "Disabled"})
    lab.accuracy(None)
    assert lab.status.phase is RewardModelPhase.READY


def test_a_queued_job(lab: Lab) -> None:
    lab.put(runtime={"queueName": "gpu", "image": "mine:1"})
    lab.step(NAME)
    [job] = lab.jobs.values()
    assert job.manifest["spec"]["template"]["spec"]["containers"][0]["image"] == "mine:1"
    job.view = JobView(job.view.name, JobState.SUSPENDED, waiting="no quota")
    lab.step(NAME)
    assert lab.status.phase is RewardModelPhase.QUEUED


def test_a_users_mistake_ends_it(lab: Lab) -> None:
    lab.put()
    lab.step(NAME)
    [job] = lab.jobs.values()
    lab.fail(job, "mistake")
    lab.step(NAME)
    assert lab.status.phase is RewardModelPhase.FAILED
    assert lab.ready_condition() == ("False", "InvalidData")


def test_abort_and_deadline_stop_the_job(lab: Lab) -> None:
    lab.put()
    lab.step(NAME)
    lab.reward_models[NAME]["metadata"]["annotations"][COMMAND_ABORT] = "yes"
    plan = lab.step(NAME)
    assert plan is not None
    assert len(plan.delete) == 1
    assert lab.status.phase is RewardModelPhase.ABORTED
    lab.jobs.clear()
    lab.put(activeDeadlineSeconds=100)
    lab.reward_models[NAME]["metadata"]["uid"] = "another"
    plan = lab.step(NAME)
    assert plan is not None
    lab.step(NAME)
    lab.advance(100)
    plan = lab.step(NAME)
    assert plan is not None
    assert len(plan.delete) == 1
    assert lab.status.phase is RewardModelPhase.FAILED


def test_suspension_and_what_it_waits_for_afterwards(lab: Lab) -> None:
    lab.put(characters=[{"name": "luna", "systemPromptFrom": {"name": "prompts", "key": "luna"}}])
    plan = lab.step(NAME)
    assert plan is not None
    assert plan.requeue_after == 30, "nothing watches the ConfigMap of a user"
    assert (lab.status.phase, lab.ready_condition()) == (RewardModelPhase.PENDING, ("False", "CharacterNotFound"))
    lab.prompts["prompts"] = {"luna": "You are Luna."}
    lab.step(NAME)
    lab.prompts.clear()
    lab.step(NAME)
    assert lab.status.phase is RewardModelPhase.RUNNING, "it goes on with the prompt that it started with"
    lab.reward_models[NAME]["spec"]["suspend"] = True
    lab.step(NAME)
    assert lab.status.phase is RewardModelPhase.SUSPENDED
    lab.reward_models[NAME]["spec"]["suspend"] = False
    lab.go(14)
    assert lab.status.phase is RewardModelPhase.READY


def test_the_end_is_the_end_and_its_jobs_go_in_time(lab: Lab) -> None:
    lab.put(ttlSecondsAfterFinished=500)
    lab.go()
    lab.advance(500)
    lab.step(NAME)
    lab.settle()
    assert lab.jobs == {}
    assert lab.children == {}
    assert lab.status.phase is RewardModelPhase.READY


def test_one_that_is_being_deleted_is_left_alone(lab: Lab) -> None:
    lab.put()
    lab.step(NAME)
    lab.reward_models[NAME]["metadata"]["deletionTimestamp"] = lab.now.isoformat()
    plan = lab.plan(NAME)
    assert (plan.create, plan.delete) == ((), ())
