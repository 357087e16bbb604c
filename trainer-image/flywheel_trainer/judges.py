"""The two kinds of judges: an endpoint that is asked over HTTP, and a model in this process."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx

from flywheel_contract.endpoints import ChatEndpoint
from flywheel_contract.judging import JudgeParams
from flywheel_contract.params import Precision
from flywheel_contract.stages import Role
from flywheel_trainer import models
from flywheel_trainer.chat_api import WAIT_SECONDS, AwayError, ChatApi, RefusedError, StrangeError
from flywheel_trainer.context import LocalInput, StageContext
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.judge import WORDS, Item, Judge, ask, read_answer
from flywheel_trainer.perplexity import reply_likelihoods

_ANSWER_TOKENS = 200
"""Room for the answer: a JSON object, with some left for a model that says more than it should."""


@dataclass
class EndpointJudge:
    """A judge at an endpoint. What goes wrong is no answer, and is counted by its kind."""

    params: ChatEndpoint
    wait: float = WAIT_SECONDS
    transport: httpx.BaseTransport | None = None
    """For tests: what answers instead of the network."""
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The model at the endpoint."""
        return self.params.model

    def answer(self, items: Sequence[Item]) -> list[bool | None]:
        """One answer for each item.

        Raises:
            ConfigError: the key is missing or refused, or the model unknown: no answer would ever come.
        """
        api = ChatApi("evaluation.judge.endpoint", self.params, wait=self.wait, transport=self.transport)
        bodies = [
            {"messages": ask(item, "answer-json"), "temperature": 0, "max_tokens": _ANSWER_TOKENS} for item in items
        ]
        return [self._read(item, said) for item, said in zip(items, api.ask(bodies), strict=True)]

    def _read(self, item: Item, said: str | Exception) -> bool | None:
        if isinstance(said, RefusedError) and said.every:
            raise said
        answer = read_answer(said, item.mark) if isinstance(said, str) else None
        if answer is None:
            self.failures[_KINDS.get(type(said), "unreadable")] += 1
        return answer


_KINDS: Final[dict[type, str]] = {AwayError: "away", RefusedError: "refused", StrangeError: "malformed"}


@dataclass
class ModelJudge:
    """A language model as judge. Of `yes` and `no` the likelier one is its answer, so what it writes cannot matter."""

    folder: LocalInput
    precision: Precision
    batch_size: int
    report: Callable[[float], None] = lambda share: None

    @property
    def name(self) -> str:
        """As the input is named."""
        return self.folder.spec.uri

    def answer(self, items: Sequence[Item]) -> list[bool | None]:
        """One answer for each item; none where both words are equally likely."""
        model = models.load_policy(self.folder.path, self.precision)
        tokenizer = models.load_tokenizer(self.folder.path)
        asked = [ask(item, "answer-word") for item in items]
        limit = getattr(model.config, "max_position_embeddings", None) or 4096
        yes, no = (
            reply_likelihoods(
                model,
                tokenizer,
                [[*messages, {"role": "assistant", "content": word}] for messages in asked],
                max_prompt_tokens=max(8, min(4096, limit - 8)),
                max_reply_tokens=8,
                batch_size=self.batch_size,
                report=self.report,
            ).nats
            for word in WORDS
        )
        return [None if a == b else bool(a < b) for a, b in zip(yes, no, strict=True)]


def judge_of(ctx: StageContext, params: JudgeParams, precision: Precision, batch_size: int) -> Judge:
    """The judge that the spec asks for.

    Raises:
        ConfigError: neither an endpoint nor a model, or both.
    """
    given = ctx.inputs(Role.JUDGE)
    if (params.endpoint is not None) == bool(given):
        raise ConfigError("evaluation.judge needs exactly one of judge.endpoint and judgeModel")
    if params.endpoint is not None:
        return EndpointJudge(params.endpoint)
    return ModelJudge(given[0], precision, batch_size)
