"""Which stages there are, and what each is told: StageSpecs from the snapshot and the outputs of earlier stages."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import TypeAdapter

from flywheel_contract.characters import Character
from flywheel_contract.filters import ScreeningParams
from flywheel_contract.params import (
    CurateParams,
    EvaluateParams,
    PoolPolicyParams,
    RejectionSampleParams,
    RewardModelParams,
    RewardStageParams,
)
from flywheel_contract.stage_spec import (
    CurateSpec,
    DpoSpec,
    EvaluateSpec,
    Input,
    RejectionSampleSpec,
    ResolveSpec,
    RewardModelSpec,
    RlSpec,
    SftSpec,
    StageSpec,
)
from flywheel_contract.stages import Role, Stage
from flywheel_operator.model.common import DataSource
from flywheel_operator.model.generation import GenerationSpec, RecipeSpec, RejectionSamplingSpec
from flywheel_operator.model.objects import RewardModel
from flywheel_operator.model.snapshot import Snapshot
from flywheel_operator.model.status import ModelRef, Output, StageStatus

PARENT_INPUT: Final = "parent"
REWARD_MODEL_STAGES: Final = (Stage.RESOLVE, Stage.REWARD_MODEL)


def generation_stages(recipe: RecipeSpec) -> list[Stage]:
    """The stages of a Generation in their order."""
    wanted = {
        Stage.REJECTION_SAMPLE: recipe.rejection_sampling,
        Stage.SFT: recipe.sft,
        Stage.DPO: recipe.dpo,
        Stage.RL: recipe.rl,
    }
    return [Stage.RESOLVE, Stage.CURATE, *(s for s, params in wanted.items() if params is not None), Stage.EVALUATE]


def resolve_generation(name: str, spec: GenerationSpec) -> ResolveSpec:
    """Everything that the spec names by URI, to be looked at and given a digest."""
    inputs = [
        *(_data(Role.TRAFFIC, source) for source in spec.data.traffic),
        *(_data(Role.PREFERENCES, source) for source in spec.data.preferences),
        *(
            Input(name=f"sft-{s.name}", role=Role.SFT_DATA, kind="Data", uri=s.uri, weight=s.weight)
            for s in spec.data.sft
        ),
        *(
            Input(name=f"pool-{p.name}", role=Role.POOL, kind="Model", uri=p.model)
            for p in (spec.recipe.rejection_sampling.pool if spec.recipe.rejection_sampling is not None else ())
            if p.model is not None
        ),
    ]
    if spec.evaluation.general is not None:
        inputs.append(Input(name="general", role=Role.GENERAL, kind="Data", uri=spec.evaluation.general))
    safety = spec.curation.safety
    if safety.enabled and safety.model is not None:
        inputs.append(Input(name="safety", role=Role.SAFETY, kind="Model", uri=safety.model))
    if spec.evaluation.judge_model is not None:
        inputs.append(Input(name="judge", role=Role.JUDGE, kind="Model", uri=spec.evaluation.judge_model))
    if spec.evaluation.benchmark_tasks is not None:
        inputs.append(Input(name="benchmarks", role=Role.BENCHMARK, kind="Data", uri=spec.evaluation.benchmark_tasks))
    diversity = spec.curation.diversity
    if diversity is not None and diversity.embedding_model is not None:
        inputs.append(Input(name="embedder", role=Role.EMBEDDER, kind="Model", uri=diversity.embedding_model))
    if spec.parent.model is not None:
        inputs.append(Input(name=PARENT_INPUT, role=Role.POLICY, kind="Model", uri=spec.parent.model))
    return ResolveSpec(
        owner=name, group=spec.lineage, artifacts=spec.artifacts.uri, inputs=inputs, style=spec.style, seed=spec.seed
    )


def resolve_reward_model(name: str, model: RewardModel) -> ResolveSpec:
    """As `resolve_generation`, of a RewardModel."""
    spec = model.spec
    inputs = [
        *(_data(Role.PREFERENCES, source) for source in spec.preferences),
        *(_data(Role.TRAFFIC, source) for source in spec.traffic),
        Input(name=PARENT_INPUT, role=Role.POLICY, kind="Model", uri=spec.base_model),
    ]
    return ResolveSpec(
        owner=name, group="reward-models", artifacts=spec.artifacts.uri, inputs=inputs, style=spec.style, seed=spec.seed
    )


def with_digests(inputs: Sequence[Input], resolved: Sequence[Output]) -> list[Input]:
    """The inputs with the digests that `resolve` answered.

    Raises:
        ValueError: one has none, which `resolve` never leaves out.
    """
    digests = {o.name: o.digest for o in resolved}
    missing = [i.name for i in inputs if i.name not in digests]
    if missing:
        raise ValueError(f"the resolve stage answered no digest for {', '.join(missing)}")
    return [i.model_copy(update={"digest": digests[i.name]}) for i in inputs]


def reward_model_spec(
    model: RewardModel, resolve: ResolveSpec, resolved: Sequence[Output], characters: list[Character]
) -> StageSpec:
    """The reward-model stage."""
    return RewardModelSpec(
        owner=resolve.owner,
        group=resolve.group,
        artifacts=resolve.artifacts,
        inputs=with_digests(resolve.inputs, resolved),
        characters=characters,
        style=model.spec.style,
        seed=model.spec.seed,
        screening=model.spec.curation,
        params=RewardStageParams(
            **{name: getattr(model.spec.training, name) for name in RewardModelParams.model_fields},
            type=model.spec.type,
            signal=model.spec.signal,
        ),
    )


def training_stage(stage: Stage, name: str, snapshot: Snapshot, done: Mapping[Stage, StageStatus]) -> StageSpec:
    """The StageSpec of any stage after `resolve`, from the snapshot and the outputs of the stages before it."""
    spec = snapshot.spec
    recipe = spec.recipe
    common: dict[str, Any] = {
        "owner": name,
        "group": spec.lineage,
        "artifacts": spec.artifacts.uri,
        "seed": spec.seed,
        "characters": snapshot.characters,
        "rerun": done[stage].rerun if stage in done else 0,
    }
    data = snapshot.inputs
    policy = _model("policy", Role.POLICY, policy_before(stage, snapshot, done))
    rewards = snapshot.rewards
    own_data = {
        "screening": _plain(ScreeningParams, spec.curation),
        "holdout_fraction": spec.curation.holdout_fraction,
    }
    match stage:
        case Stage.CURATE:
            inputs = [i for role in (Role.TRAFFIC, Role.EMBEDDER, Role.SAFETY) for i in _by_role(data, role)]
            return CurateSpec(**common, inputs=inputs, params=_plain(CurateParams, spec.curation))
        case Stage.REJECTION_SAMPLE if recipe.rejection_sampling is not None:
            pool = _by_role(data, Role.POOL)
            inputs = [_output(done, Stage.CURATE, "prompts", Role.PROMPTS), policy, *pool, *rewards]
            params = _rejection_sampling(recipe.rejection_sampling)
            return RejectionSampleSpec(**common, style=spec.style, inputs=inputs, params=params)
        case Stage.SFT if recipe.sft is not None:
            source = (
                _output(done, Stage.REJECTION_SAMPLE, "accepted", Role.ACCEPTED)
                if recipe.rejection_sampling is not None
                else _output(done, Stage.CURATE, "prompts", Role.PROMPTS)
            )
            own = _by_role(data, Role.SFT_DATA)
            inputs = [policy, source, *own, *_judging(done, own)]
            return SftSpec(**common, inputs=inputs, params=recipe.sft, **own_data)
        case Stage.DPO if recipe.dpo is not None:
            sampled = recipe.rejection_sampling is not None
            pairs = [_output(done, Stage.REJECTION_SAMPLE, "pairs", Role.PAIRS)] if sampled else []
            own = _by_role(data, Role.PREFERENCES)
            inputs = [policy, *pairs, *own, *_judging(done, own)]
            return DpoSpec(**common, style=spec.style, inputs=inputs, params=recipe.dpo, **own_data)
        case Stage.RL if recipe.rl is not None:
            parent = _model("parent", Role.PARENT, snapshot.parent)
            inputs = [_output(done, Stage.CURATE, "prompts", Role.PROMPTS), policy, parent, *rewards]
            return RlSpec(**common, inputs=inputs, params=recipe.rl)
        case Stage.EVALUATE:
            inputs = [
                _output(done, Stage.CURATE, "evaluation", Role.EVALUATION),
                policy,
                _model("baseline", Role.BASELINE, snapshot.baseline),
                *_others(snapshot, done),
                *_by_role(data, Role.GENERAL),
                *_by_role(data, Role.JUDGE),
                *_by_role(data, Role.BENCHMARK),
                *rewards,
                *([snapshot.pairwise] if snapshot.pairwise is not None else []),
            ]
            return EvaluateSpec(
                **common, style=spec.style, inputs=inputs, params=_plain(EvaluateParams, spec.evaluation)
            )
    raise ValueError(f"stage {stage} is not part of the recipe")


def _others(snapshot: Snapshot, done: Mapping[Stage, StageStatus]) -> list[Input]:
    """For evaluation: the parent where something else is in production, and the models of all stages but the last."""
    parent = snapshot.parent
    apart = parent.digest != snapshot.baseline.digest
    trained = [s for s in generation_stages(snapshot.spec.recipe) if s in (Stage.SFT, Stage.DPO, Stage.RL)]
    between = ((s, _find(done, s, "model")) for s in trained[:-1])
    return [
        *([_model("parent", Role.PARENT, parent)] if apart else []),
        *(_model(s.value, Role.CHECKPOINT, ModelRef(uri=o.uri, digest=o.digest)) for s, o in between),
    ]


def policy_before(stage: Stage, snapshot: Snapshot, done: Mapping[Stage, StageStatus]) -> ModelRef:
    """The model that `stage` starts from: the last trained one, else the parent."""
    order = generation_stages(snapshot.spec.recipe)
    for earlier in reversed(order[: order.index(stage)]):
        if earlier in (Stage.SFT, Stage.DPO, Stage.RL):
            output = _find(done, earlier, "model")
            return ModelRef(uri=output.uri, digest=output.digest)
    return snapshot.parent


def _plain(model: type[Any], value: Any) -> Any:  # noqa: ANN401 -- a params model and a subclass' instance
    """`value` as the contract's own model, without what the API adds to it or to what it holds."""
    adapter = TypeAdapter(model)
    return adapter.validate_python(adapter.dump_python(value))


def _rejection_sampling(spec: RejectionSamplingSpec) -> RejectionSampleParams:
    """The stage's parameters: where the pool's models lie is said by its inputs."""
    plain: RejectionSampleParams = _plain(RejectionSampleParams, spec)
    return plain.model_copy(update={"pool": [_plain(PoolPolicyParams, policy) for policy in spec.pool]})


def _by_role(inputs: Sequence[Input], role: Role) -> list[Input]:
    return [i for i in inputs if i.role is role]


def _judging(done: Mapping[Stage, StageStatus], own: Sequence[Input]) -> list[Input]:
    """The conversations that judge the candidate, for a stage with data of its own: it leaves their users out."""
    return [_output(done, Stage.CURATE, "evaluation", Role.EVALUATION)] if own else []


def _model(name: str, role: Role, ref: ModelRef) -> Input:
    return Input(name=name, role=role, kind="Model", uri=ref.uri, digest=ref.digest)


def _find(done: Mapping[Stage, StageStatus], stage: Stage, output: str) -> Output:
    for candidate in done[stage].outputs:
        if candidate.name == output:
            return candidate
    raise ValueError(f"stage {stage} left no output {output}")


def _data(role: Role, source: DataSource) -> Input:
    """A data source of the spec as an input, named by its role."""
    name = f"{role.value}-{source.name}"
    return Input(
        name=name,
        role=role,
        kind="Data",
        uri=source.uri,
        origin=source.origin,
        dates=source.dates,
        feedback=source.feedback,
    )


def _output(done: Mapping[Stage, StageStatus], stage: Stage, output: str, role: Role) -> Input:
    found = _find(done, stage, output)
    return Input(name=output, role=role, kind="Data", uri=found.uri, digest=found.digest)
