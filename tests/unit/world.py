"""A small world for the planners: the objects of one namespace, an executor with the rules of the real one, and the
invariants that nothing may ever break, checked at every write."""

import collections
import copy
import functools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter

from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_result import Reason, StageResult
from flywheel_contract.stage_spec import StageSpec, inputs_digest
from flywheel_contract.stages import Stage
from flywheel_operator.decide.production import last_time
from flywheel_operator.model.names import (
    ANNOTATION_MODEL_DIGEST,
    ANNOTATION_PRODUCTION,
    FINALIZER_SERVING,
    LABEL_OWNER,
    LABEL_STAGE,
    snapshot_name,
)
from flywheel_operator.model.objects import ABTest, Generation, RewardModel
from flywheel_operator.model.observed import (
    JobState,
    JobView,
    ObservedGeneration,
    ObservedRewardModel,
    ServerView,
)
from flywheel_operator.model.phases import (
    RERUN,
    REWARD_MODEL_TERMINAL,
    REWARD_MODEL_TRANSITIONS,
    TERMINAL,
    TRANSITIONS,
    Phase,
    StageState,
    Verdict,
)
from flywheel_operator.model.production import Ended, Production, ProductionRecord
from flywheel_operator.model.snapshot import Snapshot
from flywheel_operator.model.status import GenerationStatus
from flywheel_operator.plan import generation as generation_planner
from flywheel_operator.plan import reward_model as reward_model_planner
from flywheel_operator.plan.actions import Manifest, Plan, Ref, SwitchProduction
from tests.unit.build import HEALTHY, OVERFITTED, SETTINGS, T0, result_of

LIVE = (JobState.SUSPENDED, JobState.PENDING, JobState.RUNNING)
_SPEC: TypeAdapter[Any] = TypeAdapter(StageSpec)


def _owner(manifest: Manifest) -> str | None:
    """The uid of the owner; None for what outlives everyone: servers' configuration, the lineage's key."""
    references = manifest["metadata"].get("ownerReferences")
    return references[0]["uid"] if references else None


@functools.lru_cache(64)
def _generation(text: str) -> Generation:
    return Generation.model_validate_json(text)


@functools.lru_cache(64)
def _reward_model(text: str) -> RewardModel:
    return RewardModel.model_validate_json(text)


class CutError(Exception):
    """The operator died, or the API server refused: the pass ends here."""


@dataclass
class Job:
    """A Job and how its pod is."""

    manifest: Manifest
    view: JobView

    @property
    def owner(self) -> tuple[str, str]:
        return self.manifest["metadata"]["ownerReferences"][0]["uid"], self.manifest["metadata"]["labels"][LABEL_STAGE]


@dataclass
class World:
    """Everything in the namespace, and how often a stage really worked."""

    random: random.Random
    now: datetime = T0
    generations: dict[str, dict[str, Any]] = field(default_factory=dict)
    reward_models: dict[str, dict[str, Any]] = field(default_factory=dict)
    prompts: dict[str, dict[str, str]] = field(default_factory=dict)
    children: dict[str, Manifest] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    deployments: dict[str, Manifest] = field(default_factory=dict)
    ready: dict[str, int] = field(default_factory=dict)
    services: dict[str, Manifest] = field(default_factory=dict)
    taken: bool = False
    kuberay: bool = True
    version: int = 0
    done: dict[str, StageResult] = field(default_factory=dict)
    tests: dict[str, ABTest] = field(default_factory=dict)
    """What Generations asked for; nobody runs them but the test itself."""
    overfitted: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    burnt: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)

    # ------------------------------------------------------------------ looking

    def generation(self, name: str) -> Generation:
        return _generation(json.dumps(self.generations[name]))

    def reward_model(self, name: str) -> RewardModel:
        return _reward_model(json.dumps(self.reward_models[name]))

    def record(self, lineage: str = "luna") -> ProductionRecord | None:
        if lineage not in self.services:
            return None
        return ProductionRecord.model_validate_json(
            self.services[lineage]["metadata"]["annotations"][ANNOTATION_PRODUCTION]
        )

    def serving(self) -> str | None:
        record = self.record()
        return record.serving.generation if record and record.serving else None

    def _jobs_of(self, uid: str) -> dict[str, JobView]:
        return {name: job.view for name, job in self.jobs.items() if job.owner[0] == uid}

    def observe(self, name: str) -> ObservedGeneration:
        me = self.generation(name)
        held = self.children.get(snapshot_name(name, me.metadata.uid))
        record = self.record(me.spec.lineage)
        return ObservedGeneration(
            generation=me,
            now=self.now,
            settings=SETTINGS,
            generations={n: self.generation(n) for n in self.generations},
            reward_models={
                r.reward_model: self.reward_model(r.reward_model)
                for r in me.spec.rewards
                if r.reward_model in self.reward_models
            },
            config_maps=self.prompts,
            snapshot=Snapshot.model_validate_json(held["data"]["snapshot.json"]) if held else None,
            jobs=self._jobs_of(me.metadata.uid),
            servers={view.generation: view for view in self._servers()},
            production=None
            if record is None
            else Production(record, self.services[me.spec.lineage]["metadata"]["resourceVersion"]),
            service_taken=self.taken and record is None,
            tests=self.tests,
            ray_clusters=self.ray_clusters if self.kuberay else None,
        )

    @property
    def ray_clusters(self) -> frozenset[str]:
        return frozenset(name for name, child in self.children.items() if child["kind"] == "RayCluster")

    def observe_reward_model(self, name: str) -> ObservedRewardModel:
        me = self.reward_model(name)
        return ObservedRewardModel(
            reward_model=me,
            now=self.now,
            settings=SETTINGS,
            config_maps=self.prompts,
            jobs=self._jobs_of(me.metadata.uid),
        )

    def _servers(self) -> Iterator[ServerView]:
        for name, manifest in self.deployments.items():
            yield ServerView(
                generation=manifest["metadata"]["labels"][LABEL_OWNER],
                model_digest=manifest["metadata"]["annotations"][ANNOTATION_MODEL_DIGEST],
                replicas=manifest["spec"]["replicas"],
                ready_replicas=self.ready[name],
            )

    # ------------------------------------------------------------------ passes

    def plan(self, name: str) -> Plan[Any]:
        """What the planner wants for `name`; asked twice, it wants the same."""
        if name in self.generations:
            observed = self.observe(name)
            plan: Plan[Any] = generation_planner.plan(observed)
            assert generation_planner.plan(observed) == plan
        else:
            watched = self.observe_reward_model(name)
            plan = reward_model_planner.plan(watched)
            assert reward_model_planner.plan(watched) == plan
        self._check_plan(plan)
        return plan

    def step(self, name: str, cut: int | None = None) -> Plan[Any] | None:
        """One pass over `name`, cut off before write number `cut`; None where it was."""
        if name not in self.generations and name not in self.reward_models:
            return None
        plan = self.plan(name)
        try:
            self.execute(name, plan, cut)
        except CutError:
            return None
        return plan

    def execute(self, name: str, plan: Plan[Any], cut: int | None = None) -> None:
        """Carries `plan` out in the order of the real executor.

        Raises:
            CutError: before write number `cut`, or where the real one would begin anew.
        """
        mine = self.generations if name in self.generations else self.reward_models
        raw = mine[name]
        for count, write in enumerate(self._writes(raw, plan)):
            if count == cut:
                raise CutError
            write()
        if raw["metadata"].get("deletionTimestamp") and not raw["metadata"].get("finalizers"):
            self._collect(raw)

    def _writes(self, raw: dict[str, Any], plan: Plan[Any]) -> Iterator[Any]:
        metadata = raw["metadata"]
        if plan.add_finalizer and plan.add_finalizer not in metadata.get("finalizers", []):
            assert "deletionTimestamp" not in metadata, "no finalizer can be added under deletion"
            yield lambda: metadata.__setitem__("finalizers", [*metadata.get("finalizers", []), plan.add_finalizer])
        for manifest in plan.create:
            yield lambda m=manifest: self._create(m)
        for manifest in plan.apply:
            yield lambda m=manifest: self._apply(m)
        if plan.switch is not None:
            yield lambda: self._switch(metadata["name"], plan.switch)
        parsed = _generation if raw["kind"] == "Generation" else _reward_model
        if plan.status != parsed(json.dumps(raw)).status:
            yield lambda: self._write_status(raw, plan.status)
        for ref in plan.delete:
            yield lambda r=ref: self._delete(r)
        if plan.remove_finalizer:
            yield lambda: metadata.__setitem__(
                "finalizers", [f for f in metadata.get("finalizers", []) if f != plan.remove_finalizer]
            )

    # ------------------------------------------------------------------ writes and what they must keep

    def _check_plan(self, plan: Plan[Any]) -> None:
        names = [(m["kind"], m["metadata"]["name"]) for m in (*plan.create, *plan.apply)]
        assert len(set(names)) == len(names), "no child twice in one plan"
        assert all(len(name) <= 63 for _, name in names)
        assert plan.requeue_after is None or plan.requeue_after >= 0

    def _create(self, manifest: Manifest) -> None:
        name, kind = manifest["metadata"]["name"], manifest["kind"]
        if kind == "ABTest":
            self.tests.setdefault(
                name, ABTest.model_validate({**manifest, "metadata": {**manifest["metadata"], "uid": f"uid-{name}"}})
            )
            return
        uid = _owner(manifest)
        there: Any = self.jobs.get(name) if kind == "Job" else self.children.get(name)
        if there is not None:
            if kind == "Job" and there.view.state is JobState.DELETING:
                raise CutError
            owner = there.owner[0] if kind == "Job" else _owner(there)
            assert owner == uid, "a name is never another object's"
            return
        if kind == "Job":
            self.broken.discard(name)
            job = Job(copy.deepcopy(manifest), JobView(name, JobState.PENDING))
            rivals = [
                n
                for n, j in self.jobs.items()
                if j.owner == job.owner and (j.view.state in LIVE or j.view.state is JobState.DELETING)
            ]
            assert not rivals, f"{name} is created while {rivals} of the same stage runs"
            assert self.burnt[job.owner] <= self._budget(str(uid)), "the budget of retries is kept"
            config = next(
                v["configMap"]["name"] for v in manifest["spec"]["template"]["spec"]["volumes"] if v["name"] == "spec"
            )
            assert config in self.children, "the Job's ConfigMap is there before it"
            self.jobs[name] = job
        else:
            self.children[name] = copy.deepcopy(manifest)

    def _apply(self, manifest: Manifest) -> None:
        name, owner = manifest["metadata"]["name"], manifest["metadata"]["labels"][LABEL_OWNER]
        raw = self.generations[owner]
        wanted = manifest["spec"]["replicas"]
        if wanted > 0:
            assert FINALIZER_SERVING in raw["metadata"].get("finalizers", []), "no server without the finalizer"
        else:
            assert self.serving() != owner, "what serves is never scaled to zero"
        before = self.deployments.get(name)
        self.deployments[name] = copy.deepcopy(manifest)
        same = before is not None and before["spec"]["template"] == manifest["spec"]["template"]
        self.ready[name] = min(self.ready.get(name, 0), wanted) if same else 0

    def _switch(self, actor: str, switch: SwitchProduction) -> None:
        lineage = switch.service["metadata"]["name"]
        there = self.services.get(lineage)
        before = self.record(lineage)
        if (there["metadata"]["resourceVersion"] if there else None) != switch.resource_version:
            raise CutError
        if there is None and self.taken:
            raise CutError
        self._check_switch(actor, before, switch.record)
        self.version += 1
        self.services[lineage] = copy.deepcopy(switch.service)
        self.services[lineage]["metadata"]["resourceVersion"] = str(self.version)

    def _check_switch(self, actor: str, before: ProductionRecord | None, after: ProductionRecord) -> None:
        me = self.generation(actor)
        if after.serving is None:
            assert before is not None
            assert before.serving is not None
            assert before.serving.generation == actor, "only what serves is retired"
            return
        chosen = self.generation(after.serving.generation)
        status = chosen.status
        assert status.phase not in (Phase.FAILED, Phase.ABORTED)
        assert status.verdict is None or status.verdict.result is Verdict.PROMOTED
        assert FINALIZER_SERVING in chosen.metadata.finalizers
        assert status.candidate is not None
        assert after.serving.digest == status.candidate.digest
        restored = before is None and any(c.type == "Serving" and c.status == "True" for c in me.status.conditions)
        if not restored:
            view = next(v for v in self._servers() if v.generation == chosen.metadata.name)
            assert view.ready_replicas >= chosen.spec.serving.replicas, "it answers before it serves"
            assert view.model_digest == after.serving.digest
        if chosen.metadata.name == actor and not restored:
            now_serving = before.serving.digest if before and before.serving else None
            assert status.phase not in TERMINAL, "a promotion happens once"
            assert now_serving == status.production_digest, "judged against what serves"
            assert status.gates or chosen.spec.gates.defaults == "Disabled"
            assert all(g.verdict == "Passed" for g in status.gates)
        elif not restored:
            assert before is not None
            last = last_time(before, chosen.metadata.name)
            assert last is not None
            assert last.ended is Ended.SUPERSEDED

    def _write_status(self, raw: dict[str, Any], status: Any) -> None:  # noqa: ANN401 -- of either kind
        terminal: frozenset[Any]
        table: dict[Any, frozenset[Any]]
        if raw["kind"] == "Generation":
            before, terminal, table = _generation(json.dumps(raw)).status, TERMINAL, TRANSITIONS
            again = [c for c in status.commands if c.name == "rerun-from" and not c.outcome.startswith("refused")]
            if any(c not in before.commands for c in again):
                self._check_rerun(raw, before, status)
                table = {**table, before.phase: TRANSITIONS[before.phase] | RERUN}
            elif before.phase in TERMINAL:
                assert status.verdict == before.verdict
                assert status.completion_time == before.completion_time
        else:
            before, terminal, table = (
                _reward_model(json.dumps(raw)).status, REWARD_MODEL_TERMINAL, REWARD_MODEL_TRANSITIONS,
            )  # fmt: skip
        assert status.phase in table[before.phase], f"{before.phase} -> {status.phase}"
        assert (status.completion_time is not None) == (status.phase in terminal)
        budget = self._budget(raw["metadata"]["uid"])
        jobs = {s.name: s.job for s in before.stages}
        for stage in status.stages:
            assert stage.failures <= budget + (stage.state is StageState.FAILED)
            job = jobs.get(stage.name)
            if job in self.broken and stage.state in (StageState.RETRYING, StageState.FAILED):
                self.burnt[raw["metadata"]["uid"], stage.name.value] += 1
                self.broken.discard(job)
        raw["status"] = status.to_json()

    def _check_rerun(self, raw: dict[str, Any], before: GenerationStatus, status: GenerationStatus) -> None:
        record = self.record(raw["spec"]["lineage"])
        assert last_time(record, raw["metadata"]["name"]) is None, "what has served is not made anew"
        assert status.verdict is None or status.verdict == before.verdict
        for old, new in zip(before.stages, status.stages, strict=True):
            if new.rerun == old.rerun:
                assert (new, old.state) == (old, StageState.SUCCEEDED), "all before it is reused as it is"
            else:
                assert new.rerun == old.rerun + 1
                assert new.attempts >= old.attempts
                self.burnt[raw["metadata"]["uid"], new.name.value] = 0
                self.broken.discard(old.job or "")

    def _budget(self, uid: str) -> int:
        everyone = [*self.generations.values(), *self.reward_models.values()]
        spec = next(raw["spec"] for raw in everyone if raw["metadata"]["uid"] == uid)
        budget: int = spec.get("retryPolicy", {}).get("maxRetries", 3)
        return budget

    def _delete(self, ref: Ref) -> None:
        if ref.kind == "Job":
            if ref.name in self.jobs:
                job = self.jobs[ref.name]
                job.view = JobView(ref.name, JobState.DELETING)
        elif ref.kind in ("ConfigMap", "RayCluster"):
            self.children.pop(ref.name, None)
        else:
            manifest = self.deployments.pop(ref.name, None)
            if manifest is not None:
                owner = manifest["metadata"]["labels"][LABEL_OWNER]
                assert self.serving() != owner, "the server of what serves is never deleted"

    def _collect(self, raw: dict[str, Any]) -> None:
        name, uid = raw["metadata"]["name"], raw["metadata"]["uid"]
        assert self.serving() != name, "what serves does not go"
        del self.generations[name]
        self.jobs = {n: j for n, j in self.jobs.items() if j.owner[0] != uid}
        self.children = {n: m for n, m in self.children.items() if _owner(m) != uid}

    # ------------------------------------------------------------------ what the cluster does

    def stage_spec(self, job: Job) -> Any:  # noqa: ANN401 -- a StageSpec
        volumes = job.manifest["spec"]["template"]["spec"]["volumes"]
        config = next(v["configMap"]["name"] for v in volumes if v["name"] == "spec")
        return _SPEC.validate_json(self.children[config]["data"]["stage.json"])

    def finish(self, job: Job) -> None:
        """The pod does its work; work that lies in the artefact store already is not done again."""
        spec = self.stage_spec(job)
        key = inputs_digest(spec)
        if key not in self.done:
            metrics: dict[Metric, Measurement] | None = None
            if spec.stage is Stage.EVALUATE:
                metrics = OVERFITTED if spec.owner in self.overfitted else HEALTHY
            self.done[key] = result_of(spec, metrics)
        result = self.done[key]
        if result.manifest_uri is not None:
            result = result_of(spec, result.metrics)
        job.view = JobView(job.view.name, JobState.SUCCEEDED, result=result, exit_code=0)

    def fail(self, job: Job, how: str) -> None:
        """The pod ends otherwise."""
        name, stage = job.view.name, Stage(job.owner[1])
        self.broken.discard(name)
        if how in ("oom", "unreadable"):
            self.broken.add(name)
        match how:
            case "interrupted":
                job.view = JobView(name, JobState.FAILED, exit_code=143)
            case "disrupted":
                job.view = JobView(name, JobState.FAILED, disrupted=True)
            case "lost":
                job.view = JobView(name, JobState.SUCCEEDED)
            case "unreadable":
                job.view = JobView(name, JobState.SUCCEEDED, exit_code=0, fault="UnreadableResult")
            case "oom":
                job.view = JobView(name, JobState.FAILED, exit_code=137, fault="OOMKilled")
            case "mistake":
                result = StageResult(stage=stage, reason=Reason.INVALID_DATA, message="line 3: no user id")
                job.view = JobView(name, JobState.FAILED, result=result, exit_code=65)

    def settle(self) -> None:
        """Without further disturbances: what runs succeeds, what is deleted goes, servers answer."""
        for name, job in list(self.jobs.items()):
            if job.view.state is JobState.DELETING:
                del self.jobs[name]
            elif job.view.state in LIVE:
                self.finish(job)
        for name, manifest in self.deployments.items():
            self.ready[name] = manifest["spec"]["replicas"]

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def age(self) -> None:
        """Finished Jobs go after their TTL."""
        for name, job in list(self.jobs.items()):
            if job.view.state in (JobState.SUCCEEDED, JobState.FAILED):
                del self.jobs[name]

    def terminal(self, name: str) -> bool:
        if name in self.generations:
            return self.generation(name).status.phase in TERMINAL
        return self.reward_model(name).status.phase in REWARD_MODEL_TERMINAL

    def stray(self) -> list[str]:
        """Jobs that run though their owner has ended."""
        ended = {
            raw["metadata"]["uid"]
            for raw in (*self.generations.values(), *self.reward_models.values())
            if self.terminal(raw["metadata"]["name"])
        }
        return [name for name, job in self.jobs.items() if job.view.state in LIVE and job.owner[0] in ended]
