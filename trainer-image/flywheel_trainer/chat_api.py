"""An OpenAI-compatible endpoint (`POST <url>/chat/completions`), asked again where that can help.

What an endpoint cannot do is said, never passed over. Who asks decides what a failure means: a reply that cannot be
drawn fails the attempt, a question that a judge does not answer is counted.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx

from flywheel_contract.endpoints import ChatEndpoint
from flywheel_trainer.errors import ConfigError, StageError

ATTEMPTS: Final = 4
WAIT_SECONDS: Final = 0.5
"""Before the second attempt; doubled before each further one."""
_TRANSIENT: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_NEVER: Final = frozenset({401, 403, 404})
"""No request to this URL, with this key, for this model will ever be answered."""
_QUOTED: Final = 200
"""Characters of an endpoint's own words that an error repeats."""


class AwayError(StageError):
    """The endpoint did not answer; another attempt may have more luck."""


class RefusedError(ConfigError):
    """The endpoint refuses this request; `every` one where it would refuse any other as well."""

    def __init__(self, message: str, *, every: bool) -> None:
        super().__init__(message)
        self.every = every


class StrangeError(ConfigError):
    """What it answered is no chat completion."""


class ChatApi:
    """Asks `endpoint`; `who` names the one who asks in errors."""

    def __init__(
        self,
        who: str,
        endpoint: ChatEndpoint,
        *,
        wait: float = WAIT_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`wait` in seconds before the second attempt; `transport` answers instead of the network."""
        self._who, self._endpoint, self._wait, self._transport = who, endpoint, wait, transport
        self._url = f"{endpoint.url.rstrip('/')}/chat/completions"

    def ask(self, requests: Sequence[Mapping[str, Any]]) -> Iterator[str | AwayError | RefusedError | StrangeError]:
        """The text of the answer to each request (its body, without the model), or why there is none, in their order.

        Raises:
            ConfigError: the key is missing.
        """
        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        timeout = self._endpoint.timeout_seconds
        with (
            httpx.Client(headers=headers, timeout=timeout, transport=self._transport) as client,
            ThreadPoolExecutor(self._endpoint.concurrency) as pool,
        ):
            try:
                yield from pool.map(lambda body: self._one(client, body), requests)
            finally:
                # Who has heard enough does not wait for the rest.
                pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, client: httpx.Client, body: Mapping[str, Any]) -> str | AwayError | RefusedError | StrangeError:
        try:
            answer = self._post(client, {"model": self._endpoint.model, **body})
            return self._content(answer)
        except (AwayError, RefusedError, StrangeError) as error:
            return error

    def _post(self, client: httpx.Client, body: Mapping[str, Any]) -> httpx.Response:
        last = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._wait * 2 ** (attempt - 1))
            try:
                answer = client.post(self._url, json=body)
            except httpx.TransportError as error:
                last = f"{type(error).__name__}: {error}"
                continue
            if answer.is_success:
                return answer
            last = f"HTTP {answer.status_code}: {self._quoted(answer)}"
            if answer.status_code not in _TRANSIENT:
                said = f"{self._url} refuses model {self._endpoint.model!r} ({last}); check url, model and key"
                raise RefusedError(f"{self._who}: {said}", every=answer.status_code in _NEVER)
        raise AwayError(f"{self._who}: {self._url} did not answer in {ATTEMPTS} attempts; the last: {last}")

    def _content(self, answer: httpx.Response) -> str:
        try:
            content = answer.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise self._strange(answer) from error
        if content is not None and not isinstance(content, str):
            raise self._strange(answer)
        return (content or "").strip()

    def _strange(self, answer: httpx.Response) -> StrangeError:
        return StrangeError(
            f"{self._who}: {answer.url} answered no chat completion ({self._quoted(answer)!r}); "
            "name the base URL of an OpenAI-compatible API, which often ends in /v1"
        )

    def _quoted(self, answer: httpx.Response) -> str:
        """The endpoint's own words, without the key: some repeat it."""
        text, key = answer.text, self._key()
        return (text.replace(key, "***") if key is not None else text)[:_QUOTED]

    def _key(self) -> str | None:
        name = self._endpoint.api_key_env
        if name is None:
            return None
        if not os.environ.get(name):
            raise ConfigError(
                f"{self._who}: the environment variable {name} is not set; name a Secret with this key in "
                "runtime.secretEnv"
            )
        return os.environ[name]
