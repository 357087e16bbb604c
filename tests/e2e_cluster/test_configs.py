"""Rendered configuration: valid in form, and nothing of one cluster in another's."""

import json
import tomllib
from pathlib import Path

import pytest
import yaml

from e2e.cluster import addons, api, configs, pki, servers
from e2e.cluster.layout import Addresses, Layout
from e2e.cluster.toolchain import SERVERS, Tools

LAYOUT = Layout.of("one", {"HOME": "/root"})
PLAN = Addresses(1)
TOOLS = Tools(Path("/b/kubernetes"), Path("/b/images"), Path("/b/helm"))


def test_containerd_keeps_to_its_own_folders() -> None:
    config = tomllib.loads(configs.containerd(LAYOUT))
    places = [config["root"], config["state"], config["grpc"]["address"], config["ttrpc"]["address"]]
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    places += [cri["cni"]["conf_dir"], cri["containerd"]["runtimes"]["runc"]["options"]["Root"]]
    assert all(place.startswith(f"{LAYOUT.root}/") for place in places)
    assert cri["restrict_oom_score_adj"] is True
    assert cri["netns_mounts_under_state_dir"] is True


def test_the_kubelet_keeps_to_its_own_folders_and_cgroup() -> None:
    config = configs.kubelet(LAYOUT, PLAN)
    assert config["cgroupRoot"] == "/characterflywheel-one/pods"
    assert config["podLogsDir"].startswith(f"{LAYOUT.root}/")
    assert config["clusterDNS"] == [str(PLAN.dns_service)]
    assert f"--root-dir={LAYOUT.kubelet}" in configs.kubelet_arguments(LAYOUT, PLAN)


def test_the_pod_network_is_the_slots() -> None:
    bridge = configs.cni(LAYOUT, PLAN)["plugins"][0]
    assert bridge["ipam"]["ranges"] == [[{"subnet": str(PLAN.pods)}]]
    assert bridge["ipam"]["dataDir"].startswith(f"{LAYOUT.root}/")
    assert configs.kube_proxy(LAYOUT, PLAN)["clusterCIDR"] == str(PLAN.pods)


def test_a_kubeconfig_has_everything_inside() -> None:
    made = configs.kubeconfig(name="one", server="https://127.0.0.1:1", ca=b"ca", certificate=b"c", key=b"k")
    assert yaml.safe_load(yaml.safe_dump(made)) == made
    assert made["current-context"] == made["contexts"][0]["name"] == "one"
    assert made["clusters"][0]["cluster"]["certificate-authority-data"] == "Y2E="


def test_every_server_is_one_that_the_binary_has_and_only_the_forwarder_is_outside() -> None:
    everything = servers.everything(LAYOUT, PLAN, TOOLS, 16444)
    names = [server.name for server in everything]
    assert len(set(names)) == len(names)
    assert set(servers.BEFORE_API) <= set(names)
    assert set(names) - set(SERVERS) == {"containerd", "forwarder"}
    assert [server.name for server in everything if not server.inside] == ["forwarder"]
    assert everything[names.index("forwarder")].command[-1] == f"16444={PLAN.node}:6443"


def test_no_server_listens_on_every_address() -> None:
    rendered = json.dumps([server.command for server in servers.everything(LAYOUT, PLAN, TOOLS, 1)])
    rendered += json.dumps([configs.kubelet(LAYOUT, PLAN), configs.kube_proxy(LAYOUT, PLAN)])
    assert "0.0.0.0" not in rendered


def test_certificates_name_the_parties_as_kubernetes_reads_them() -> None:
    parties = {party.file: party for party in pki.parties("one", PLAN)}
    assert parties["kubelet-client"].subject == "/O=system:nodes/CN=system:node:one"
    assert "IP:127.0.0.1" in parties["apiserver"].hosts
    assert f"IP:{PLAN.api_service}" in parties["apiserver"].hosts
    assert not parties["admin"].hosts


def test_certificates_are_made_once_and_anew_after_a_crash_half_way(tmp_path: Path) -> None:
    wanted = pki.parties("one", PLAN)[:2]
    pki.create(tmp_path, wanted)
    first = (tmp_path / "apiserver.crt").read_bytes()
    pki.create(tmp_path, wanted)
    assert (tmp_path / "apiserver.crt").read_bytes() == first
    (tmp_path / "complete").unlink()
    pki.create(tmp_path, wanted)
    assert (tmp_path / "apiserver.crt").read_bytes() != first


@pytest.mark.parametrize("manifest", [*addons.dns(PLAN), *addons.storage()])
def test_every_addon_has_a_path(manifest: dict[str, object]) -> None:
    assert api.path_of(manifest).startswith(("/api/v1/", "/apis/"))


def test_paths_of_namespaced_and_cluster_wide_objects() -> None:
    objects = {m["kind"]: api.path_of(m) for m in addons.dns(PLAN)}
    assert objects["Deployment"] == "/apis/apps/v1/namespaces/kube-system/deployments/coredns"
    assert objects["ClusterRole"] == "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:coredns"
    assert objects["Service"] == "/api/v1/namespaces/kube-system/services/kube-dns"
