"""The chart in a real cluster: installed, upgraded, uninstalled; rights that suffice and no more; Pod Security."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from charts.sync import CHART
from tests.chart import rendering
from tests.crds import examples
from tests.kubernetes_fixtures import GROUP, Kubectl, Object

pytestmark = pytest.mark.apiserver

PLURALS = ("generations", "rewardmodels")
IN_EVERY_NAMESPACE = {
    f"abtests.{GROUP}": "get list watch patch create",
    f"abtests.{GROUP}/status": "patch",
    f"generations.{GROUP}": "get list watch patch",
    f"rewardmodels.{GROUP}": "get list watch patch",
    f"generations.{GROUP}/status": "patch",
    f"rewardmodels.{GROUP}/status": "patch",
    f"generations.{GROUP}/finalizers": "update",
    "jobs.batch": "get list watch create delete",
    "pods": "list watch",
    "configmaps": "get list watch create delete",
    "deployments.apps": "get list watch create patch delete",
    "services": "get list watch create update patch delete",
    "poddisruptionbudgets.policy": "get create patch",
    "secrets": "create",
    "events.events.k8s.io": "create patch",
}
NOWHERE = {
    "secrets": "get list watch update patch delete",
    "pods": "create delete",
    "pods/exec": "create",
    f"generations.{GROUP}": "create delete update",
    "namespaces": "list create delete",
    "serviceaccounts": "get impersonate",
    "customresourcedefinitions": "get list update",
}


@pytest.fixture
def crds_as_before(cluster_kubectl: Kubectl) -> Iterator[None]:
    """Helm writes its ownership on the CRDs; other tests' releases may own them."""
    before = {name: _marks(cluster_kubectl, name) for name in PLURALS}
    yield
    for name, marks in before.items():
        now = _marks(cluster_kubectl, name)
        patch = {part: dict.fromkeys(now[part]) | marks[part] for part in marks}
        cluster_kubectl("patch", "crd", f"{name}.{GROUP}", "--type=merge", "-p", json.dumps({"metadata": patch}))


@pytest.fixture
def in_cluster_helm(helm: Path, kubectl: Kubectl, crds_as_before: None) -> Iterator[Callable[..., str]]:
    """helm for a release of the test's own, which is removed in the end; no operator runs."""
    release = f"r{uuid.uuid4().hex[:6]}"

    def call(*arguments: str, values: tuple[str, ...] = ()) -> str:
        where = (f"--kubeconfig={kubectl.kubeconfig}", f"--namespace={kubectl.namespace}")
        verb, *rest = arguments
        done = rendering.run(helm, verb, release, *rest, *where, values=values)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield call
    rendering.run(
        helm,
        "uninstall",
        release,
        "--ignore-not-found",
        f"--kubeconfig={kubectl.kubeconfig}",
        f"--namespace={kubectl.namespace}",
    )


def test_install_upgrade_uninstall_and_what_stays(in_cluster_helm: Callable[..., str], kubectl: Kubectl) -> None:
    chart = (str(CHART), "--take-ownership")
    notes = in_cluster_helm("install", *chart, values=("replicas=0",))
    assert "replicas is 0: the operator is stopped" in notes
    assert "kubectl apply -f manifests/examples/reward-model.yaml -f manifests/examples/generation.yaml" in notes
    kubectl.apply(examples.generation(kubectl.namespace))

    in_cluster_helm("upgrade", *chart, values=("replicas=0", f"watchNamespaces={{{kubectl.namespace}}}"))
    (deployment,) = kubectl.json("get", "deployments")["items"]
    environment = {e["name"]: e.get("value") for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert environment["FLYWHEEL_NAMESPACES"] == kubectl.namespace
    assert len(kubectl.json("get", "roles")["items"]) == 2

    in_cluster_helm("uninstall")
    assert kubectl.json("get", "deployments,roles,rolebindings,services")["items"] == []
    assert kubectl("get", "generations", "--output=name") == f"generation.{GROUP}/luna-1\n"
    conditions = kubectl.json("get", "crd", f"generations.{GROUP}")["status"]["conditions"]
    assert {c["type"]: c["status"] for c in conditions}["Established"] == "True"


@pytest.mark.parametrize("mode", ["cluster-wide", "namespaced"])
def test_the_operator_may_do_what_it_does_and_no_more(
    in_cluster_helm: Callable[..., str], kubectl: Kubectl, mode: str
) -> None:
    watched = () if mode == "cluster-wide" else (f"watchNamespaces={{{kubectl.namespace}}}",)
    in_cluster_helm("install", str(CHART), "--take-ownership", values=("replicas=0", *watched))
    (account,) = (
        a for a in kubectl.json("get", "serviceaccounts")["items"] if a["metadata"]["name"].endswith("-operator")
    )
    here = _allowed(kubectl, account, kubectl.namespace)
    lease = account["metadata"]["name"]
    wanted = {(verb, what) for what, verbs in IN_EVERY_NAMESPACE.items() for verb in verbs.split()}
    assert wanted - here == set()
    assert {("create", "leases.coordination.k8s.io"), ("get", f"leases.coordination.k8s.io/{lease}")} <= here
    forbidden = {(verb, what) for what, verbs in NOWHERE.items() for verb in verbs.split()}
    assert here & forbidden == set()
    elsewhere = _allowed(kubectl, account, "default")
    assert wanted - elsewhere == (set() if mode == "cluster-wide" else wanted)


def test_people_who_may_view_or_edit_may_do_so_with_ours(in_cluster_helm: Callable[..., str], kubectl: Kubectl) -> None:
    in_cluster_helm("install", str(CHART), "--take-ownership", values=("replicas=0",))
    for role in ("view", "edit"):
        kubectl("create", "rolebinding", f"{role}er", f"--clusterrole={role}", f"--user={role}er")

    def may(user: str, verb: str, what: str, *arguments: str) -> bool:
        return kubectl.run("auth", "can-i", verb, what, f"--as={user}", *arguments).stdout.strip() == "yes"

    deadline = time.monotonic() + 30
    while not may("editer", "create", f"generations.{GROUP}"):
        assert time.monotonic() < deadline, "the controller-manager has not added our rules to `edit`"
        time.sleep(0.5)
    assert may("viewer", "list", f"generations.{GROUP}")
    assert not may("viewer", "create", f"generations.{GROUP}")
    assert may("editer", "get", f"rewardmodels.{GROUP}")
    assert not may("editer", "patch", f"generations.{GROUP}", "--subresource=status")


def test_pod_security_restricted_lets_the_operator_in(helm: Path, kubectl: Kubectl) -> None:
    policy = ("enforce", "warn")
    kubectl("label", "namespace", kubectl.namespace, *(f"pod-security.kubernetes.io/{p}=restricted" for p in policy))
    objects = rendering.template(helm, namespace=kubectl.namespace)
    deployment = rendering.deployment(objects)
    kubectl.apply(*rendering.of_kind(objects, "ServiceAccount"))
    done = kubectl.run("create", "--dry-run=server", "--filename=-", stdin=yaml.safe_dump(deployment))
    assert (done.returncode, done.stderr) == (0, "")

    def pod(**changes: object) -> Object:
        spec = deployment["spec"]["template"]["spec"]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec | changes}

    kubectl("create", "--dry-run=server", "--filename=-", stdin=yaml.safe_dump(pod()))
    refused = kubectl.run("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod(hostNetwork=True)))
    assert "violates PodSecurity" in refused.stderr


def test_everything_the_chart_makes_is_valid(helm: Path, kubectl: Kubectl) -> None:
    """By strict validation; what the Prometheus operator reads is unknown to this cluster."""
    for values in ((), (f"watchNamespaces={{{kubectl.namespace}}}",)):
        extras = ("podDisruptionBudget.enabled=true", "metrics.dashboard.enabled=true", "crds.install=false")
        objects = rendering.template(helm, *values, *extras, namespace=kubectl.namespace, release=kubectl.namespace)
        kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump_all(objects))


def _allowed(kubectl: Kubectl, account: Object, namespace: str) -> set[tuple[str, str]]:
    """Verb and resource of everything that a ServiceAccount may do in a namespace, as the API server counts it."""
    user = f"system:serviceaccount:{account['metadata']['namespace']}:{account['metadata']['name']}"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    asked = ("create", f"--as={user}", "--validate=false", "--filename=-", "--output=json")
    status = json.loads(kubectl(*asked, stdin=json.dumps(review)))["status"]
    assert not status["incomplete"]
    return {
        (verb, _full(group, resource, name))
        for rule in status["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
        for verb in rule["verbs"]
    }


def _full(group: str, resource: str, name: str) -> str:
    plural, _, sub = resource.partition("/")
    full = f"{plural}.{group}" if group else plural
    return "/".join(part for part in (full, sub, name) if part)


def _marks(kubectl: Kubectl, plural: str) -> Object:
    metadata = kubectl.json("get", "crd", f"{plural}.{GROUP}")["metadata"]
    return {part: metadata.get(part, {}) for part in ("labels", "annotations")}
