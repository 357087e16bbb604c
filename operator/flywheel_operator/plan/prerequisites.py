"""What a Generation needs before it may start, and the words for what is missing."""

from dataclasses import dataclass
from typing import Final, TypeVar

from flywheel_contract.characters import SYSTEM_PROMPT_MAX_LENGTH, Character
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_spec import Input, RewardScale
from flywheel_contract.stages import RewardModelType, Role
from flywheel_operator.decide.gates import SIGNAL_STABILITY, describe_failures
from flywheel_operator.decide.production import last_time
from flywheel_operator.model.objects import Generation, RewardModel
from flywheel_operator.model.observed import ObservedABTest, ObservedGeneration, ObservedRewardModel
from flywheel_operator.model.phases import RewardModelPhase, Verdict
from flywheel_operator.model.serving import CharacterSpec
from flywheel_operator.model.status import GenerationStatus, ModelRef
from flywheel_operator.plan import reasons

T = TypeVar("T")

WAIT_SECONDS: Final = 30.0
"""How often a waiting object looks by itself; what it waits for mostly wakes it too."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Something is not there (yet)."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Prerequisites:
    """All that a Generation refers to, as it is now. `parent` is None where it is a URI (resolve looks at it)."""

    parent: ModelRef | None
    rewards: list[Input]
    pairwise: Input | None
    characters: list[Character]


def check(observed: ObservedGeneration) -> Prerequisites | Missing:
    """The prerequisites, or the first that is missing."""
    generation = observed.generation
    cycle = parent_cycle(observed)
    if cycle:
        return Missing(
            reasons.PARENT_CYCLE,
            f"spec.parent.generation leads back to itself: {' -> '.join(cycle)}; name another parent",
        )
    if observed.service_taken:
        return Missing(reasons.SERVICE_NAME_TAKEN, service_taken(generation.spec.lineage))
    mate = serves_without_service(observed)
    if mate is not None:
        return Missing(reasons.SERVICE_GONE, service_gone(generation.spec.lineage, mate))
    parent = _parent(observed)
    if isinstance(parent, Missing):
        return parent
    rewards = _rewards(observed)
    if isinstance(rewards, Missing):
        return rewards
    pairwise = _pairwise(observed)
    if isinstance(pairwise, Missing):
        return pairwise
    characters = resolve_characters(generation.spec.characters, observed)
    if isinstance(characters, Missing):
        return characters
    return Prerequisites(parent, rewards, pairwise, characters)


def in_production(status: GenerationStatus) -> bool:
    """Whether a Generation's own status says that it is in production. One that serves the users of a test is not."""
    return any(
        c.type == reasons.SERVING and c.status == "True" and c.reason in (reasons.PRODUCTION, reasons.ROLLING_BACK)
        for c in status.conditions
    )


def serves_without_service(observed: ObservedGeneration) -> str | None:
    """Another Generation of the lineage that serves, where the lineage's Service was deleted: it brings it back."""
    if observed.production is not None:
        return None
    me = observed.generation
    for name, other in sorted(observed.generations.items()):
        kin = name != me.metadata.name and other.spec.lineage == me.spec.lineage
        if in_production(other.status) and kin and other.metadata.deletion_timestamp is None:
            return name
    return None


def service_taken(lineage: str) -> str:
    """The sentence for a Service of the lineage's name that someone else made."""
    return f"a Service {lineage} exists that is not ours: rename it, or choose another spec.lineage"


def service_gone(lineage: str, mate: str) -> str:
    """The sentence for a Service that someone deleted."""
    return f"the Service {lineage} was deleted while {mate} serves: waits until {mate} has brought it back"


def served_before(observed: ObservedGeneration) -> str | None:
    """A sentence, where a Generation of this name was in production already and something else is now.

    An object that Git creates anew must not train and promote itself over what came after it.
    """
    production = observed.production
    if production is None:
        return None
    name = observed.generation.metadata.name
    last = last_time(production.record, name)
    if last is None or last.until is None:
        return None
    now = production.record.serving.generation if production.record.serving else "nothing"
    how = last.ended.value if last.ended else "ended"
    return (
        f"{name} was in production from {last.since:%Y-%m-%dT%H:%MZ} to {last.until:%Y-%m-%dT%H:%MZ} ({how}); "
        f"{now} serves now and is not replaced by it. To go back to it, annotate the serving Generation with rollback; "
        "to train it anew, give it another name"
    )


def parent_cycle(observed: ObservedGeneration) -> list[str]:
    """The names along a cycle of parents that this Generation leads into; empty where there is none."""
    path = [observed.generation.metadata.name]
    current: Generation | None = observed.generation
    while current is not None and current.spec.parent.generation is not None:
        name = current.spec.parent.generation
        if name in path:
            return [*path[path.index(name) :], name]
        path.append(name)
        current = observed.generations.get(name)
    return []


def _parent(observed: ObservedGeneration) -> ModelRef | Missing | None:
    name = observed.generation.spec.parent.generation
    if name is None:
        return None
    parent = observed.generations.get(name)
    if parent is None:
        return Missing(
            reasons.PARENT_NOT_FOUND, f"waits for the Generation {name} (spec.parent.generation) to be created"
        )
    verdict = parent.status.verdict
    if verdict is None or verdict.result is not Verdict.PROMOTED or parent.status.candidate is None:
        came_out = f", verdict {verdict.result.value}" if verdict else ""
        return Missing(
            reasons.PARENT_NOT_PROMOTED,
            f"waits for the Generation {name} (spec.parent.generation) to be promoted; "
            f"it is {parent.status.phase.value}{came_out}",
        )
    return parent.status.candidate


def _rewards(observed: ObservedGeneration) -> list[Input] | Missing:
    """The terms of the composite reward, each with its weight and scale."""
    inputs = []
    generation = observed.generation
    for reference in generation.spec.rewards:
        name = reference.reward_model
        made = _trained(observed, name, "spec.rewards")
        if isinstance(made, Missing):
            return made
        model = observed.reward_models[name]
        unfit = _unfit_to_select(model) or _saw_judges(model, generation)
        if unfit is not None:
            return unfit
        inputs.append(
            Input(
                name=f"reward-{name}",
                role=Role.REWARD,
                kind="Model",
                uri=made.uri,
                digest=made.digest,
                weight=reference.weight,
                scale=_scale(model),
            )
        )
    return inputs


def _pairwise(observed: ObservedGeneration) -> Input | Missing | None:
    """The pairwise judge, where one is named."""
    reference = observed.generation.spec.evaluation.pairwise
    if reference is None:
        return None
    name = reference.reward_model
    made = _trained(observed, name, "spec.evaluation.pairwise")
    if isinstance(made, Missing):
        return made
    model = observed.reward_models[name]
    kind = model.spec.type
    if kind is not RewardModelType.PAIRWISE:
        return Missing(
            reasons.REWARD_MODEL_UNFIT,
            f"spec.evaluation.pairwise refuses the RewardModel {name}: it is of type {kind.value} and reads one reply "
            "at a time; name one of type Pairwise",
        )
    saw = _saw_judges(model, observed.generation)
    if saw is not None:
        return saw
    return Input(name=f"pairwise-{name}", role=Role.PAIRWISE, kind="Model", uri=made.uri, digest=made.digest)


def _trained(observed: ObservedGeneration, name: str, field: str) -> ModelRef | Missing:
    """What a RewardModel has left, or why there is nothing to use."""
    model = observed.reward_models.get(name)
    if model is None:
        return Missing(reasons.REWARD_MODEL_NOT_FOUND, f"waits for the RewardModel {name} to be created")
    status = model.status
    if status.phase is RewardModelPhase.READY and status.model is not None:
        return status.model
    if status.phase is RewardModelPhase.GATED:
        failed = [g for g in status.gates if g.verdict != "Passed"]
        unstable = any(g.metric in {m.value for m in SIGNAL_STABILITY} for g in failed)
        return Missing(
            reasons.SIGNAL_NOT_STABLE if unstable else reasons.REWARD_MODEL_NOT_READY,
            f"{field} refuses the RewardModel {name}, which did not pass its gates ({describe_failures(failed)}); "
            "take it out, or name another",
        )
    progress = f", {status.stage} {status.progress}" if status.stage else ""
    return Missing(
        reasons.REWARD_MODEL_NOT_READY,
        f"waits for the RewardModel {name} to be Ready; it is {status.phase.value}{progress}",
    )


def _unfit_to_select(model: RewardModel) -> Missing | None:
    """Why a trained model may have no say in what is selected, or None where it may."""
    name = model.metadata.name
    if model.spec.type is RewardModelType.PAIRWISE:
        return Missing(
            reasons.REWARD_MODEL_UNFIT,
            f"spec.rewards refuses the RewardModel {name}: it is of type Pairwise, which is for evaluation only; name "
            "it in spec.evaluation.pairwise",
        )
    if model.spec.type is RewardModelType.USER_SIGNAL:
        held = {g.metric for g in model.status.gates if g.verdict == "Passed"}
        unknown = [m.value for m in SIGNAL_STABILITY if m.value not in held]
        if unknown:
            return Missing(
                reasons.SIGNAL_NOT_STABLE,
                f"spec.rewards refuses the RewardModel {name}: no gate of it holds {' and '.join(unknown)}, so nobody "
                "knows whether the signal is stable; keep its default gates, or set your own on these",
            )
    return None


def _saw_judges(model: RewardModel, generation: Generation) -> Missing | None:
    """Whether the reward model learned from users who are to judge the candidate.

    The same hash splits both: of two shares the smaller one's users are among the larger one's.
    """
    held_out, judging = model.spec.training.holdout_fraction, generation.spec.curation.holdout_fraction
    if held_out >= judging:
        return None
    return Missing(
        reasons.REWARD_MODEL_SAW_JUDGES,
        f"the RewardModel {model.metadata.name} learned from users who are to judge: it holds out {held_out:g} of the "
        f"users, spec.curation.holdoutFraction is {judging:g}; lower that, or name a RewardModel with a larger "
        "training.holdoutFraction",
    )


def _scale(model: RewardModel) -> RewardScale | None:
    """Mean and deviation of its scores on its own held-out rows, as it measured them."""
    measured = {m.name: m.value for stage in model.status.stages for m in stage.metrics}
    mean, std = measured.get(Metric.REWARD_MEAN.value), measured.get(Metric.REWARD_STD.value)
    return RewardScale(mean=mean, std=std) if mean is not None and std is not None and std > 0 else None


def resolve_characters(
    specs: list[CharacterSpec], observed: ObservedGeneration | ObservedRewardModel | ObservedABTest
) -> list[Character] | Missing:
    """The characters with their prompts read from the ConfigMaps."""
    characters = []
    for spec in specs:
        prompt, source = spec.system_prompt, spec.system_prompt_from
        if source is not None:
            prompt = observed.config_maps.get(source.name, {}).get(source.key)
            if not prompt:
                return Missing(
                    reasons.CHARACTER_NOT_FOUND,
                    f"waits for the ConfigMap {source.name} with the key {source.key}, "
                    f"the system prompt of the character {spec.name}",
                )
        prompt = prompt or ""
        if len(prompt) > SYSTEM_PROMPT_MAX_LENGTH:
            return Missing(
                reasons.CHARACTER_INVALID,
                f"the system prompt of the character {spec.name} has {len(prompt)} characters; "
                f"at most {SYSTEM_PROMPT_MAX_LENGTH} are allowed",
            )
        characters.append(spec.with_prompt(prompt))
    return characters
