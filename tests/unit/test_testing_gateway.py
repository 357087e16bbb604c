"""A Generation's own test: the router before its gateway is as wide as the gateway, and believes whom it believes."""

import random
from typing import Any

import pytest

from flywheel_operator.model.abtest import ABTestSpec
from flywheel_operator.model.serving import IdentitySpec
from tests.unit.abtest_bench import between_generations
from tests.unit.lab import Lab

PROXY: dict[str, Any] = {"userHeader": "X-Member", "trustedProxies": ["10.0.0.0/8"]}
OTHER: dict[str, Any] = {"userHeader": "X-Other", "trustedProxies": ["192.168.0.0/16"]}


def test_spec(control: dict[str, Any], treatment: dict[str, Any], template: dict[str, Any]) -> ABTestSpec:
    """The test that gen-2 makes; `control` and `treatment` are gateways."""
    lab = Lab(random.Random(0))
    lab.put("gen-1", serving={"gateway": control})
    lab.go("gen-1")
    lab.put("gen-2", serving={"gateway": treatment}, rollout={"abTest": template})
    lab.go("gen-2", rounds=30)
    return lab.tests["gen-2-test"].spec


test_spec.__test__ = False  # type: ignore[attr-defined] -- pytest would collect it by its name


@pytest.mark.parametrize("template", [{}, {"identity": IdentitySpec().to_json()}])
def test_the_routers_identity_is_the_gateways(template: dict[str, Any]) -> None:
    """Also where the API server has written the template's defaults out."""
    identity = test_spec({}, {"identity": PROXY}, template).identity
    assert (identity.user_header, identity.trusted_proxies) == ("X-Member", ["10.0.0.0/8"])


def test_the_templates_own_identity_stays() -> None:
    assert test_spec({}, {"identity": PROXY}, {"identity": OTHER}).identity.user_header == "X-Other"


@pytest.mark.parametrize(
    ("control", "treatment", "expected"),
    [
        ({}, {"bodyBytes": 16 << 20, "timeoutSeconds": 7200}, (16 << 20, 7200)),
        ({"bodyBytes": 16 << 20, "timeoutSeconds": 7200}, {}, (16 << 20, 7200)),
        ({}, {}, (1 << 20, 300)),
    ],
)
def test_its_limits_are_the_wider_ones_of_the_arms(
    control: dict[str, Any], treatment: dict[str, Any], expected: tuple[int, int]
) -> None:
    limits = test_spec({"limits": control}, {"limits": treatment}, {}).serving.gateway.limits
    assert (limits.body_bytes, limits.timeout_seconds) == expected


def test_of_a_control_whose_object_is_gone_nothing_is_known() -> None:
    lab = Lab(random.Random(0))
    lab.put("gen-1", serving={"gateway": {"limits": {"bodyBytes": 16 << 20}}})
    lab.go("gen-1")
    lab.put("gen-2", rollout={"abTest": {}})
    del lab.generations["gen-1"]
    lab.go("gen-2", rounds=30)
    assert lab.tests["gen-2-test"].spec.serving.gateway.limits.body_bytes == 1 << 20


def test_the_router_takes_them() -> None:
    spec = test_spec({}, {"identity": PROXY, "limits": {"bodyBytes": 16 << 20}}, {})
    bench = between_generations(identity=spec.identity.to_json(), serving=spec.serving.to_json())
    bench.step()
    (config,) = (m for (kind, _), m in bench.manifests.items() if kind == "ConfigMap" and "nginx.conf" in m["data"])
    text = config["data"]["nginx.conf"]
    assert f"client_max_body_size {16 << 20};" in text
    assert "10.0.0.0/8 1;" in text
    assert "http_x_member" in text


@pytest.mark.parametrize(("seconds", "expected"), [(300, 600), (7200, 7230)])
def test_the_router_waits_for_longer_than_the_gateway(seconds: int, expected: int) -> None:
    spec = test_spec({}, {"limits": {"timeoutSeconds": seconds}}, {})
    bench = between_generations(serving=spec.serving.to_json())
    bench.step()
    (config,) = (m for (kind, _), m in bench.manifests.items() if kind == "ConfigMap" and "nginx.conf" in m["data"])
    assert f"proxy_read_timeout {expected}000ms;" in config["data"]["nginx.conf"]
