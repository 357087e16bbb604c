"""The configuration of every server, rendered from a layout and its addresses: pure functions.

The choices that look odd are explained where they are made; docs/cluster.md tells how they were found.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from e2e.cluster.layout import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.cluster.layout import Addresses, Layout

Json = dict[str, Any]

DOMAIN = "cluster.local"
PAUSE_IMAGE = f"docker.io/{PROJECT}/pause:local"
COREDNS_IMAGE = f"docker.io/{PROJECT}/coredns:local"
PROVISIONER = f"{PROJECT}.dev/local"
CNI_BINARIES = "/usr/lib/cni"
ETCD_PORT = 2379
API_PORT = 6443


def containerd(layout: Layout, *, registries: Path | None = None) -> str:
    """Render containerd's TOML; own root, state and socket, so that it meets no other containerd.

    `restrict_oom_score_adj` lets sandboxes start where CAP_SYS_RESOURCE is missing (in a container or a
    confined VM), and does nothing elsewhere.
    """
    quote = json.dumps  # a JSON string is a TOML basic string
    table = '[plugins."io.containerd.grpc.v1.cri".registry]'
    registry = f"\n{table}\nconfig_path = {quote(str(registries))}\n" if registries else ""
    return f"""version = 2
root = {quote(str(layout.containerd))}
state = {quote(str(layout.run / "containerd"))}
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
address = {quote(str(layout.containerd_socket))}

[ttrpc]
address = {quote(str(layout.containerd_socket) + ".ttrpc")}

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {quote(PAUSE_IMAGE)}
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {quote(CNI_BINARIES)}
conf_dir = {quote(str(layout.config / "cni"))}

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
Root = {quote(str(layout.run / "runc"))}
{registry}"""


def cni(layout: Layout, addresses: Addresses) -> Json:
    """Render the pod network: a bridge in the cluster's namespace, with addresses kept in our own folder."""
    return {
        "cniVersion": "0.4.0",
        "name": layout.network,
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": str(addresses.pods)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": str(layout.run / "cni"),
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def kubelet(layout: Layout, addresses: Addresses) -> Json:
    """Render the KubeletConfiguration.

    The eviction thresholds are low and images are never collected: on a small disk the kubelet would
    otherwise remove images that nobody can pull again.
    """
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": str(addresses.node),
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(layout.pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(layout.pki / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}/pods",
        "podLogsDir": str(layout.pod_logs),
        "volumePluginDir": str(layout.run / "volume-plugins"),
        "staticPodPath": "",
        "clusterDomain": DOMAIN,
        "clusterDNS": [str(addresses.dns_service)],
        "resolvConf": str(layout.config / "resolv.conf"),
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "failSwapOn": False,
        "maxPods": 250,
        "registerNode": True,
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "5s",
        "shutdownGracePeriod": "0s",
        "logging": {"format": "text"},
    }


def kube_proxy(layout: Layout, addresses: Addresses) -> Json:
    """Render the KubeProxyConfiguration.

    It leaves the conntrack sysctls alone, which may be read-only. It masquerades everything: without the kernel
    module br_netfilter, the answer of a pod on the same bridge would otherwise go past the translation. Its rules
    follow a change within a second, as in any cluster: what holds here without retries holds elsewhere.
    """
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(layout.config / "kube-proxy.kubeconfig")},
        "clusterCIDR": str(addresses.pods),
        "hostnameOverride": layout.name,
        "mode": "iptables",
        "bindAddress": str(addresses.node),
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "iptables": {"masqueradeAll": True, "syncPeriod": "30s"},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def kubeconfig(*, name: str, server: str, ca: bytes, certificate: bytes, key: bytes) -> Json:
    """Render a kubeconfig with everything inside, for the PEM contents given."""

    def text(content: bytes) -> str:
        return base64.b64encode(content).decode()

    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": text(ca)}}],
        "users": [{"name": name, "user": {"client-certificate-data": text(certificate), "client-key-data": text(key)}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }


def etcd_arguments(layout: Layout) -> list[str]:
    """Arguments of etcd: one member on loopback. Without fsync, since only a power cut would lose data."""
    client, peer = f"http://127.0.0.1:{ETCD_PORT}", "http://127.0.0.1:2380"
    return [
        "--name=node",
        f"--data-dir={layout.etcd}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=node={peer}",
        "--unsafe-no-fsync",
        "--snapshot-count=10000",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        "--log-level=warn",
    ]


def apiserver_arguments(layout: Layout, addresses: Addresses) -> list[str]:
    """Arguments of the API server."""
    pki = layout.pki
    return [
        f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}",
        f"--advertise-address={addresses.node}",
        f"--bind-address={addresses.node}",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={addresses.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={pki / 'ca.crt'}",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki / 'front-proxy.crt'}",
        f"--proxy-client-key-file={pki / 'front-proxy.key'}",
        f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
        f"--service-account-key-file={pki / 'service-accounts.key'}",
        f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
        "--endpoint-reconciler-type=lease",
        "--event-ttl=6h",
    ]


def controller_manager_arguments(layout: Layout, addresses: Addresses) -> list[str]:
    """Arguments of the controller-manager. It elects no leader: there is one."""
    own = layout.config / "kube-controller-manager.kubeconfig"
    return [
        f"--kubeconfig={own}",
        f"--authentication-kubeconfig={own}",
        f"--authorization-kubeconfig={own}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={layout.pki / 'service-accounts.key'}",
        f"--root-ca-file={layout.pki / 'ca.crt'}",
        f"--cluster-signing-cert-file={layout.pki / 'ca.crt'}",
        f"--cluster-signing-key-file={layout.pki / 'ca.key'}",
        f"--cluster-cidr={addresses.pods}",
        f"--service-cluster-ip-range={addresses.services}",
        "--allocate-node-cidrs=false",
        "--controllers=*,bootstrapsigner,tokencleaner",
        # The attach-detach and volume controllers look at volume plugins in a folder of the machine.
        f"--flex-volume-plugin-dir={layout.run / 'volume-plugins'}",
    ]


def scheduler_arguments(layout: Layout) -> list[str]:
    """Arguments of the scheduler."""
    own = layout.config / "kube-scheduler.kubeconfig"
    return [
        f"--kubeconfig={own}",
        f"--authentication-kubeconfig={own}",
        f"--authorization-kubeconfig={own}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
    ]


def kubelet_arguments(layout: Layout, addresses: Addresses) -> list[str]:
    """Arguments of the kubelet that its configuration file cannot hold."""
    return [
        f"--config={layout.config / 'kubelet.json'}",
        f"--kubeconfig={layout.config / 'kubelet.kubeconfig'}",
        f"--root-dir={layout.kubelet}",
        f"--cert-dir={layout.pki}",
        f"--hostname-override={layout.name}",
        f"--node-ip={addresses.node}",
    ]


def provisioner_arguments(layout: Layout) -> list[str]:
    """Arguments of the volume provisioner (e2e/cluster/go/kubernetes/provisioner.go)."""
    return [
        f"--kubeconfig={layout.config / 'local-provisioner.kubeconfig'}",
        f"--folder={layout.volumes}",
        f"--node={layout.name}",
        f"--provisioner-name={PROVISIONER}",
    ]
