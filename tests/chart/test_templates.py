"""What the chart renders, in both modes and with every extra."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.sync import CHART
from flywheel_operator import settings
from flywheel_operator.metrics import registry
from flywheel_operator.watch import process
from tests.chart import rendering
from tests.kubernetes_fixtures import ROOT, Object
from tests.operator import test_watch_process

MODES = {"cluster-wide": (), "namespaced": ("watchNamespaces={team-a,team-b}",)}


@pytest.fixture(params=MODES)
def objects(request: pytest.FixtureRequest, helm: Path) -> list[Object]:
    """Everything, in each mode."""
    return rendering.template(helm, *MODES[request.param], *rendering.ALL_EXTRAS)


@pytest.mark.parametrize("mode", MODES)
def test_lint_has_nothing_to_say(helm: Path, mode: str) -> None:
    done = rendering.run(helm, "lint", "--strict", str(CHART), values=(*MODES[mode], *rendering.ALL_EXTRAS))
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout


def test_no_rule_reads_secrets_or_has_wildcards(objects: list[Object]) -> None:
    roles = rendering.of_kind(objects, "Role", "ClusterRole")
    assert roles
    for role in roles:
        for rule in role["rules"]:
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            name = role["metadata"]["name"]
            assert not words & {"*", "escalate", "bind", "impersonate", "pods/exec"}, name
            if "secrets" in rule["resources"]:
                assert (rule["resources"], rule["verbs"]) == (["secrets"], ["create"]), f"{name} may read Secrets"


def test_cluster_wide_the_operator_has_one_cluster_role(helm: Path) -> None:
    objects = rendering.template(helm)
    bindings = [b["metadata"]["name"] for b in rendering.of_kind(objects, "ClusterRoleBinding")]
    assert bindings == ["flywheel-operator"]
    assert _places(objects, "Role") == [("flywheel-system", "flywheel-operator-lease")]
    assert rendering.environment(objects)["FLYWHEEL_NAMESPACES"] == ""


def test_namespaced_it_has_no_right_outside_its_namespaces(helm: Path) -> None:
    objects = rendering.template(helm, *MODES["namespaced"])
    assert rendering.of_kind(objects, "ClusterRoleBinding") == []
    places = [
        ("flywheel-system", "flywheel-operator-lease"),
        ("team-a", "flywheel-operator"),
        ("team-b", "flywheel-operator"),
    ]
    assert _places(objects, "Role") == _places(objects, "RoleBinding") == places
    assert rendering.environment(objects)["FLYWHEEL_NAMESPACES"] == "team-a,team-b"


def test_both_modes_grant_the_same(helm: Path) -> None:
    (wide,) = (
        r
        for r in rendering.of_kind(rendering.template(helm), "ClusterRole")
        if r["metadata"]["name"] == "flywheel-operator"
    )
    narrow = rendering.of_kind(rendering.template(helm, *MODES["namespaced"]), "Role")
    assert [r["rules"] for r in narrow if r["metadata"]["namespace"] == "team-a"] == [wide["rules"]]


def test_what_it_grants_is_what_the_operator_is_shown_to_run_with(helm: Path) -> None:
    """tests/operator starts the whole operator under these rules."""

    def flat(rules: Iterator[tuple[list[str], list[str], list[str]]]) -> set[tuple[str, str, str]]:
        return {(g, r, v) for groups, resources, verbs in rules for g in groups for r in resources for v in verbs}

    granted = [
        rule
        for role in rendering.of_kind(rendering.template(helm, "watchNamespaces={team-a}"), "Role")
        for rule in role["rules"]
    ]
    shown = flat(iter(test_watch_process.RULES))
    assert flat((rule["apiGroups"], rule["resources"], rule["verbs"]) for rule in granted) == shown


def test_the_operator_understands_its_environment(helm: Path, tmp_path: Path) -> None:
    """The names are the operator's own, and each says what the value says."""
    values = ("watchNamespaces={team-a}", "operator.workers=7", "operator.port=9090", "operator.resyncSeconds=60")
    objects = rendering.template(helm, *values, "trainerImage.pullSecrets={registry}", "operator.logLevel=debug")
    given = rendering.environment(objects) | {"FLYWHEEL_LEASE_NAMESPACE": "flywheel-system"}
    (tmp_path / "namespace").write_text("flywheel-system")
    parsed = settings.parse([], given, tmp_path / "namespace")
    assert parsed.trainer_image == "docker.io/characterflywheel/trainer:0.1.0"
    assert parsed.namespaces == ("team-a",)
    assert (parsed.workers, parsed.port, parsed.resync_seconds, parsed.log_level) == (7, 9090, 60, "debug")
    assert parsed.image_pull_secrets == ("registry",)
    (lease,) = (r for r in rendering.of_kind(objects, "Role") if r["metadata"]["name"].endswith("-lease"))
    assert lease["rules"][0]["resourceNames"] == [parsed.lease_name]


def test_images_by_tag_and_by_digest(helm: Path) -> None:
    digest = "sha256:" + "0" * 64
    objects = rendering.template(
        helm,
        "image.repository=r.example/op",
        "image.tag=v1",
        "trainerImage.repository=r.example/tr",
        f"trainerImage.digest={digest}",
    )
    assert rendering.container(objects)["image"] == "r.example/op:v1"
    assert rendering.environment(objects)["FLYWHEEL_TRAINER_IMAGE"] == f"r.example/tr@{digest}"


def test_crds_are_those_of_the_folder_and_stay(helm: Path) -> None:
    rendered = {
        c["metadata"]["name"]: c for c in rendering.of_kind(rendering.template(helm), "CustomResourceDefinition")
    }
    for path in (ROOT / "crds").glob("*.yaml"):
        source = yaml.safe_load(path.read_text())
        crd = rendered.pop(source["metadata"]["name"])
        assert crd["spec"] == source["spec"]
        assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert rendered == {}


def test_crds_can_be_left_to_others_or_go_with_the_release(helm: Path) -> None:
    assert rendering.of_kind(rendering.template(helm, "crds.install=false"), "CustomResourceDefinition") == []
    for crd in rendering.of_kind(rendering.template(helm, "crds.keep=false"), "CustomResourceDefinition"):
        assert "annotations" not in crd["metadata"]


def test_every_object_has_the_labels_of_the_convention(objects: list[Object]) -> None:
    for o in objects:
        labels = o["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "flywheel"
        assert labels["app.kubernetes.io/instance"] == "flywheel"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["helm.sh/chart"] == "flywheel-0.1.0"


def test_placement_and_extras_reach_the_pod(helm: Path) -> None:
    pod = rendering.deployment(
        rendering.template(
            helm,
            "imagePullSecrets[0].name=registry",
            "priorityClassName=high",
            "nodeSelector.disk=ssd",
            "tolerations[0].operator=Exists",
            "extraEnv[0].name=HTTPS_PROXY",
            "extraEnv[0].value=http://proxy",
            "affinity.nodeAffinity.x=y",
            "topologySpreadConstraints[0].maxSkew=1",
        )
    )["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["priorityClassName"] == "high"
    assert pod["nodeSelector"] == {"disk": "ssd"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["affinity"] == {"nodeAffinity": {"x": "y"}}
    assert pod["topologySpreadConstraints"] == [{"maxSkew": 1}]
    assert {"name": "HTTPS_PROXY", "value": "http://proxy"} in pod["containers"][0]["env"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("replicas=two", ["/replicas", "want integer"]),
        ("replica=2", ["additional properties 'replica' not allowed"]),
        ("watchNamespaces=team-a", ["/watchNamespaces", "want array"]),
        ("watchNamespaces={Team_A}", ["/watchNamespaces/0", "pattern"]),
        ("image.digest=latest", ["/image/digest", "pattern"]),
        ("operator.logLevel=loud", ["/operator/logLevel", "must be one of"]),
        ("metrics.serviceMonitor.intervall=1m", ["/metrics/serviceMonitor", "'intervall' not allowed"]),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(helm: Path, value: str, words: list[str]) -> None:
    done = rendering.run(helm, "template", "flywheel", str(CHART), "--kube-version=1.34.0", values=(value,))
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (("metrics.serviceMonitor.enabled=true", "metrics.service.enabled=false"), "it needs metrics.service.enabled"),
        (("serviceAccount.create=false",), "name the ServiceAccount"),
    ],
)
def test_values_that_do_not_go_together_are_refused(helm: Path, values: tuple[str, ...], sentence: str) -> None:
    done = rendering.run(helm, "template", "flywheel", str(CHART), "--kube-version=1.34.0", values=values)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_an_older_cluster_is_refused(helm: Path) -> None:
    done = rendering.run(helm, "template", "flywheel", str(CHART), "--kube-version=1.29.9")
    assert "requires kubeVersion: >=1.30.0-0" in done.stderr


def test_the_schema_knows_every_value_and_no_other() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(_known(schema)) - {"global"} == set(_leaves(values, schema))


def test_every_value_has_a_comment() -> None:
    """Above it, or above the block that it is in where the schema leaves the block to Kubernetes."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare, path = [], []
    for number, line in enumerate(lines):
        match = re.match(r"^( *)(\w+):", line)
        if not match:
            continue
        path = [*path[: len(match[1]) // 2], match[2]]
        if ".".join(path) in set(_known(schema)) and not lines[number - 1].strip().startswith("#"):
            bare.append(".".join(path))
    assert bare == []


def test_alerts_and_dashboard_are_well_formed(helm: Path) -> None:
    objects = rendering.template(helm, *rendering.ALL_EXTRAS)
    (rule,) = rendering.of_kind(objects, "PrometheusRule")
    for group in rule["spec"]["groups"]:
        for alert in group["rules"]:
            assert alert["expr"].count("(") == alert["expr"].count(")"), alert["alert"]
            assert 'job="flywheel-operator"' in alert["expr"]
            assert {"summary", "description"} == set(alert["annotations"])
    (dashboard,) = (
        json.loads(o["data"]["flywheel.json"])
        for o in rendering.of_kind(objects, "ConfigMap")
        if "flywheel.json" in o["data"]
    )
    panels = [p for p in dashboard["panels"] if p["type"] != "row"]
    assert all(p["description"] and p["targets"] for p in panels)
    assert len({p["id"] for p in dashboard["panels"]}) == len(dashboard["panels"])


def test_alerts_and_dashboard_ask_for_metrics_that_the_operator_has(helm: Path) -> None:
    objects = rendering.template(helm, *rendering.ALL_EXTRAS)
    text = json.dumps(rendering.of_kind(objects, "PrometheusRule", "ConfigMap"))
    asked = {name.removesuffix("_bucket") for name in re.findall(r"flywheel_[a-z_]+", text)}
    has = set(re.findall(r"^# TYPE (\w+)", registry.Metrics().text().decode(), re.MULTILINE))
    # Gauges of the running process are added where it is put together.
    has |= set(re.findall(r'"(flywheel_[a-z_]+)"', Path(process.__file__).read_text()))
    assert len(asked) > 10
    assert asked - has == set()


def _places(objects: list[Object], kind: str) -> list[tuple[str, str]]:
    return sorted((o["metadata"]["namespace"], o["metadata"]["name"]) for o in rendering.of_kind(objects, kind))


def _known(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """The leaves that the schema lists."""
    for name, child in schema.get("properties", {}).items():
        if "properties" in child:
            yield from _known(child, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def _leaves(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """The values, as deep as the schema goes."""
    for name, value in values.items():
        child = schema.get("properties", {}).get(name, {})
        if "properties" in child:
            yield from _leaves(value, child, f"{path}{name}.")
        else:
            yield f"{path}{name}"
