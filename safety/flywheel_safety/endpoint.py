"""An OpenAI-compatible moderation API (`POST <url>/moderations`) as a classifier. Standard library only."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from flywheel_contract.safety import ModerationEndpoint
from flywheel_safety.classifier import BrokenAnswerError, Classifier, RefusedError, Scores, UnavailableError, is_score

BATCH: Final = 32
"""Texts in one request."""
WINDOW: Final = 10_000
"""Characters that are asked about at once; a longer text is asked about in parts, and the worst part counts."""
OVERLAP: Final = 200
"""Characters that two parts share, so that what is said across a cut is seen."""
ANSWER_MAX_BYTES: Final = 4 << 20
_TRY_LATER: Final = frozenset({408, 409, 425, 429})


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take texts and key to somebody else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 -- the base's own arguments
        return None


class ModerationApi(Classifier):
    """Asks the endpoint. What it flags scores 1 whatever its own numbers are; the threshold can only be stricter."""

    def __init__(
        self,
        endpoint: ModerationEndpoint,
        api_key: str | None = None,
        *,
        attempts: int = 1,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`attempts` per request, with `pause` (1, 2, 4... seconds) between them where the endpoint may recover."""
        self._endpoint, self._attempts, self._pause = endpoint, attempts, pause
        self._url = endpoint.url.rstrip("/") + "/moderations"
        self._headers = {"content-type": "application/json", "accept": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._opener = urllib.request.build_opener(_NoRedirects)

    @property
    def name(self) -> str:
        """The model's name, as it was asked for."""
        return f"moderation-api/{self._endpoint.model or 'default'}"

    def score(self, texts: Sequence[str]) -> list[Scores]:
        """One set of scores per text; blank texts are not asked about.

        Raises:
            UnavailableError: no answer in time, or the endpoint is overloaded or broken.
            RefusedError: it does not take the request (key, URL, model).
            BrokenAnswerError: the answer is not a moderation result per text.
        """
        parts = [(number, part) for number, text in enumerate(texts) for part in windows(text)]
        found: list[dict[str, float]] = [{} for _ in texts]
        for start in range(0, len(parts), BATCH):
            batch = parts[start : start + BATCH]
            for (number, _), scores in zip(batch, self._ask([part for _, part in batch]), strict=True):
                for category, value in scores.items():
                    found[number][category] = max(value, found[number].get(category, 0.0))
        return list(found)

    def _ask(self, texts: list[str]) -> list[dict[str, float]]:
        for attempt in range(1, self._attempts + 1):
            try:
                answer = self._post(texts)
                break
            except UnavailableError:
                if attempt == self._attempts:
                    raise
                self._pause(2.0 ** (attempt - 1))
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list) or len(results) != len(texts):
            raise BrokenAnswerError(f"{self._url} did not answer one result per text: name a moderation API in url")
        return [self._scores(result) for result in results]

    def _post(self, texts: list[str]) -> Any:  # noqa: ANN401 -- JSON
        body: dict[str, object] = {"input": texts}
        if self._endpoint.model is not None:
            body["model"] = self._endpoint.model
        request = urllib.request.Request(self._url, json.dumps(body).encode(), self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._endpoint.timeout_seconds) as response:
                raw = response.read(ANSWER_MAX_BYTES + 1)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _TRY_LATER or error.code >= 500:
                raise UnavailableError(f"{self._url} answered {error.code}") from None
            raise RefusedError(
                f"{self._url} answered {error.code}: check the endpoint's url, model and API key"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            raise UnavailableError(f"{self._url} cannot be reached ({cause})") from error
        if len(raw) > ANSWER_MAX_BYTES:
            raise BrokenAnswerError(f"{self._url} answered more than {ANSWER_MAX_BYTES} bytes")
        try:
            return json.loads(raw)
        except ValueError as error:
            raise BrokenAnswerError(f"{self._url} answered no JSON: name a moderation API in url") from error

    def _scores(self, result: object) -> dict[str, float]:
        if not isinstance(result, Mapping) or not isinstance(result.get("flagged"), bool):
            raise BrokenAnswerError(f"{self._url} answered a result without `flagged`")
        own, flags = result.get("category_scores") or {}, result.get("categories") or {}
        if not isinstance(own, Mapping) or not isinstance(flags, Mapping):
            raise BrokenAnswerError(f"{self._url} answered categories that are no objects")
        scores = {str(category): value for category, value in own.items() if value is not None}
        if not all(map(is_score, scores.values())):
            raise BrokenAnswerError(f"{self._url} answered something that is no score")
        flagged = [str(category) for category, flag in flags.items() if flag is True]
        if result["flagged"] and not flagged:
            flagged = ["flagged"]
        return {**scores, **dict.fromkeys(flagged, 1.0)}


def windows(text: str) -> list[str]:
    """`text` in parts of at most WINDOW characters; none where there is nothing but white space."""
    if not text.strip():
        return []
    step = WINDOW - OVERLAP
    return [text[start : start + WINDOW] for start in range(0, max(len(text) - OVERLAP, 1), step)]
