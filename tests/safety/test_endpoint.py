"""An OpenAI-compatible moderation endpoint, real over loopback: what it says, and how it says nothing."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_contract.safety import ClassifierParams, ModerationEndpoint, WordList
from flywheel_safety.choice import chosen
from flywheel_safety.classifier import BrokenAnswerError, RefusedError, UnavailableError, judge
from flywheel_safety.embedded import Embedded
from flywheel_safety.endpoint import BATCH, OVERLAP, WINDOW, ModerationApi, windows
from tests.safety.moderation_server import Moderation, moderation_server, result


@pytest.fixture
def server() -> Iterator[Moderation]:
    with moderation_server() as found:
        yield found


def api(server: Moderation, key: str | None = None, **more: Any) -> ModerationApi:  # noqa: ANN401 -- its own options
    return ModerationApi(ModerationEndpoint(url=server.url, model="omni", timeout_seconds=5), key, **more)


def told(server: Moderation, status: int, body: object) -> None:
    server.answers.append((status, body if isinstance(body, bytes) else json.dumps(body).encode()))


def test_what_it_flags_is_unsafe_whatever_its_own_numbers_are(server: Moderation) -> None:
    assert judge(api(server), ["fine", "a badword", "  "], 0.9) == [None, "rude", None]
    assert server.seen == [{"path": "/v1/moderations", "input": ["fine", "a badword"], "model": "omni"}]
    assert server.keys == [None]


def test_its_scores_count_from_the_threshold_on(server: Moderation) -> None:
    for threshold, category in ((0.5, "mean"), (0.7, None)):
        told(server, 200, {"results": [result(flagged=False, rude=0.2, mean=0.6)]})
        assert judge(api(server), ["hm"], threshold) == [category]


def test_a_flag_without_a_category_has_one_of_its_own(server: Moderation) -> None:
    told(server, 200, {"results": [{"flagged": True, "category_scores": {"rude": None}}]})
    assert judge(api(server), ["hm"], 1.0) == ["flagged"]


def test_the_key_is_sent_and_the_name_says_which_model(server: Moderation) -> None:
    classifier = api(server, "secret")
    assert classifier.score([]) == []
    classifier.score(["hm"])
    assert server.keys == ["Bearer secret"]
    assert classifier.name == "moderation-api/omni"
    assert ModerationApi(ModerationEndpoint(url=server.url)).name == "moderation-api/default"


def test_many_texts_go_in_batches_and_a_long_one_in_parts(server: Moderation) -> None:
    long = "x " * WINDOW + "badword"
    verdicts = judge(api(server), [*["fine"] * BATCH, long], 0.5)
    assert verdicts == [*[None] * BATCH, "rude"]
    assert len(server.seen) == 2
    assert all(len(text) <= WINDOW for body in server.seen for text in body["input"])


@given(st.integers(1, 4 * WINDOW))
def test_windows_cover_a_text_and_overlap(length: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length))
    parts = windows(text)
    assert parts[0] + "".join(part[OVERLAP:] for part in parts[1:]) == text


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_an_overloaded_endpoint_is_asked_again(server: Moderation, status: int) -> None:
    told(server, status, b"later")
    waited: list[float] = []
    assert judge(api(server, attempts=2, pause=waited.append), ["a badword"], 0.5) == ["rude"]
    assert waited == [1.0]


def test_one_that_stays_away_is_unavailable_which_another_attempt_may_mend(server: Moderation) -> None:
    for _ in range(3):
        told(server, 503, b"")
    waited: list[float] = []
    with pytest.raises(UnavailableError, match=r"/v1/moderations answered 503$") as failure:
        api(server, attempts=3, pause=waited.append).score(["hm"])
    assert failure.value.retryable
    assert waited == [1.0, 2.0]


def test_nobody_there_and_a_name_that_does_not_exist() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UnavailableError, match="cannot be reached"):
        ModerationApi(ModerationEndpoint(url=f"http://127.0.0.1:{port}")).score(["hm"])


def test_a_silent_endpoint_runs_into_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = ModerationEndpoint(url=f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=0.2)
        with pytest.raises(UnavailableError, match="cannot be reached"):
            ModerationApi(endpoint).score(["hm"])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 307])
def test_one_that_refuses_us_is_not_asked_again(server: Moderation, status: int) -> None:
    """A redirect is refused too: texts and key would go to somebody else."""
    server.location = "http://127.0.0.1:1/elsewhere"
    told(server, status, b"no")
    said = f"answered {status}: check the endpoint's url, model and API key"
    with pytest.raises(RefusedError, match=said) as failure:
        api(server, attempts=5).score(["hm"])
    assert not failure.value.retryable


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        {"results": []},
        {"results": [None]},
        {"results": [{}]},
        {"results": [{"flagged": "no"}]},
        {"results": [{"flagged": False, "category_scores": [0.1]}]},
        {"results": [{"flagged": False, "category_scores": {"rude": "high"}}]},
        {"results": [{"flagged": False, "category_scores": {"rude": 7}}]},
        {"results": [{"flagged": False, "category_scores": {"rude": True}}]},
        b" " * (4 << 20) + b"{}",
    ],
)
def test_an_answer_that_is_no_verdict_is_an_error(server: Moderation, body: object) -> None:
    told(server, 200, body)
    with pytest.raises(BrokenAnswerError):
        judge(api(server), ["hm"], 0.5)


def test_the_settings_choose() -> None:
    words = [WordList(category="spoilers", phrases=["he dies"])]
    assert judge(chosen(ClassifierParams(words=words), {}), ["He  DIES."], 0.5) == ["spoilers"]
    assert isinstance(chosen(ClassifierParams(), {}), Embedded)
    asked = ClassifierParams(endpoint=ModerationEndpoint(url="https://example.com/v1", api_key_env="MOD_KEY"))
    assert chosen(asked, {"MOD_KEY": "k"}).name == "moderation-api/default"
    with pytest.raises(RefusedError, match=r"^endpoint\.apiKeyEnv: no variable MOD_KEY: runtime\.secretEnv names no"):
        chosen(asked, {"MOD_KEY": ""})


@pytest.mark.parametrize("url", ["ftp://x", "https://a:b@host/v1", "https://host/v1?key=1", "https://", "http://a b"])
def test_an_endpoint_is_a_plain_url(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        ModerationEndpoint(url=url)
