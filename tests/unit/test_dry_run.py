"""A dry run: what is counted, what it would cost, and that nothing is trained."""

import random
from typing import Any

import pytest

from flywheel_contract.stage_result import Size, StageResult
from flywheel_contract.stage_spec import MAX_INPUTS, Input, StageSpec
from flywheel_contract.stages import Origin, Role, Stage
from flywheel_operator.decide.estimate import Sizes, Source, Work, estimate
from flywheel_operator.model.generation import GenerationSpec
from flywheel_operator.model.names import COMMAND_RERUN
from flywheel_operator.model.observed import JobState
from flywheel_operator.model.phases import Phase, Verdict
from flywheel_operator.plan import dry_run
from flywheel_operator.plan.prerequisites import Prerequisites
from flywheel_operator.plan.stage_specs import resolve_generation
from tests.unit.build import generation_spec, raw_object, result_of, reward_model_spec
from tests.unit.lab import Lab

REWARDS = [{"rewardModel": "rm-1"}]
ALL: dict[str, Any] = {
    "rejectionSampling": {"maxPrompts": 100, "samplesPerPrompt": 4, "maxNewTokens": 50},
    "sft": {"epochs": 2, "batchSize": 4},
    "dpo": {"maxSteps": 10, "batchSize": 4, "lora": {}},
    "rl": {"maxPrompts": 32, "batchSize": 8, "numGenerations": 4, "maxNewTokens": 20, "beta": 0},
}


def sizes(**changes: Any) -> Sizes:  # noqa: ANN401 -- fields of Sizes
    traffic = [Source(1000, 100_000, Origin.INTERNAL), Source(1000, 100_000, Origin.USER)]
    return Sizes(**{"traffic": traffic, "preferences": [], "sft": [], "policy": 10**9, "rewards": 10**9, **changes})


def works(counted: Sizes, **changes: Any) -> dict[Stage, Work]:  # noqa: ANN401 -- fields of the spec
    given = {"dryRun": {"gpuTeraflops": 100, "trainingUtilization": 0.5, "samplingUtilization": 0.1}, **changes}
    spec = GenerationSpec.model_validate(generation_spec(**given))
    return {work.stage: work for work in estimate(spec, counted)}


def hours(flops: float, utilization: float) -> float:
    return flops / (100e12 * utilization * 3600)


def test_sft_alone_is_six_times_parameters_and_tokens() -> None:
    found = works(sizes(), recipe={"sft": {"epochs": 1, "batchSize": 8}})
    assert list(found) == [Stage.SFT, Stage.EVALUATE]
    sft = found[Stage.SFT]
    # 2000 rows less the hold-out of a fifth, 100 tokens each.
    assert (sft.rows, sft.tokens, sft.steps) == (1600, 160_000, 200)
    assert sft.gpu_hours == pytest.approx(hours(6e9 * 160_000, 0.5))
    assert sft.hours is None, "no GPU was asked for"


def test_every_stage_counts_what_it_draws_reads_and_trains() -> None:
    pairs = [Source(300, 300 * 240)]
    found = works(sizes(preferences=pairs), recipe=ALL, rewards=REWARDS, runtime={"gpus": 2})
    sampled = found[Stage.REJECTION_SAMPLE]
    assert (sampled.rows, sampled.tokens) == (400, 400 * 150)
    assert sampled.gpu_hours == pytest.approx(hours(2 * 2e9 * sampled.tokens, 0.1))
    assert sampled.hours == pytest.approx(sampled.gpu_hours / 2)
    sft = found[Stage.SFT]
    assert (sft.rows, sft.steps) == (100, 25), "two passes over 100 rows, 8 at a time on two GPUs"
    dpo = found[Stage.DPO]
    assert (dpo.rows, dpo.steps) == (400, 10)
    assert dpo.tokens == round(80 * (300 * 240 + 2 * 100 * 150) / 400)
    assert dpo.gpu_hours == pytest.approx(hours((2 + 2 + 2) * 1e9 * dpo.tokens, 0.5)), "adapters, and the reference"
    rl = found[Stage.RL]
    assert (rl.rows, rl.steps, rl.tokens) == (128, 8, 128 * 120)
    assert rl.gpu_hours == pytest.approx(hours(6e9 * rl.tokens, 0.5) + hours(4e9 * rl.tokens, 0.1))
    assert found[Stage.EVALUATE].rows == 2 * 400


def test_limits_references_and_recomputation_are_counted() -> None:
    limited = works(sizes(), curation={"maxConversations": 100}, recipe={"sft": {"gradientCheckpointing": True}})
    assert limited[Stage.SFT].rows == 160
    assert limited[Stage.SFT].gpu_hours == pytest.approx(hours(8e9 * limited[Stage.SFT].tokens, 0.5))
    pulled = works(sizes(), recipe={"rl": ALL["rl"] | {"beta": 0.1}}, rewards=REWARDS)[Stage.RL]
    free = works(sizes(), recipe={"rl": ALL["rl"]}, rewards=REWARDS)[Stage.RL]
    assert pulled.gpu_hours - free.gpu_hours == pytest.approx(hours(2e9 * free.tokens, 0.5))
    given = works(sizes(preferences=[Source(8, 80)]), recipe={"dpo": {}})
    assert given[Stage.DPO].rows == 8, "no sampled pairs without rejection sampling"


def test_of_nothing_nothing_is_estimated() -> None:
    nothing = sizes(traffic=[Source(0, 0)])
    assert {(w.rows, w.tokens, w.gpu_hours) for w in works(nothing).values()} == {(0, 0, 0.0)}


# ------------------------------------------------------------------ its life


@pytest.fixture
def lab() -> Lab:
    return Lab(random.Random(0))


def count(lab: Lab, name: str, **changes: Any) -> StageSpec:  # noqa: ANN401 -- fields of the result
    """The resolve stage's pod ends; answers what it was told."""
    job = next(j for j in lab.jobs.values() if j.view.name.startswith(f"{name}-resolve"))
    spec: StageSpec = lab.stage_spec(job)
    counted = [Size(0, 10**9) if i.kind == "Model" else Size(1000, 120_000) for i in spec.inputs]
    result = result_of(spec).model_copy(update={"sizes": counted, **changes})
    job.view = type(job.view)(job.view.name, JobState.SUCCEEDED, result=result, exit_code=0)
    return spec


def test_it_resolves_counts_and_ends_with_a_table(lab: Lab) -> None:
    lab.put("gen-1", dryRun={}, runtime={"gpus": 1})
    lab.step("gen-1")
    spec = count(lab, "gen-1")
    assert spec.params.to_json() == {"count": True, "maxTokens": 1024}
    plan = lab.step("gen-1")
    status = lab.status("gen-1")
    assert (status.phase, status.progress, status.snapshot) == (Phase.COMPLETED, "1/1", None)
    verdict = lab.verdict("gen-1")
    assert verdict.result is Verdict.DRY_RUN
    lines = verdict.message.splitlines()
    assert lines[1].split() == ["INPUT", "ROWS", "TOKENS", "PARAMETERS"]
    assert lines[2].split() == ["traffic-chats", "1k", "120k", "-"]
    assert lines[3].split() == ["parent", "-", "-", "1G"]
    assert [line.split()[0] for line in lines[5:]] == ["sft", "evaluate", "in"]
    assert status.estimate is not None
    assert status.estimate.gpu_hours > 0
    assert [s.name for s in status.estimate.stages] == [Stage.SFT, Stage.EVALUATE]
    [event] = [e for e in plan.events if e.reason == "DryRun"]
    assert event.type == "Normal"
    assert event.message.startswith("nothing was trained; about ")
    lab.annotate("gen-1", COMMAND_RERUN, "sft")
    lab.go("gen-1", rounds=5)
    assert {j.owner[1] for j in lab.jobs.values()} == {"resolve"}
    assert lab.deployments == {}


def test_it_counts_with_the_parent_whatever_names_it_and_with_the_reward_models(lab: Lab) -> None:
    lab.reward_models["rm-1"] = raw_object("RewardModel", "rm-1", reward_model_spec())
    lab.go("rm-1")
    lab.put("gen-1")
    lab.go("gen-1")
    lab.put("gen-2", parent={"generation": "gen-1"}, dryRun={}, recipe=ALL, rewards=REWARDS)
    lab.step("gen-2")
    spec = count(lab, "gen-2")
    assert {(i.name, i.role, i.kind) for i in spec.inputs if i.kind == "Model"} == {
        ("parent", Role.POLICY, "Model"),
        ("reward-rm-1", Role.REWARD, "Model"),
    }
    lab.step("gen-2")
    assert lab.verdict("gen-2").result is Verdict.DRY_RUN
    assert lab.serving() == "gen-1"


def test_a_result_without_sizes_does_not_count(lab: Lab) -> None:
    lab.put("gen-1", dryRun={})
    lab.step("gen-1")
    count(lab, "gen-1", sizes=[])
    lab.step("gen-1")
    assert "lacks the sizes that a dry run asks for" in lab.status("gen-1").stages[0].message


def test_only_a_result_of_resolve_has_sizes() -> None:
    with pytest.raises(ValueError, match="tells sizes"):
        StageResult.model_validate({"stage": "sft", "reason": "Succeeded", "sizes": [[1, 2]]})


def test_where_too_much_is_named_what_counts_is_looked_at() -> None:
    origins = [{"origin": "User", "uri": "pvc://data/x"}]
    spec = GenerationSpec.model_validate(
        generation_spec(
            data={
                "traffic": [{"name": f"t{i}", **origins[0]} for i in range(5)],
                "preferences": [{"name": f"p{i}", **origins[0]} for i in range(4)],
                "sft": [{"name": f"s{i}", "uri": "pvc://data/x"} for i in range(4)],
            },
            evaluation={"general": "pvc://data/g", "judgeModel": "pvc://m/j", "benchmarkTasks": "pvc://data/b"},
            curation={"diversity": {"embeddingModel": "pvc://m/e"}},
            dryRun={},
        )
    )
    rewards = [Input(name=f"reward-{i}", role=Role.REWARD, kind="Model", uri="pvc://m/r") for i in range(4)]
    resolve = dry_run.counting(resolve_generation("gen-1", spec), spec, Prerequisites(None, rewards, None, []))
    assert len(resolve.inputs) <= MAX_INPUTS
    assert {i.role for i in resolve.inputs} & {Role.JUDGE, Role.BENCHMARK} == set()
    fewer = dry_run.counting(resolve_generation("gen-1", spec), spec, Prerequisites(None, [], None, []))
    assert {i.role for i in fewer.inputs} >= {Role.JUDGE, Role.BENCHMARK}
