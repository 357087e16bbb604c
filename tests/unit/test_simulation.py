"""The planners in a hostile world: whatever happens, the invariants of `World` hold; left alone, everything ends."""

import os
import random
from collections.abc import Callable

import pytest

from flywheel_operator.model.names import (
    COMMAND_ABORT,
    COMMAND_PROMOTE,
    COMMAND_RERUN,
    COMMAND_RETIRE,
    COMMAND_ROLLBACK,
)
from flywheel_operator.model.observed import JobState, JobView
from flywheel_operator.model.phases import TERMINAL, Phase, Verdict
from tests.unit.build import generation_spec, raw_object, reward_model_spec
from tests.unit.world import LIVE, World

SEEDS = int(os.environ.get("FLYWHEEL_SIMULATIONS", "20"))
STEPS = 80
PASSES = 120
"""Without disturbances, so many rounds of passes over everything are far more than any life needs."""

PATIENCE = 60

REWARD = [{"rewardModel": "rm-1"}]
SAMPLING = {"rejectionSampling": {}, "sft": {}, "dpo": {}, "rl": {}}
CHARACTER = [{"name": "luna", "systemPromptFrom": {"name": "prompts", "key": "luna"}}]


def specs(pick: random.Random) -> dict[str, dict]:
    """Three Generations of one lineage; one of them may be the child of another."""
    manual = {"rollout": {"promotion": "Manual"}}
    common = {"retryPolicy": {"maxRetries": 2}, "ttlSecondsAfterFinished": pick.choice([0, 600])}
    return {
        "gen-1": generation_spec(**common),
        "gen-2": generation_spec(**common, **(manual if pick.random() < 0.5 else {}), activeDeadlineSeconds=200_000),
        "gen-3": generation_spec(
            **common,
            parent=pick.choice([{"generation": "gen-1"}, {"model": "pvc://models/other"}]),
            recipe=SAMPLING,
            rewards=REWARD,
            characters=CHARACTER,
        ),
    }


class Adversary:
    """Does to the world what clusters and people do."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World(self.random)
        self.specs = specs(self.random)
        self.held: list[tuple[str, str, object]] = []
        self.count = 0
        for name in self.specs:
            self.create(name)
        rm = raw_object("RewardModel", "rm-1", reward_model_spec(characters=CHARACTER))
        self.world.reward_models["rm-1"] = rm
        self.world.prompts["prompts"] = {"luna": "You are Luna."}
        if self.random.random() < 0.3:
            self.world.overfitted.add("gen-2")
        self.moves: list[tuple[int, Callable[[], None]]] = [
            (60, self.a_pass),
            (10, self.a_cut_pass),
            (25, self.a_job_goes_on),
            (6 if self.random.random() < 0.7 else 40, self.a_job_fails),
            (3, self.a_job_vanishes),
            (12, self.servers_change),
            (12, self.time_goes_by),
            (3, self.suspend_or_resume),
            (4, self.suspend_for_a_moment),
            (1, self.abort),
            (3, self.run_anew),
            (5, self.promote),
            (6, self.roll_back),
            (2, self.retire),
            (3, self.delete),
            (4, self.recreate),
            (1, self.lose_service),
            (1, self.prompt_comes_and_goes),
        ]

    def create(self, name: str) -> None:
        self.count += 1
        raw = raw_object("Generation", name, dict(self.specs[name]), annotations={}, uid=f"uid-{name}-{self.count}")
        self.world.generations[name] = raw

    def run(self, steps: int) -> None:
        weights = [w for w, _ in self.moves]
        for _ in range(steps):
            self.random.choices([m for _, m in self.moves], weights)[0]()

    def everyone(self) -> list[str]:
        return [*self.world.generations, *self.world.reward_models]

    def someone(self) -> dict | None:
        return (
            self.world.generations[self.random.choice(sorted(self.world.generations))]
            if self.world.generations
            else None
        )

    # ---- moves

    def a_pass(self) -> None:
        for _ in range(3):
            self.world.step(self.random.choice(self.everyone()))

    def a_cut_pass(self) -> None:
        self.world.step(self.random.choice(self.everyone()), cut=self.random.randrange(5))

    def a_job_goes_on(self) -> None:
        for job in list(self.world.jobs.values()):
            name = job.view.name
            match job.view.state:
                case JobState.PENDING:
                    held = self.random.random() < 0.2
                    waiting = "0/3 nodes are available" if held else ""
                    job.view = JobView(name, JobState.PENDING if held else JobState.RUNNING, waiting=waiting)
                case JobState.RUNNING:
                    self.world.finish(job)
                case JobState.DELETING:
                    del self.world.jobs[name]

    def a_job_fails(self) -> None:
        live = [j for j in self.world.jobs.values() if j.view.state in LIVE]
        if live:
            how = ["interrupted", "disrupted", "lost", "unreadable", "oom", "oom", "mistake"]
            self.world.fail(self.random.choice(live), self.random.choice(how))

    def a_job_vanishes(self) -> None:
        if self.world.jobs:
            name = self.random.choice(sorted(self.world.jobs))
            if self.random.random() < 0.5:
                self.world.jobs[name].view = JobView(name, JobState.DELETING)
            else:
                del self.world.jobs[name]

    def servers_change(self) -> None:
        for name, manifest in self.world.deployments.items():
            wanted = manifest["spec"]["replicas"]
            self.world.ready[name] = wanted if self.random.random() < 0.8 else 0

    def time_goes_by(self) -> None:
        self.world.advance(self.random.choice([1, 10, 60, 600, 4000]))
        if self.random.random() < 0.1:
            self.world.age()

    def suspend_or_resume(self) -> None:
        raw = self.someone()
        if raw:
            raw["spec"]["suspend"] = not raw["spec"].get("suspend", False)

    def suspend_for_a_moment(self) -> None:
        raw = self.someone()
        if raw:
            for suspended in (True, False):
                raw["spec"]["suspend"] = suspended
                self.world.step(raw["metadata"]["name"])
                uid, deleted = raw["metadata"]["uid"], "deletionTimestamp" in raw["metadata"]
                live = [n for n, j in self.world.jobs.items() if j.owner[0] == uid and j.view.state in LIVE]
                assert deleted or not suspended or live == [], "nothing runs while it is suspended"

    def annotate(self, command: str, value: str | None) -> None:
        raw = self.someone()
        if raw and value is not None:
            raw["metadata"]["annotations"][command] = value

    def abort(self) -> None:
        self.annotate(COMMAND_ABORT, "yes")

    def run_anew(self) -> None:
        stage = self.random.choice(["resolve", "curate", "sft", "dpo", "evaluate", "evaluate", ""])
        self.annotate(COMMAND_RERUN, f"{stage}/{self.random.randrange(4)}")

    def promote(self) -> None:
        raw = self.someone()
        if raw:
            value = raw.get("status", {}).get("promotionHash") if self.random.random() < 0.7 else "wrong"
            if value:
                raw["metadata"]["annotations"][COMMAND_PROMOTE] = value

    def roll_back(self) -> None:
        self.annotate(COMMAND_ROLLBACK, str(self.random.randrange(3)))

    def retire(self) -> None:
        self.annotate(COMMAND_RETIRE, "yes")

    def delete(self) -> None:
        raw = self.someone()
        if raw:
            raw["metadata"].setdefault("deletionTimestamp", self.world.now.isoformat())
            self.world.step(raw["metadata"]["name"])

    def recreate(self) -> None:
        for name in self.specs:
            if name not in self.world.generations:
                self.create(name)

    def lose_service(self) -> None:
        # A person deletes it once everyone has noted who serves; a record that nobody noted is lost with it.
        for name in list(self.world.generations):
            self.world.step(name)
        if self.random.random() < 0.5:
            self.world.services.pop("luna", None)

    def prompt_comes_and_goes(self) -> None:
        if self.world.prompts:
            self.world.prompts.clear()
        else:
            self.world.prompts["prompts"] = {"luna": "You are Luna."}


def leave_alone(world: World) -> int:
    """Passes without disturbances until nothing changes; how many rounds that took."""
    world.prompts["prompts"] = {"luna": "You are Luna."}
    for raw in world.generations.values():
        raw["spec"]["suspend"] = False
    for round_ in range(PASSES):
        before = str((world.generations, world.reward_models, world.services))
        for name in [*world.generations, *world.reward_models] * world.random.choice([1, 1, 2]):
            world.step(name)
        for name in list(world.generations):
            status = world.generation(name).status
            if round_ == PATIENCE and status.phase not in TERMINAL:
                # What it waits for may never come (a parent that was gated, a RewardModel that failed): before its
                # snapshot is taken, that holds it. Its way out is a person's.
                assert status.snapshot is None
                assert any(c.type == "PrerequisitesMet" and c.status == "False" for c in status.conditions)
                world.generations[name]["metadata"]["annotations"][COMMAND_ABORT] = "yes"
            if status.phase is Phase.AWAITING_PROMOTION and status.promotion_hash:
                world.generations[name]["metadata"]["annotations"][COMMAND_PROMOTE] = status.promotion_hash
        quiet = before == str((world.generations, world.reward_models, world.services))
        if quiet and all(map(world.terminal, [*world.generations, *world.reward_models])) and not world.stray():
            return round_
        world.settle()
        world.advance(3700 if round_ % 3 else 15)
    left = {n: world.generation(n).status for n in world.generations if not world.terminal(n)}
    raise AssertionError(f"no end after {PASSES} rounds: {left}")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_happens_the_invariants_hold_and_everything_ends(seed: int) -> None:
    adversary = Adversary(seed)
    world = adversary.world
    if seed % 2:
        # Half of the worlds are met when something serves already: there is more to break.
        later = {name: world.generations.pop(name) for name in ("gen-2", "gen-3")}
        leave_alone(world)
        for name in list(later)[: seed % 4 // 2]:
            world.generations[name] = later.pop(name)
            leave_alone(world)
        world.generations |= later
    adversary.run(STEPS)
    for name in adversary.everyone():
        world.step(name)
    assert world.stray() == [], "what has ended leaves nothing running"
    leave_alone(world)
    # What has ended stays so, and nothing is asked of the cluster any more.
    serving = world.serving()
    for name in [*world.generations, *world.reward_models]:
        plan = world.plan(name)
        raw = (world.generations | world.reward_models)[name]
        assert plan.status.to_json() == raw["status"]
        assert (plan.create, plan.apply, plan.switch, plan.delete) == ((), (), None, ())
    assert world.serving() == serving
    shown = [
        n for n in world.generations for c in world.generation(n).status.conditions
        if c.type == "Serving" and c.status == "True"
    ]  # fmt: skip
    assert shown == ([serving] if serving in world.generations else [])
    for name in world.generations:
        status = world.generation(name).status
        if status.verdict is not None and status.verdict.result is Verdict.PROMOTED:
            assert status.phase is Phase.COMPLETED


def test_a_generation_left_alone_is_promoted_by_the_shortest_way() -> None:
    adversary = Adversary(0)
    world = adversary.world
    del world.generations["gen-2"], world.generations["gen-3"]
    leave_alone(world)
    status = world.generation("gen-1").status
    assert status.verdict is not None
    assert status.verdict.result is Verdict.PROMOTED
    assert [s.attempts for s in status.stages] == [1, 1, 1, 1]
    assert world.serving() == "gen-1"
