"""Importance sampling between the sampler and the learner of GRPO.

The policy gradient is an expectation under the learner; its samples come from whatever generated them. Even where both
hold the same weights they need not give the same probabilities: generation runs with a cache, padded to the left, often
in another arithmetic. Each token's term is therefore weighted by p(learner) / p(sampler), bounded from above (Ionides,
"Truncated Importance Sampling", 2008, for the truncation; masking leaves out what the bound would cut).

With vLLM, TRL does it. Where the learner samples itself it does not, and `SelfSamplingGRPO` below does.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from flywheel_contract.params import ImportanceSampling
from flywheel_trainer.data.rows import Message
from flywheel_trainer.prompts import render, token_ids
from flywheel_trainer.sampling import left_padded

WEIGHT: Final = "sampling/importance_sampling_ratio/mean"
"""The logged mean weight, by the name that TRL has for its own."""

TRL_MODES: Final = {
    ImportanceSampling.TOKEN_TRUNCATE: "token_truncate",
    ImportanceSampling.TOKEN_MASK: "token_mask",
    ImportanceSampling.SEQUENCE_TRUNCATE: "sequence_truncate",
    ImportanceSampling.SEQUENCE_MASK: "sequence_mask",
}


def weights(
    learner: torch.Tensor, sampler: torch.Tensor, mask: torch.Tensor, mode: ImportanceSampling, bound: float
) -> torch.Tensor:
    """p(learner) / p(sampler), bounded.

    Args:
        learner: log-probabilities of the sampled tokens, (replies, tokens).
        sampler: the same under what sampled them.
        mask: 1 where a token belongs to the reply.
        mode: of each token or of each whole reply; cut at the bound, or left out beyond it.
        bound: the largest weight.

    Returns:
        (replies, tokens) for the modes of tokens, (replies, 1) for those of sequences. Nothing flows back through it.
    """
    difference = ((learner - sampler) * mask).detach()
    if mode in (ImportanceSampling.SEQUENCE_TRUNCATE, ImportanceSampling.SEQUENCE_MASK):
        difference = difference.sum(-1, keepdim=True)
    ratio = difference.exp()
    if mode in (ImportanceSampling.TOKEN_TRUNCATE, ImportanceSampling.SEQUENCE_TRUNCATE):
        return ratio.clamp(max=bound)
    return ratio.masked_fill(ratio > bound, 0.0)


class Recorder(LogitsProcessor):
    """Notes, while a model generates, the log-probability of each token that it sampled.

    It only keeps the last step's distribution: (replies, vocabulary), not one for each token.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._last: torch.Tensor | None = None
        self._found: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Looks at the scores before temperature is applied; they go on unchanged."""
        self._note(input_ids[:, -1])
        self._last = torch.log_softmax(scores.float() / self._temperature, dim=-1)
        return scores

    def log_probabilities(self, sequences: torch.Tensor) -> torch.Tensor:
        """(replies, generated tokens), once `sequences` are complete."""
        self._note(sequences[:, -1])
        self._last = None
        return torch.stack(self._found, dim=1)

    def _note(self, tokens: torch.Tensor) -> None:
        if self._last is not None:
            self._found.append(self._last.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))


@torch.no_grad()
def rollout(prompts: Sequence[Sequence[Message]], trainer: GRPOTrainer) -> dict[str, list[Any]]:
    """Replies of the learner itself to `prompts`, with the log-probabilities under which they were sampled: TRL's
    `rollout_func`, to which each prompt comes as often as replies are wanted."""
    tokenizer = trainer.processing_class
    encoded = [token_ids(tokenizer, render(tokenizer, prompt, reply_next=True)) for prompt in prompts]
    ids, mask = left_padded(encoded, int(tokenizer.pad_token_id), trainer.accelerator.device)
    recorder = Recorder(trainer.temperature)
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        trainer.accelerator,
        gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
        # As TRL does: what the model's own configuration says must not fill the gaps of the trainer's.
        generation_kwargs=trainer.generation_kwargs,
        gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
    ) as model:
        whole = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=trainer.generation_config,
            logits_processor=LogitsProcessorList([recorder]),
        )
    logps = recorder.log_probabilities(whole).tolist()
    ends = set(trainer.eos_token_ids)
    replies = [_until_end(row, ends) for row in whole[:, ids.shape[1] :].tolist()]
    return {
        "prompt_ids": encoded,
        "completion_ids": replies,
        "logprobs": [row[: len(reply)] for row, reply in zip(logps, replies, strict=True)],
    }


class SelfSamplingGRPO(GRPOTrainer):
    """GRPO whose learner samples, with the weights of importance sampling on its advantages.

    The loss is the minimum of two products with the advantage, so a weight that is never negative on the advantage is
    the same weight on each token's term; the KL term is left as it is. So does TRL with vLLM.
    """

    def __init__(self, *arguments: Any, mode: ImportanceSampling, bound: float, **options: Any) -> None:  # noqa: ANN401 -- TRL's
        super().__init__(*arguments, rollout_func=rollout, **options)
        self._mode, self._bound = mode, bound

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:  # noqa: ANN401 -- TRL's
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mask = batch["completion_mask"]
        learner = batch.get("old_per_token_logps")
        if learner is None:
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            attention = torch.cat([batch["prompt_mask"], mask], dim=1)
            with torch.no_grad():
                learner, *_ = self._get_per_token_logps_and_entropies(
                    self.model, ids, attention, mask.shape[1], self.args.per_device_train_batch_size
                )
        found = weights(learner, batch["sampling_per_token_logps"], mask, self._mode, self._bound)
        batch["advantages"] = batch["advantages"].unsqueeze(1) * found
        inside = mask.bool() if found.shape == mask.shape else torch.ones_like(found, dtype=torch.bool)
        mean = self.accelerator.gather(found[inside].mean()).mean().item()
        self._metrics["train" if self.model.training else "eval"][WEIGHT].append(mean)
        return batch


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first that ends a reply, and that one."""
    last = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: last + 1]
