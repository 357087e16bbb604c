"""What a Generation says of its gateway reaches the gateway: no setting is read and forgotten."""

from typing import Any

import pytest

from flywheel_contract.base import Record
from flywheel_contract.gateway_config import GatewayConfig
from flywheel_operator.manifests.gateway import gateway
from flywheel_operator.model.serving import CaptureSpec, GatewaySpec, IdentitySpec, LimitsSpec, ModerationSpec

OTHER: dict[str, dict[str, Any]] = {
    "moderation": {
        "prompts": False,
        "replies": False,
        "threshold": 0.5,
        "safeReply": "Let us talk of something else.",
        "words": [{"category": "insults", "phrases": ["nincompoop"]}],
        "endpoint": {"url": "https://moderation.example/v1/moderations", "model": "judge"},
    },
    "limits": {"requestsPerSecond": 1, "burst": 2, "concurrentRequests": 3, "bodyBytes": 4096, "timeoutSeconds": 5},
    "capture": {"turns": False, "requireConsent": True, "retentionDays": 7, "rotateSeconds": 9},
    "identity": {"userHeader": "X-Member", "trustedProxies": ["10.0.0.0/8"], "secureCookie": False},
}
"""Of every setting another value than its default."""

SECTIONS: dict[str, type[Record]] = {
    "moderation": ModerationSpec,
    "limits": LimitsSpec,
    "capture": CaptureSpec,
    "identity": IdentitySpec,
}


def configured(**spec: Any) -> GatewayConfig:  # noqa: ANN401 -- fields of the spec
    return gateway(
        image="gateway:1",
        spec=GatewaySpec.model_validate(spec),
        serves="luna-1",
        lineage="luna",
        artifacts="pvc://artifacts/runs",
        characters=[],
    ).config


def test_every_setting_is_looked_at_here() -> None:
    for section, model in SECTIONS.items():
        assert {model.model_fields[name].alias or name for name in model.model_fields} == set(OTHER[section])


@pytest.mark.parametrize(("section", "name"), [(s, n) for s, names in OTHER.items() for n in names])
def test_every_setting_reaches_the_gateway(section: str, name: str) -> None:
    # The header counts only where somebody is trusted to set it.
    trusted = {"trustedProxies": ["192.0.2.1"]} if name == "userHeader" else {}
    before = configured(**{section: trusted})
    assert configured(**{section: {**trusted, name: OTHER[section][name]}}) != before
