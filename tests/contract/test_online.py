"""What router, gateway and readers of the log agree on: rows, requests, the gateway's configuration."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from flywheel_contract.experiment import Arm
from flywheel_contract.gateway_config import GatewayConfig
from flywheel_contract.online import FEEDBACK, Event, EventType, Exposure, Feedback, SessionRequest, Turn

NOW = datetime(2026, 3, 2, 10, tzinfo=UTC)
USER = "a" * 64
MINIMAL: dict[str, Any] = {"generation": "luna-1", "lineage": "luna", "log": {"store": "pvc://runs/luna/traffic"}}


def test_rows_are_snake_case_and_hold_only_what_is_known() -> None:
    exposure = Exposure(user_id=USER, ts=NOW, event_id="e", trigger="Session", arm=Arm.CONTROL, test="t", enrolled=True)
    assert exposure.to_row() == {
        "user_id": USER, "ts": "2026-03-02T10:00:00Z", "enrolled": True, "arm": "control", "test": "t",
        "fallback": False, "generation": "", "event_id": "e", "trigger": "Session",
    }  # fmt: skip
    event = Event(user_id=USER, ts=NOW, event_id="e", type=EventType.MESSAGE, value=12.5)
    assert event.to_row()["value"] == 12.5
    assert "arm" not in event.to_row()


def test_a_turn_is_a_row_of_traffic() -> None:
    turn = Turn(
        conversation="c", user=USER, time=NOW, messages=[{"role": "user", "content": "Hi"}], turn="t", latency_ms=1.5,
        generation="g", retain_until=NOW,
    )  # fmt: skip
    row = turn.to_row()
    assert {"conversation", "user", "origin", "messages", "consent", "latency_ms", "retain_until"} <= row.keys()
    assert row["consent"] == {}


@pytest.mark.parametrize("user", ["", "a\nb", "a\0", "x" * 257])
def test_what_cannot_be_a_user_never_becomes_a_row(user: str) -> None:
    with pytest.raises(ValidationError):
        Exposure(user_id=user, ts=NOW, event_id="e", trigger="Session")


def test_times_have_a_zone() -> None:
    with pytest.raises(ValidationError):
        Event(user_id=USER, ts=NOW.replace(tzinfo=None), event_id="e", type=EventType.ERROR)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e13])
def test_feedback_has_a_finite_value(value: float) -> None:
    with pytest.raises(ValidationError):
        Feedback(type=EventType.SHARE, value=value)


def test_ids_of_clients_are_short_and_plain() -> None:
    assert SessionRequest(conversation="talk-1:2.3_x").conversation == "talk-1:2.3_x"
    for bad in ("", "a b", "../x", "a\n", "x" * 129):
        with pytest.raises(ValidationError):
            SessionRequest(conversation=bad)


def test_a_small_configuration_has_sensible_defaults() -> None:
    config = GatewayConfig.model_validate(MINIMAL)
    assert config.upstream == "http://127.0.0.1:8000"
    assert set(config.feedback) == FEEDBACK
    assert config.moderation.prompt
    assert config.moderation.reply
    assert (config.log.flush_seconds, config.log.rotate_seconds) == (1, 60)
    assert GatewayConfig.model_validate(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"characters": [{"name": "a", "systemPrompt": "x"}] * 2}, "same name"),
        ({"defaultCharacter": "luna"}, "there is no character"),
        ({"feedback": ["message", "share"]}, "clients cannot send message"),
        ({"userHeader": "x-user"}, "nobody is believed"),
        ({"log": {"store": "hf://a/b"}}, "read only"),
        ({"upstream": "http://host/path"}, "upstream"),
        ({"trustedProxies": ["10.0.0.1/8"]}, "trustedProxies"),
        ({"unknown": 1}, "unknown"),
        ({"characters": [{"name": "../x", "systemPrompt": "x"}]}, "name"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GatewayConfig.model_validate({**MINIMAL, **change})


def test_proxies_are_named_with_their_header() -> None:
    config = GatewayConfig.model_validate({**MINIMAL, "userHeader": "x-user", "trustedProxies": ["10.0.0.0/8", "::1"]})
    assert [str(network) for network in config.trusted_proxies] == ["10.0.0.0/8", "::1/128"]
