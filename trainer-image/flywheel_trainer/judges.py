"""The two kinds of judges: an endpoint that is asked over HTTP, and a model in this process."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

from flywheel_contract.judging import JudgeEndpoint, JudgeParams
from flywheel_contract.params import Precision
from flywheel_contract.stages import Role
from flywheel_trainer import models
from flywheel_trainer.context import LocalInput, StageContext
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.judge import WORDS, Item, Judge, ask, read_answer
from flywheel_trainer.perplexity import reply_likelihoods

_ATTEMPTS = 3
_ANSWER_TOKENS = 200
"""Room for the answer: a JSON object, with some left for a model that says more than it should."""


@dataclass
class EndpointJudge:
    """A judge behind `POST <url>/chat/completions`. What goes wrong is no answer, and is counted by its kind."""

    params: JudgeEndpoint
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
            ConfigError: the key is missing or refused: no answer would ever come.
        """
        headers = {"authorization": f"Bearer {self._key()}"} if self.params.api_key_env else {}
        with (
            httpx.Client(transport=self.transport, headers=headers, timeout=self.params.timeout_seconds) as client,
            ThreadPoolExecutor(self.params.max_concurrency) as pool,
        ):
            return list(pool.map(lambda item: self._one(client, item), items))

    def _one(self, client: httpx.Client, item: Item) -> bool | None:
        text = self._text(client, item)
        if text is None:
            return None
        answer = read_answer(text, item.mark)
        if answer is None:
            self.failures["unreadable"] += 1
        return answer

    def _text(self, client: httpx.Client, item: Item) -> str | None:
        body = {
            "model": self.params.model,
            "messages": ask(item, "answer-json"),
            "temperature": 0,
            "max_tokens": _ANSWER_TOKENS,
        }
        url = f"{self.params.url.rstrip('/')}/chat/completions"
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            try:
                response = client.post(url, json=body)
                if response.status_code in (401, 403):
                    raise ConfigError(
                        f"evaluation.judge.endpoint: {self.params.url} refuses the key ({response.status_code}); "
                        "correct apiKeyEnv and its Secret"
                    )
                response.raise_for_status()
                content = response.json()["choices"][0]["message"]["content"]
            except httpx.HTTPError as error:
                if last:
                    self.failures[type(error).__name__] += 1
            except (ValueError, LookupError, TypeError):
                self.failures["malformed"] += 1
                return None
            else:
                return content if isinstance(content, str) else ""
        return None

    def _key(self) -> str:
        key = os.environ.get(self.params.api_key_env or "", "")
        if not key:
            raise ConfigError(
                f"evaluation.judge.endpoint: the environment variable {self.params.api_key_env} is not set; "
                "name the Secret that holds it in runtime.secretEnv"
            )
        return key


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
