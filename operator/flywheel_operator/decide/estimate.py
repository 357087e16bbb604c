"""What a Generation would cost, from the sizes of its inputs: tokens, steps, arithmetic, GPU-hours.

The arithmetic of a transformer with N parameters is 2·N FLOPs per token forward and 4·N backward, so 6·N per trained
and 2·N per sampled or scored token (Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1;
attention over long contexts comes on top and is left out). GPU-hours are FLOPs / (peak · utilization · 3600): the share
of the peak that a job reaches is its model FLOPs utilization (Chowdhery et al. 2022, "PaLM", appendix B).

Rows are an upper bound: nothing is filtered out but the hold-out, as nothing is known yet of what the filters drop.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flywheel_contract.params import SamplingParams, TrainingParams
from flywheel_contract.stages import Origin, Stage
from flywheel_operator.model.generation import DryRunSpec, GenerationSpec

FORWARD: Final = 2
BACKWARD: Final = 4
ADAPTER_BACKWARD: Final = 2
"""With adapters the gradient still passes through every weight, but is computed for hardly any of them."""
_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True)
class Source:
    """A counted source of data."""

    rows: int
    tokens: int
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the dry run counted. `preferences` count both conversations of a pair."""

    traffic: Sequence[Source]
    preferences: Sequence[Source]
    sft: Sequence[Source]
    policy: int
    """Parameters of the parent."""
    rewards: int = 0
    """Parameters of all reward models together."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage would do."""

    stage: Stage
    rows: int
    tokens: int
    """Trained on or generated, prompts included."""
    steps: int | None
    gpu_hours: float
    hours: float | None
    """By the clock, on the GPUs that the runtime asks for; None without any."""


def estimate(spec: GenerationSpec, sizes: Sizes) -> list[Work]:
    """The work of each stage of the recipe, in their order. `spec.dry_run` must be set."""
    return _Estimate(spec, sizes, spec.dry_run or DryRunSpec()).stages()


class _Estimate:
    def __init__(self, spec: GenerationSpec, sizes: Sizes, dry: DryRunSpec) -> None:
        self._spec, self._sizes, self._dry = spec, sizes, dry
        holdout = spec.curation.holdout_fraction
        limit = spec.curation.max_conversations
        kept = {origin: 0.0 for origin in Origin}
        for source in sizes.traffic:
            kept[source.origin or Origin.USER] += source.rows
        if limit is not None:
            kept = {origin: min(rows, limit) for origin, rows in kept.items()}
        self._prompts = round(sum(kept.values()) * (1 - holdout))
        self._judging: Mapping[Origin, int] = {origin: round(rows * holdout) for origin, rows in kept.items()}
        rows = sum(s.rows for s in sizes.traffic)
        self._mean = sum(s.tokens for s in sizes.traffic) / rows if rows else 0.0

    def stages(self) -> list[Work]:
        recipe = self._spec.recipe
        found = []
        accepted, replied = self._prompts, 0
        if recipe.rejection_sampling is not None:
            sampling = recipe.rejection_sampling
            accepted, replied = min(self._prompts, sampling.max_prompts), sampling.max_new_tokens
            rows = accepted * sampling.samples_per_prompt
            found.append(self._sampled(Stage.REJECTION_SAMPLE, rows, sampling))
        if recipe.sft is not None:
            sources = [Source(accepted, round(accepted * (self._mean + replied))), *self._sizes.sft]
            found.append(self._trained(Stage.SFT, sources, recipe.sft))
        if recipe.dpo is not None:
            sampled = accepted if recipe.rejection_sampling is not None else 0
            pairs = [Source(sampled, round(2 * sampled * (self._mean + replied))), *self._sizes.preferences]
            # Beside the policy, its frozen reference reads every token.
            found.append(self._trained(Stage.DPO, pairs, recipe.dpo, beside=FORWARD * self._sizes.policy))
        if recipe.rl is not None:
            rl = recipe.rl
            rows = min(self._prompts, rl.max_prompts) * rl.num_generations
            source = Source(rows, round(rows * (min(self._mean, rl.max_length) + rl.max_new_tokens)))
            reference = FORWARD * self._sizes.policy if rl.beta > 0 else 0
            drawn = FORWARD * (self._sizes.policy + self._sizes.rewards)
            found.append(self._trained(Stage.RL, [source], rl, beside=reference, drawn=drawn))
        evaluation = self._spec.evaluation
        judged = sum(min(rows, evaluation.max_prompts_per_origin) for rows in self._judging.values())
        found.append(self._sampled(Stage.EVALUATE, 2 * judged, evaluation))
        return found

    def _sampled(self, stage: Stage, rows: int, params: SamplingParams) -> Work:
        """Replies drawn and scored by every reward model."""
        tokens = round(rows * (min(self._mean, params.max_prompt_tokens) + params.max_new_tokens))
        drawn = FORWARD * (self._sizes.policy + self._sizes.rewards) * tokens
        return self._work(stage, rows, tokens, None, 0.0, drawn)

    def _trained(
        self, stage: Stage, sources: Sequence[Source], params: TrainingParams, beside: int = 0, drawn: int = 0
    ) -> Work:
        """Steps on `sources`; `beside` and `drawn` are FLOPs per token of reading along and of sampling."""
        rows = sum(s.rows for s in sources)
        runtime = self._spec.runtime.of(stage)
        batch = params.batch_size * params.gradient_accumulation_steps * runtime.nodes * max(1, runtime.gpus)
        steps = params.max_steps or math.ceil(rows / batch * params.epochs)
        trained = steps * batch
        tokens = round(trained * sum(s.tokens for s in sources) / rows) if rows else 0
        backward = BACKWARD if params.lora is None else ADAPTER_BACKWARD
        again = FORWARD if params.gradient_checkpointing else 0
        each = (FORWARD + backward + again) * self._sizes.policy + beside
        return self._work(stage, rows, tokens, steps, float(each * tokens), float(drawn * tokens))

    def _work(self, stage: Stage, rows: int, tokens: int, steps: int | None, trained: float, drawn: float) -> Work:
        peak = self._dry.gpu_teraflops * 1e12 * _SECONDS
        gpu_hours = trained / (peak * self._dry.training_utilization) + drawn / (peak * self._dry.sampling_utilization)
        runtime = self._spec.runtime.of(stage)
        gpus = runtime.nodes * runtime.gpus
        return Work(stage, rows, tokens, steps, gpu_hours, gpu_hours / gpus if gpus else None)
