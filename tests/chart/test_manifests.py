"""The manifests for those without helm: generated, and the same objects as the chart's."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from charts import sync
from tests.kubernetes_fixtures import ROOT, Object

MANIFESTS = ROOT / "manifests"


@pytest.fixture(scope="session")
def kustomize(kubectl_program: Path) -> Callable[[str], list[Object]]:
    """What `kubectl apply -k` would apply."""

    def build(folder: str) -> list[Object]:
        command = [str(kubectl_program), "kustomize", str(MANIFESTS / folder)]
        return sync.parsed(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return build


def by_identity(objects: list[Object]) -> dict[tuple[str, str, str], Object]:
    """The objects by kind, namespace and name."""
    return {(o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]): o for o in objects}


def test_nothing_generated_is_stale() -> None:
    assert sync.stale() == []


@pytest.mark.parametrize("rendered", sync.RENDERINGS, ids=lambda r: r.path.name)
def test_generated_files_are_what_helm_gives_today(helm: Path, rendered: sync.Rendering) -> None:
    """`stale` trusts the digests in the files; this does not."""
    assert rendered.path.read_text() == sync.rendered(helm, rendered)


def test_a_file_that_was_edited_by_hand_is_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = sync.RENDERINGS[1]
    copy = tmp_path / "operator.yaml"
    copy.write_text(source.path.read_text().replace("replicas: 1", "replicas: 2"))
    monkeypatch.setattr(sync, "ROOT", tmp_path)
    monkeypatch.setattr(sync, "RENDERINGS", (sync.Rendering(copy, source.wanted),))
    monkeypatch.setattr(sync, "_copies", lambda: iter(()))
    (sentence,) = sync.stale()
    assert "operator.yaml is not what charts/flywheel gives, or was edited by hand" in sentence


def test_the_base_is_the_chart_with_its_defaults_and_a_namespace(
    helm: Path, kustomize: Callable[[str], list[Object]]
) -> None:
    base, chart = by_identity(kustomize("base")), by_identity(sync.render(helm))
    namespace = base.pop(("Namespace", "", sync.NAMESPACE))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert base == chart


def test_the_overlay_is_the_chart_for_one_namespace(helm: Path, kustomize: Callable[[str], list[Object]]) -> None:
    overlay = by_identity(kustomize("overlays/namespaced"))
    chart = by_identity(sync.render(helm, (f"watchNamespaces={{{sync.WATCHED}}}",)))
    del overlay["Namespace", "", sync.NAMESPACE]
    for objects in (overlay, chart):
        # Kustomize merges the environment by name, which may change its order.
        (deployment,) = (o for o in objects.values() if o["kind"] == "Deployment")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        container["env"].sort(key=lambda variable: variable["name"])
    assert overlay == chart


def test_argo_cds_own_configuration_gets_all_health_checks(kustomize: Callable[[str], list[Object]]) -> None:
    (config,) = kustomize("argocd/health")
    assert (config["metadata"]["name"], config["metadata"]["namespace"]) == ("argocd-cm", "argocd")
    prefix = "resource.customizations.health.characterflywheel.dev_"
    folder = MANIFESTS / "argocd" / "health"
    assert config["data"] == {
        f"{prefix}ABTest": (folder / "abtest.lua").read_text(),
        f"{prefix}Generation": (folder / "generation.lua").read_text(),
        f"{prefix}RewardModel": (folder / "rewardmodel.lua").read_text(),
    }


def test_the_application_sets_only_values_that_the_chart_has(helm: Path) -> None:
    application = yaml.safe_load((MANIFESTS / "argocd" / "application.yaml").read_text())
    assert application["spec"]["source"]["path"] == str(sync.CHART.relative_to(ROOT))
    values = application["spec"]["source"]["helm"]["valuesObject"]
    command = [str(helm), "template", "flywheel", str(sync.CHART), "--kube-version=1.34.0", "--values=-"]
    subprocess.run(command, input=json.dumps(values), text=True, check=True, capture_output=True)


def test_the_first_example_is_short() -> None:
    lines = (MANIFESTS / "examples" / "generation.yaml").read_text().splitlines()
    assert len(lines) <= 30


def test_digests_are_of_content_not_of_time() -> None:
    """Two checkouts give the same files."""
    text = sync.RENDERINGS[0].path.read_text()
    body = text.partition("\n---\n")[2]
    assert f"# text sha256:{hashlib.sha256(body.encode()).hexdigest()}\n" in text
