"""The router's objects: another behaviour has another name, a pod may do no more than it must, and leaves politely."""

from typing import Any

import pytest

from flywheel_operator.manifests import router
from flywheel_operator.manifests.common import labels
from flywheel_operator.manifests.router_config import RouterConfig, Timeouts, Upstream
from flywheel_operator.model.abtest import RouterSpec
from flywheel_operator.model.names import ANNOTATION_CONFIG
from flywheel_operator.model.runtime import Runtime
from tests.router.harness import ENTRYPOINT

CONFIG = RouterConfig(lineage="luna", production=Upstream(("luna-control:80",)))
METADATA: dict[str, Any] = {
    "namespace": "lab",
    "labels": labels("ABTest", "luna-2", router.ROUTER, "luna"),
    "ownerReferences": [{"name": "luna-2"}],
}


def deployment(config: RouterConfig = CONFIG, **spec: Any) -> Any:  # noqa: ANN401 -- a manifest
    return router.deployment(
        name="luna-2-router", owner="luna-2", metadata=METADATA, config=config, spec=RouterSpec(**spec),
        runtime=Runtime(), image="router:1", key="luna-users-key", pull_secrets=("pull",),
    )  # fmt: skip


def test_another_behaviour_is_another_immutable_config() -> None:
    one = router.config_map("luna-2", CONFIG, METADATA)
    other = RouterConfig(lineage="luna", production=Upstream(("luna-control:81",)))
    assert one["immutable"] is True
    assert list(one["data"]) == ["nginx.conf"]
    assert one["metadata"]["name"] == router.config_name("luna-2", CONFIG) != router.config_name("luna-2", other)
    assert router.config_name("luna-2", CONFIG) != router.config_name("luna-3", CONFIG)
    assert one["metadata"]["ownerReferences"] == METADATA["ownerReferences"]


def test_a_changed_config_rolls_the_pods_and_says_which_it_is() -> None:
    made = deployment(replicas=3)
    name = router.config_name("luna-2", CONFIG)
    assert made["metadata"]["annotations"] == {ANNOTATION_CONFIG: name}
    volumes = {v["name"]: v for v in made["spec"]["template"]["spec"]["volumes"]}
    assert volumes["config"]["configMap"]["name"] == name
    assert made["spec"]["replicas"] == 3
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert made["spec"]["selector"]["matchLabels"] == made["spec"]["template"]["metadata"]["labels"]


def test_it_is_restricted_and_sees_the_token_alone() -> None:
    pod = deployment()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["token"]["secret"] == {
        "secretName": "luna-users-key",
        "items": [{"key": "router-token", "path": "token"}],
    }
    assert {m["name"] for m in container["volumeMounts"] if not m.get("readOnly")} == {"tmp"}
    # Where the entrypoint looks for them.
    script = ENTRYPOINT.read_text()
    assert f"{router.CONFIG_FOLDER}/nginx.conf" in script
    assert f"{router.TOKEN_FOLDER}/token" in script


def test_users_come_in_by_the_port_that_the_service_points_at() -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == {"http": 8002, "health": 9103}
    assert container["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}


@pytest.mark.parametrize(("turnover", "idle", "drain"), [(10, 65, 80), (1, 2.5, 9)])
def test_there_is_time_to_leave(turnover: float, idle: float, drain: int) -> None:
    times = Timeouts(turnover=turnover, idle=idle)
    config = RouterConfig(lineage="luna", production=CONFIG.production, timeouts=times)
    pod = deployment(config, drain_seconds=300)["spec"]["template"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert hook == ["flywheel-router", "drain", str(drain), "9103"]
    assert pod["terminationGracePeriodSeconds"] == drain + 300


def test_a_single_pod_may_be_evicted() -> None:
    budget = router.disruption_budget("luna-2-router", METADATA)
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"] == {"matchLabels": METADATA["labels"]}
