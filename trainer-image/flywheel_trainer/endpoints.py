"""Replies from an OpenAI-compatible endpoint (`POST <url>/chat/completions`): the larger siblings served elsewhere.

What an endpoint cannot do is said, never passed over: a refused key or an unknown model is the user's mistake, and an
endpoint that stays away fails the attempt, which is retried as any fault is.
"""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import httpx

from flywheel_contract.params import EndpointParams, SamplingParams
from flywheel_trainer.data.rows import Message
from flywheel_trainer.errors import ConfigError, StageError
from flywheel_trainer.prompts import split_tools
from flywheel_trainer.sampling import Report

_ATTEMPTS: Final = 4
_WAIT_SECONDS: Final = 0.5
"""Before the second attempt; doubled before each further one."""
_TRANSIENT: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_QUOTED: Final = 200
"""Characters of an endpoint's own words that an error repeats."""


@dataclass
class EndpointDrawer:
    """An endpoint as a source of replies. Its seed is a wish: few servers repeat a reply exactly."""

    name: str
    params: EndpointParams
    wait: float = _WAIT_SECONDS

    def draw(
        self, prompts: Sequence[Sequence[Message]], params: SamplingParams, *, count: int, seed: int, report: Report
    ) -> list[list[str]]:
        """As `engines.Drawer` says; the endpoint itself decides what it does with prompts that are too long for it.

        Raises:
            ConfigError: the key is missing or refused, the model unknown, or the answer is no chat completion.
            StageError: the endpoint stayed away.
        """
        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        done = 0
        with (
            httpx.Client(headers=headers, timeout=self.params.timeout_seconds) as client,
            ThreadPoolExecutor(self.params.concurrency) as pool,
        ):

            def one(index: int) -> list[str]:
                return [self._reply(client, prompts[index], params, seed + index * count + k) for k in range(count)]

            replies = []
            for texts in pool.map(one, range(len(prompts))):
                replies.append(texts)
                done += 1
                report(done / len(prompts))
        return replies

    def _key(self) -> str | None:
        name = self.params.api_key_env
        if name is None:
            return None
        if not os.environ.get(name):
            raise ConfigError(
                f"policy {self.name}: the environment variable {name} is not set; name a Secret with this key in "
                "runtime.secretEnv"
            )
        return os.environ[name]

    def _reply(self, client: httpx.Client, prompt: Sequence[Message], params: SamplingParams, seed: int) -> str:
        messages, tools = split_tools(prompt)
        body = {
            "model": self.params.model,
            "messages": messages,
            **({"tools": tools} if tools else {}),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_new_tokens,
            "seed": seed,
        }
        answer = self._post(client, body)
        try:
            content = answer.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise self._strange(answer) from error
        if content is not None and not isinstance(content, str):
            raise self._strange(answer)
        return (content or "").strip()

    def _post(self, client: httpx.Client, body: Mapping[str, Any]) -> httpx.Response:
        url = f"{self.params.url.rstrip('/')}/chat/completions"
        last = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            try:
                answer = client.post(url, json=body)
            except httpx.TransportError as error:
                last = f"{type(error).__name__}: {error}"
                continue
            if answer.is_success:
                return answer
            last = f"HTTP {answer.status_code}: {self._quoted(answer)}"
            if answer.status_code not in _TRANSIENT:
                raise ConfigError(
                    f"policy {self.name}: {url} refuses model {self.params.model!r} ({last}); check url, model and key"
                )
        raise StageError(f"policy {self.name}: {url} did not answer in {_ATTEMPTS} attempts; the last: {last}")

    def _quoted(self, answer: httpx.Response) -> str:
        """The endpoint's own words, without the key: some repeat it."""
        text, key = answer.text, self._key()
        return (text.replace(key, "***") if key is not None else text)[:_QUOTED]

    def _strange(self, answer: httpx.Response) -> ConfigError:
        return ConfigError(
            f"policy {self.name}: {answer.url} answered no chat completion ({self._quoted(answer)!r}); "
            "name the base URL of an OpenAI-compatible API, which often ends in /v1"
        )
