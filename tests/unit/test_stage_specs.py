"""What each stage is told: inputs, in their roles, from the snapshot and from the stages before."""

from typing import Any

import pytest

from flywheel_contract.characters import Character
from flywheel_contract.curation_params import DiversityParams
from flywheel_contract.params import (
    CurateParams,
    EvaluateParams,
    PoolPolicyParams,
    RejectionSampleParams,
    RewardStageParams,
    SignalParams,
)
from flywheel_contract.stage_spec import DpoSpec, Input, SftSpec
from flywheel_contract.stages import OUTPUTS, RewardModelType, Role, Stage
from flywheel_operator.model.generation import GenerationSpec
from flywheel_operator.model.snapshot import Snapshot
from flywheel_operator.model.status import ModelRef, Output, StageStatus
from flywheel_operator.plan.stage_specs import (
    generation_stages,
    policy_before,
    resolve_generation,
    resolve_reward_model,
    reward_model_spec,
    training_stage,
    with_digests,
)
from tests.unit.build import digest, generation_spec, reward_model
from tests.unit.build import reward_model_spec as reward_model_spec_raw

ALL: dict[str, Any] = {
    "recipe": {"rejectionSampling": {}, "sft": {}, "dpo": {}, "rl": {}},
    "rewards": [{"rewardModel": "rm-1", "weight": 2}],
    "data": {
        "traffic": [{"name": "chats", "origin": "User", "uri": "pvc://data/chats"}],
        "preferences": [{"name": "pairs", "origin": "Internal", "uri": "pvc://data/pairs"}],
        "sft": [{"name": "mine", "uri": "pvc://data/mine"}],
    },
    "evaluation": {"general": "pvc://data/general", "maxPromptsPerOrigin": 7},
    "curation": {"holdoutFraction": 0.5},
}
REWARD = Input(name="reward-rm-1", role=Role.REWARD, kind="Model", uri="pvc://rm/1", digest=digest("rm"), weight=2)
PARENT = ModelRef(uri="hf://owner/base", digest=digest("base"))
PRODUCTION = ModelRef(generation="gen-0", uri="pvc://models/0", digest=digest("production"))


def snapshot(**changes: Any) -> Snapshot:  # noqa: ANN401 -- fields of the spec
    spec = GenerationSpec.model_validate(generation_spec(**ALL | changes))
    asked = resolve_generation("gen-1", spec).inputs
    resolved = [Output(name=i.name, uri=i.uri, digest=digest(i.name)) for i in asked]
    return Snapshot(
        spec=spec,
        parent=PARENT,
        baseline=PRODUCTION,
        inputs=[i for i in with_digests(asked, resolved) if i.name != "parent"],
        rewards=[REWARD],
        characters=[Character(name="luna", system_prompt="You are Luna.")],
        trainer_image="trainer:1",
    )


SAFE = {"safety": {"model": "hf://owner/guard", "words": [{"category": "spoiler", "phrases": ["he dies"]}]}}


def test_a_safety_model_is_resolved_like_every_other_input_and_only_curation_reads_it() -> None:
    taken = snapshot(curation=SAFE)
    curate = training_stage(Stage.CURATE, "gen-1", taken, {})
    assert [i.role for i in curate.inputs] == [Role.TRAFFIC, Role.SAFETY]
    model = curate.inputs[-1]
    assert (model.kind, model.uri, model.digest) == ("Model", "hf://owner/guard", digest("safety"))
    assert isinstance(curate.params, CurateParams)
    assert curate.params.safety.words[0].phrases == ["he dies"]
    assert not hasattr(curate.params.safety, "model"), "where it lies is no parameter: the digest says what it is"
    off = snapshot(curation={"safety": {**SAFE["safety"], "enabled": False}})
    assert [i.role for i in training_stage(Stage.CURATE, "gen-1", off, {}).inputs] == [Role.TRAFFIC]


def done(*stages: Stage) -> dict[Stage, StageStatus]:
    return {
        s: StageStatus(
            name=s,
            outputs=[Output(name=n, uri=f"pvc://out/{s.value}/{n}", digest=digest(f"{s}/{n}")) for n in OUTPUTS[s]],
        )
        for s in stages
    }


def told(stage: Stage, given: Snapshot) -> dict[str, tuple[Role, str]]:
    order = generation_stages(given.spec.recipe)
    spec = training_stage(stage, "gen-1", given, done(*order[: order.index(stage)]))
    assert spec.stage is stage
    assert (spec.owner, spec.group, spec.artifacts) == ("gen-1", "luna", "pvc://artifacts/runs")
    assert [c.name for c in spec.characters] == ["luna"]
    assert all(i.digest for i in spec.inputs)
    return {i.name: (i.role, i.uri) for i in spec.inputs}


def test_the_whole_recipe() -> None:
    given = snapshot()
    assert generation_stages(given.spec.recipe) == [
        Stage.RESOLVE, Stage.CURATE, Stage.REJECTION_SAMPLE, Stage.SFT, Stage.DPO, Stage.RL, Stage.EVALUATE,
    ]  # fmt: skip
    reward = {"reward-rm-1": (Role.REWARD, "pvc://rm/1")}
    prompts = {"prompts": (Role.PROMPTS, "pvc://out/curate/prompts")}

    def policy(stage: str) -> dict[str, tuple[Role, str]]:
        return {"policy": (Role.POLICY, f"pvc://out/{stage}/model")}

    parent = {"policy": (Role.POLICY, "hf://owner/base")}
    assert told(Stage.CURATE, given) == {"traffic-chats": (Role.TRAFFIC, "pvc://data/chats")}
    assert told(Stage.REJECTION_SAMPLE, given) == prompts | parent | reward
    judging = {"evaluation": (Role.EVALUATION, "pvc://out/curate/evaluation")}
    # Data beside the curated may come from the people who judge: the stage is told who they are.
    assert told(Stage.SFT, given) == parent | judging | {
        "accepted": (Role.ACCEPTED, "pvc://out/rejection-sample/accepted"),
        "sft-mine": (Role.SFT_DATA, "pvc://data/mine"),
    }
    assert told(Stage.DPO, given) == policy("sft") | judging | {
        "pairs": (Role.PAIRS, "pvc://out/rejection-sample/pairs"),
        "preferences-pairs": (Role.PREFERENCES, "pvc://data/pairs"),
    }
    to_measure = {"parent": (Role.PARENT, "hf://owner/base")}
    assert told(Stage.RL, given) == prompts | policy("dpo") | to_measure | reward
    assert told(Stage.EVALUATE, given) == policy("rl") | reward | judging | {
        # The models of the stages between, for style and divergence along the way.
        "sft": (Role.CHECKPOINT, "pvc://out/sft/model"),
        "dpo": (Role.CHECKPOINT, "pvc://out/dpo/model"),
        "parent": (Role.PARENT, "hf://owner/base"),
        "baseline": (Role.BASELINE, "pvc://models/0"),
        "general": (Role.GENERAL, "pvc://data/general"),
    }


def test_each_stage_starts_from_the_model_before_it() -> None:
    for recipe, stage, uri in [
        ({"sft": {}}, Stage.SFT, "hf://owner/base"),
        ({"sft": {}}, Stage.EVALUATE, "pvc://out/sft/model"),
        ({"dpo": {}}, Stage.DPO, "hf://owner/base"),
        ({"sft": {}, "rl": {}}, Stage.RL, "pvc://out/sft/model"),
        ({"sft": {}, "dpo": {}}, Stage.EVALUATE, "pvc://out/dpo/model"),
    ]:
        given = snapshot(recipe=recipe)
        order = generation_stages(given.spec.recipe)
        assert policy_before(stage, given, done(*order[: order.index(stage)])).uri == uri


def test_the_parent_is_told_once_where_it_is_the_baseline() -> None:
    given = snapshot(recipe={"sft": {}}).model_copy(update={"baseline": PARENT})
    inputs = told(Stage.EVALUATE, given)
    assert inputs["baseline"] == (Role.BASELINE, "hf://owner/base")
    assert "parent" not in inputs
    assert Role.CHECKPOINT not in {role for role, _ in inputs.values()}, "the only stage's model is the candidate"


def test_a_judge_and_benchmark_tasks_are_inputs() -> None:
    evaluation = {"judge": {}, "judgeModel": "pvc://models/judge", "benchmarks": {"tasks": ["sums"]},
                  "benchmarkTasks": "pvc://data/tasks"}  # fmt: skip
    inputs = told(Stage.EVALUATE, snapshot(evaluation=evaluation))
    assert inputs["judge"] == (Role.JUDGE, "pvc://models/judge")
    assert inputs["benchmarks"] == (Role.BENCHMARK, "pvc://data/tasks")


def test_without_rejection_sampling_sft_reads_the_prompts_and_dpo_the_given_pairs() -> None:
    given = snapshot(recipe={"sft": {}, "dpo": {}})
    assert told(Stage.SFT, given)["prompts"] == (Role.PROMPTS, "pvc://out/curate/prompts")
    assert "pairs" not in told(Stage.DPO, given)


def test_params_are_the_contracts_own() -> None:
    curate = training_stage(Stage.CURATE, "gen-1", snapshot(), {})
    assert curate.params == CurateParams(holdout_fraction=0.5)
    embedder = {"curation": {"diversity": {"embeddingModel": "hf://owner/embedder", "keepFraction": 0.5}}}
    curate = training_stage(Stage.CURATE, "gen-1", snapshot(**embedder), {})
    assert curate.params == CurateParams(diversity=DiversityParams(keep_fraction=0.5))
    assert type(curate.params.diversity) is DiversityParams
    assert told(Stage.CURATE, snapshot(**embedder))["embedder"] == (Role.EMBEDDER, "hf://owner/embedder")
    assert "embedder" not in told(Stage.CURATE, snapshot(curation={"diversity": {}}))
    evaluate = training_stage(Stage.EVALUATE, "gen-1", snapshot(recipe={"sft": {}}), done(Stage.CURATE, Stage.SFT))
    assert evaluate.params == EvaluateParams(max_prompts_per_origin=7)
    assert type(evaluate.params) is EvaluateParams, "general is an input, not a parameter"


def test_a_pools_models_are_inputs_and_its_endpoints_parameters() -> None:
    endpoint = {"url": "https://host/v1", "model": "big", "apiKeyEnv": "KEY"}
    pool = [{"name": "large", "model": "hf://owner/large"}, {"name": "hosted", "endpoint": endpoint}]
    given = snapshot(recipe={"rejectionSampling": {"pool": pool, "samplesPerPrompt": 3}, "sft": {}})
    assert told(Stage.REJECTION_SAMPLE, given)["pool-large"] == (Role.POOL, "hf://owner/large")
    spec = training_stage(Stage.REJECTION_SAMPLE, "gen-1", given, done(Stage.CURATE))
    assert spec.params == RejectionSampleParams.model_validate(
        {"samplesPerPrompt": 3, "pool": [{"name": "large"}, {"name": "hosted", "endpoint": endpoint}]}
    )
    assert type(spec.params.pool[0]) is PoolPolicyParams, "where a model lies is its input's business"


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.DPO])
def test_a_stage_with_data_of_ones_own_is_told_who_is_held_out(stage: Stage) -> None:
    """Whoever has no traffic this time is not among the evaluation's rows, and judges the next generation."""
    given = snapshot()
    order = generation_stages(given.spec.recipe)
    spec = training_stage(stage, "gen-1", given, done(*order[: order.index(stage)]))
    assert isinstance(spec, SftSpec | DpoSpec)
    assert spec.holdout_fraction == 0.5


def test_a_source_keeps_its_weight_in_the_mixture() -> None:
    data = ALL["data"] | {"sft": [{"name": "mine", "uri": "pvc://data/mine", "weight": 0.25}]}
    spec = training_stage(Stage.SFT, "gen-1", snapshot(data=data), done(Stage.CURATE, Stage.REJECTION_SAMPLE))
    assert {i.name: i.weight for i in spec.inputs}["sft-mine"] == 0.25


def test_what_cannot_be_told() -> None:
    given = snapshot(recipe={"sft": {}})
    for stage in (Stage.DPO, Stage.RL, Stage.REJECTION_SAMPLE, Stage.RESOLVE):
        with pytest.raises(ValueError, match=r"not in list|not part of the recipe"):
            training_stage(stage, "gen-1", given, done(Stage.CURATE))
    with pytest.raises(ValueError, match="left no output evaluation"):
        training_stage(Stage.EVALUATE, "gen-1", given, done(Stage.SFT) | {Stage.CURATE: StageStatus(name=Stage.CURATE)})
    with pytest.raises(ValueError, match="no digest for traffic-chats"):
        with_digests(resolve_generation("gen-1", given.spec).inputs, [])


def test_a_parent_by_name_is_not_looked_at_by_uri() -> None:
    spec = GenerationSpec.model_validate(generation_spec(parent={"generation": "gen-0"}))
    assert [i.name for i in resolve_generation("gen-1", spec).inputs] == ["traffic-chats"]


def test_a_pairwise_judge_is_told_to_the_evaluation_alone() -> None:
    judge = Input(name="pairwise-pw", role=Role.PAIRWISE, kind="Model", uri="pvc://rm/pw", digest=digest("pw"))
    given = snapshot().model_copy(update={"pairwise": judge})
    assert told(Stage.EVALUATE, given)["pairwise-pw"] == (Role.PAIRWISE, "pvc://rm/pw")
    for stage in (Stage.REJECTION_SAMPLE, Stage.RL):
        assert "pairwise-pw" not in told(stage, given)


def test_a_model_of_a_signal_reads_traffic() -> None:
    traffic = [{"name": "chats", "origin": "User", "uri": "pvc://data/chats"}]
    raw = reward_model_spec_raw(type="UserSignal", signal={"name": "continued"}, traffic=traffic, preferences=[])
    model = reward_model(spec=raw)
    resolve = resolve_reward_model("rm-1", model)
    assert {i.name: i.role for i in resolve.inputs} == {"traffic-chats": Role.TRAFFIC, "parent": Role.POLICY}
    resolved = [Output(name=i.name, uri=i.uri, digest=digest(i.name)) for i in resolve.inputs]
    spec = reward_model_spec(model, resolve, resolved, [])
    assert isinstance(spec.params, RewardStageParams)
    assert spec.params.type is RewardModelType.USER_SIGNAL
    assert spec.params.signal == SignalParams(name="continued")


def test_a_reward_model_reads_pairs_and_its_base() -> None:
    model = reward_model()
    resolve = resolve_reward_model("rm-1", model)
    assert {i.name: i.role for i in resolve.inputs} == {"preferences-pairs": Role.PREFERENCES, "parent": Role.POLICY}
    resolved = [Output(name=i.name, uri=i.uri, digest=digest(i.name)) for i in resolve.inputs]
    spec = reward_model_spec(model, resolve, resolved, [Character(name="luna", system_prompt="x")])
    assert spec.stage is Stage.REWARD_MODEL
    assert [i.digest for i in spec.inputs] == [digest("preferences-pairs"), digest("parent")]
    assert spec.group == "reward-models"
