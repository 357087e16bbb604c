"""What the models of an evaluation reply to the same prompts, one model in memory at a time.

Candidate, baseline (what is in production), parent, and the models of the stages between answer with the same sampling
and the same seed. The parent comes last: it also reads what all others replied, for the divergence from it.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel_contract.params import EvaluateParams
from flywheel_contract.stages import Origin, Role
from flywheel_trainer import models
from flywheel_trainer.context import LocalInput, StageContext
from flywheel_trainer.data.rows import Conversation, Message
from flywheel_trainer.perplexity import Likelihoods, reply_likelihoods
from flywheel_trainer.prompts import with_character
from flywheel_trainer.sampling import sample_replies


@dataclass(frozen=True)
class Answers:
    """One model's replies to the prompts of `rows` (indexes), in their order.

    `general` is how well it predicts the general hold-out, `own` and `parents` how likely its own replies are under
    itself and under the parent.
    """

    name: str
    rows: list[int]
    replies: list[str]
    own: Likelihoods
    general: Likelihoods | None = None
    parents: Likelihoods | None = None

    def divergence(self, rows: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of its replies to the prompts `rows`: log p(reply) of itself less the parent's in nats, and the tokens.

        Their sums' ratio estimates KL(model || parent) per token, from replies as they were sampled for the
        evaluation (its temperature and nucleus). Different tokenizers do not matter: nats are of the whole reply.
        """
        if self.parents is None:
            raise ValueError(f"the parent has not read the replies of {self.name}")
        place = {row: i for i, row in enumerate(self.rows)}
        chosen = [place[row] for row in rows]
        return (self.parents.nats - self.own.nats)[chosen], self.own.tokens[chosen]


@dataclass(frozen=True)
class Cast:
    """Who answered. Two that are the same model are one and the same `Answers`."""

    candidate: Answers
    baseline: Answers
    parent: Answers
    checkpoints: list[Answers]

    def distinct(self) -> list[Answers]:
        """Everyone once: candidate, baseline, parent, then the stages between."""
        everyone = (self.candidate, self.baseline, self.parent, *self.checkpoints)
        return list({each.name: each for each in everyone}.values())

    def stages(self) -> list[Answers]:
        """In the order of training: the parent, the models between, the candidate."""
        start = [] if self.candidate is self.parent else [self.parent]
        return [*start, *self.checkpoints, self.candidate]


def few(rows: Sequence[Conversation], per_origin: int) -> list[int]:
    """The indexes of the first rows of each origin, which the models of all stages answer."""
    return [i for origin in Origin for i in [k for k, row in enumerate(rows) if row.origin is origin][:per_origin]]


def prompts(ctx: StageContext, rows: Sequence[Conversation]) -> list[list[Message]]:
    """The conversations up to the last reply, with the character's prompt."""
    return [with_character(row.messages[:-1], row.character, ctx.spec.characters) for row in rows]


def everyone_answers(
    ctx: StageContext, params: EvaluateParams, rows: list[Conversation], general: list[Conversation]
) -> Cast:
    """Has each model answer, the same model once only.

    Raises:
        ConfigError: no candidate or baseline, or several.
        NotFiniteError: a likelihood is NaN or infinite.
    """
    candidate, baseline = ctx.input(Role.POLICY), ctx.input(Role.BASELINE)
    parent = ctx.input(Role.PARENT) if ctx.inputs(Role.PARENT) else baseline
    between = ctx.inputs(Role.CHECKPOINT)
    named = {each.spec.digest: each for each in (*between, parent, baseline, candidate)}
    last = parent.spec.digest
    order = [named[digest] for digest in named if digest != last] + [named[last]]
    reading = {candidate.spec.digest, baseline.spec.digest}
    whole, part = list(range(len(rows))), few(rows, params.checkpoint_prompts_per_origin)
    full = {each.spec.digest for each in (candidate, baseline, parent)}
    found: dict[str | None, Answers] = {}
    for number, folder in enumerate(order):
        digest = folder.spec.digest
        speaker = _Speaker(ctx, params, folder, start=90 * number / len(order), span=90 / len(order))
        answers = speaker.answer(rows, whole if digest in full else part, general if digest in reading else None)
        found[digest] = replace(answers, parents=answers.own) if digest == last else answers
        if digest == last:
            for other, theirs in found.items():
                if theirs.parents is None:
                    found[other] = replace(theirs, parents=speaker.read(rows, theirs.rows, theirs.replies))
        speaker.close()
    return Cast(
        candidate=found[candidate.spec.digest],
        baseline=found[baseline.spec.digest],
        parent=found[parent.spec.digest],
        checkpoints=[found[each.spec.digest] for each in between if each.spec.digest not in full],
    )


class _Speaker:
    """A loaded model."""

    def __init__(
        self, ctx: StageContext, params: EvaluateParams, folder: LocalInput, *, start: float, span: float
    ) -> None:
        ctx.progress(percent=start, message=f"loading {folder.name}")
        self._ctx, self._params, self._folder, self._start, self._span = ctx, params, folder, start, span
        self._model: PreTrainedModel | None = models.load_policy(folder.path, params.precision)
        self._tokenizer: PreTrainedTokenizerBase = models.load_tokenizer(folder.path)

    def answer(self, rows: list[Conversation], chosen: list[int], general: list[Conversation] | None) -> Answers:
        name = self._folder.name
        self._ctx.progress(message=f"{name} answers {len(chosen)} prompts")
        replies = sample_replies(
            self._model,
            self._tokenizer,
            prompts(self._ctx, [rows[i] for i in chosen]),
            self._params,
            seed=self._ctx.spec.seed,
            report=lambda share: self._ctx.progress(percent=self._start + self._span * 0.8 * share),
        )
        texts = [each[0] for each in replies]
        own = self.read(rows, chosen, texts)
        if general is None:
            return Answers(name, chosen, texts, own)
        self._ctx.progress(message=f"{name} reads {len(general)} held-out replies")
        known = self._likelihoods(
            [[*p, row.messages[-1]] for p, row in zip(prompts(self._ctx, general), general, strict=True)]
        )
        return Answers(name, chosen, texts, own, known)

    def read(self, rows: list[Conversation], chosen: list[int], replies: list[str]) -> Likelihoods:
        """How likely these replies to the chosen prompts are."""
        asked = prompts(self._ctx, [rows[i] for i in chosen])
        return self._likelihoods(
            [[*p, {"role": "assistant", "content": text}] for p, text in zip(asked, replies, strict=True)]
        )

    def close(self) -> None:
        self._model = None
        gc.collect()

    def _likelihoods(self, conversations: list[list[Message]]) -> Likelihoods:
        return reply_likelihoods(
            self._model,
            self._tokenizer,
            conversations,
            max_prompt_tokens=self._params.max_prompt_tokens,
            max_reply_tokens=self._params.max_prompt_tokens,
            batch_size=self._params.batch_size,
        )
