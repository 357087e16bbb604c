"""The two kinds of judges: an endpoint that is asked over HTTP, and a model in this process."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import httpx
from transformers import PreTrainedTokenizerBase

from flywheel_contract.endpoints import ChatEndpoint
from flywheel_contract.judging import JudgeParams
from flywheel_contract.params import Precision
from flywheel_contract.stages import Role
from flywheel_trainer import models
from flywheel_trainer.chat_api import WAIT_SECONDS, AwayError, ChatApi, RefusedError, StrangeError
from flywheel_trainer.context import LocalInput, StageContext
from flywheel_trainer.data.rows import Message
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.judge import WORDS, Item, Judge, ask, read_answer
from flywheel_trainer.perplexity import reply_likelihoods
from flywheel_trainer.prompts import render, token_ids

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
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """As the input is named."""
        return self.folder.spec.uri

    def answer(self, items: Sequence[Item]) -> list[bool | None]:
        """One answer for each item; none where both words are equally likely, or the model has no room for it."""
        model = models.load_policy(self.folder.path, self.precision)
        tokenizer = models.load_tokenizer(self.folder.path)
        limit = getattr(model.config, "max_position_embeddings", None) or 4096
        room = max(8, min(4096, limit - 8))
        fitted = [fitting(tokenizer, item, room) for item in items]
        asked = [ask(item, "answer-word") for item in fitted if item is not None]
        self.failures["too-long"] += len(items) - len(asked)
        yes, no = (
            reply_likelihoods(
                model,
                tokenizer,
                [[*messages, {"role": "assistant", "content": word}] for messages in asked],
                max_prompt_tokens=room,
                max_reply_tokens=8,
                batch_size=self.batch_size,
                report=self.report,
            ).nats
            for word in WORDS
        )
        likelier = (None if a == b else bool(a < b) for a, b in zip(yes, no, strict=True))
        return [None if item is None else next(likelier) for item in fitted]


def fitting(tokenizer: PreTrainedTokenizerBase, item: Item, max_tokens: int) -> Item | None:
    """The item with as much of it as a prompt of `max_tokens` can show; None where nothing of the reply fits.

    The conversation goes first, from its oldest message on, then the end of the reply. Question and rules always stay.
    """

    def tokens(shown: Item) -> int:
        return len(token_ids(tokenizer, render(tokenizer, ask(shown, "answer-word"), reply_next=True)))

    if tokens(item) <= max_tokens:
        return item
    whole = len(item.reply) + sum(len(message["content"]) for message in item.history)
    most = bisect_right(range(whole + 1), max_tokens, key=lambda count: tokens(_showing(item, count))) - 1
    return _showing(item, most) if most >= min(1, len(item.reply)) else None


def _showing(item: Item, characters: int) -> Item:
    """So many characters of the item: of its reply first, then of its messages from the newest one back."""
    reply = item.reply[:characters]
    room = characters - len(reply)
    history: list[Message] = []
    for message in reversed(item.history):
        if not room:
            break
        content = message["content"][:room]
        history.insert(0, {"role": message["role"], "content": content})
        room -= len(content)
    return replace(item, reply=reply, history=history)


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
