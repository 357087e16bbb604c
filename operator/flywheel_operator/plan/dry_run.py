"""A dry run: everything is resolved and counted, nothing is trained, and the verdict says what it would cost."""

from collections.abc import Sequence
from typing import Final

from flywheel_contract.stage_spec import MAX_INPUTS, Input, ResolveSpec
from flywheel_contract.stages import Role
from flywheel_operator.decide.estimate import Sizes, Source, Work, estimate
from flywheel_operator.model.generation import GenerationSpec
from flywheel_operator.model.phases import Verdict
from flywheel_operator.model.status import EstimatedStage, EstimateStatus, GenerationStatus, Output, VerdictStatus
from flywheel_operator.plan import reasons
from flywheel_operator.plan.draft import Draft
from flywheel_operator.plan.prerequisites import Prerequisites
from flywheel_operator.plan.stage_specs import PARENT_INPUT

_COUNTED: Final = (Role.TRAFFIC, Role.PREFERENCES, Role.SFT_DATA, Role.GENERAL, Role.POLICY, Role.REWARD)
"""What the estimate is made of. The others are looked at, too, as long as all fit into a result."""


def counting(resolve: ResolveSpec, spec: GenerationSpec, found: Prerequisites) -> ResolveSpec:
    """`resolve` as a dry run has it: it counts, and so needs the parent, whatever names it, and the reward models."""
    inputs = [*resolve.inputs, *found.rewards]
    if found.parent is not None:
        parent = found.parent
        inputs.append(
            Input(name=PARENT_INPUT, role=Role.POLICY, kind="Model", uri=parent.uri, digest=parent.digest or None)
        )
    if len(inputs) > MAX_INPUTS:
        inputs = [i for i in inputs if i.role in _COUNTED]
    stages = (spec.recipe.sft, spec.recipe.dpo, spec.recipe.rl)
    longest = max(params.max_length for params in stages if params is not None)
    params = resolve.params.model_copy(update={"count": True, "max_tokens": longest})
    return resolve.model_copy(update={"inputs": inputs, "params": params, "characters": found.characters})


def conclude(draft: Draft[GenerationStatus], spec: GenerationSpec, resolve: ResolveSpec) -> EstimateStatus:
    """Writes the estimate and the verdict into the status."""
    counted = draft.status.stages[0].outputs
    works = estimate(spec, _sizes(resolve.inputs, counted))
    found = EstimateStatus(gpu_hours=_rounded(sum(w.gpu_hours for w in works)), stages=[_shown(w) for w in works])
    said = table(counted, found.stages)
    verdict = VerdictStatus(result=Verdict.DRY_RUN, reason=reasons.DRY_RUN, message=said)
    draft.set(estimate=found, verdict=verdict)
    return found


def _shown(work: Work) -> EstimatedStage:
    return EstimatedStage(
        name=work.stage,
        rows=work.rows,
        tokens=work.tokens,
        steps=work.steps,
        gpu_hours=_rounded(work.gpu_hours),
        hours=None if work.hours is None else _rounded(work.hours),
    )


def in_short(works: Sequence[EstimatedStage]) -> str:
    """The estimate in one line, for conditions and Events."""
    each = ", ".join(f"{w.name.value} {w.gpu_hours:.3g}" for w in works)
    return f"nothing was trained; about {sum(w.gpu_hours for w in works):.3g} GPU-hours: {each}"


def table(counted: Sequence[Output], works: Sequence[EstimatedStage]) -> str:
    """The numbers in lines and columns, for `kubectl describe`."""
    lines = [("INPUT", "ROWS", "TOKENS", "PARAMETERS", "")]
    lines += [(o.name, _count(o.rows or None), _count(o.tokens), _count(o.parameters), "") for o in counted]
    lines += [("STAGE", "ROWS", "TOKENS", "STEPS", "GPU-HOURS")]
    lines += [(w.name.value, _count(w.rows), _count(w.tokens), _count(w.steps), f"{w.gpu_hours:.3g}") for w in works]
    lines += [("in all", "", "", "", f"{sum(w.gpu_hours for w in works):.3g}")]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(["nothing was trained; it would be about:", *text])


def _sizes(inputs: Sequence[Input], counted: Sequence[Output]) -> Sizes:
    by_name = {o.name: o for o in counted}

    def sources(role: Role) -> list[Source]:
        found = [(i, by_name[i.name]) for i in inputs if i.role is role]
        return [Source(o.rows or 0, o.tokens or 0, i.origin) for i, o in found]

    def parameters(role: Role) -> int:
        return sum(by_name[i.name].parameters or 0 for i in inputs if i.role is role)

    return Sizes(
        traffic=sources(Role.TRAFFIC),
        preferences=sources(Role.PREFERENCES),
        sft=sources(Role.SFT_DATA),
        policy=parameters(Role.POLICY),
        rewards=parameters(Role.REWARD),
    )


def _rounded(hours: float) -> float:
    """Three significant digits: it is an estimate."""
    return float(f"{hours:.3g}")


def _count(number: int | None) -> str:
    """1234567 -> 1.23M; empty where there is none."""
    if number is None:
        return "-"
    for limit, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return str(number)
