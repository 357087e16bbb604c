"""Installs the operator by its chart into a target, and fills a claim with files: shared by demo and cluster tests."""

import contextlib
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.images.targets import Target
from e2e.kubectl import Kubectl, KubectlError, Manifest

ROOT = Path(__file__).resolve().parents[1]
RELEASE = "flywheel"
IMAGES = ("operator", "trainer", "gateway", "router", "analysis")
LOADER = "claim-loader"
CLAIM_FOLDER = "/mnt/claim"
CRDS = tuple(f"{kind}.characterflywheel.dev" for kind in ("abtests", "generations", "rewardmodels"))


def namespace_manifest(name: str) -> Manifest:
    """A namespace that enforces Pod Security restricted."""
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": enforced}}


def claim_manifest(name: str, size: str) -> Manifest:
    """A claim of the default storage class. One node mounts it, so ReadWriteOnce is enough here."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    }


def install(target: Target, namespace: str, images: dict[str, str], **values: Any) -> None:  # noqa: ANN401 -- Helm values
    """`helm upgrade --install` of the chart, watching one namespace, and waits until the operator is ready.

    Raises:
        subprocess.CalledProcessError: helm failed; it has printed why.
    """
    settings = {
        **_image("image", images["operator"]),
        **{k: v for name in IMAGES[1:] for k, v in _image(f"{name}Image", images[name]).items()},
        "watchNamespaces[0]": namespace,
        **values,
    }
    chosen = [word for key, value in settings.items() for word in ("--set-string", f"{key}={value}")]
    command = [
        str(target.helm),
        f"--kubeconfig={target.kubeconfig}",
        "upgrade",
        "--install",
        RELEASE,
        "--take-ownership",
    ]
    chart = [str(ROOT / "charts" / "flywheel"), "--namespace", namespace, "--wait", "--timeout", "3m"]
    subprocess.run([*command, *chart, *chosen], check=True, stdout=subprocess.PIPE, text=True)


def uninstall(target: Target, namespace: str) -> None:
    """`helm uninstall`; a release that is not there is fine."""
    command = [str(target.helm), f"--kubeconfig={target.kubeconfig}", "uninstall", RELEASE, "--ignore-not-found"]
    subprocess.run([*command, "--namespace", namespace, "--wait"], check=True, stdout=subprocess.PIPE)


def remove_namespace(kubectl: Kubectl, name: str) -> None:
    """Deletes a namespace and waits until it is gone; one that is not there is fine.

    The operator goes with it, so nobody is left to take our finalizers off: that is done here.
    """
    if kubectl.get("namespace", name) is None:
        return
    known = kubectl("get", "crds", *CRDS, "--ignore-not-found", "-o", "name").split()
    kinds = ",".join(crd.rpartition("/")[2] for crd in known)
    # Before the namespace: until an object is itself under deletion, the operator puts its finalizer on again.
    if kinds:
        kubectl("delete", kinds, "--all", "--wait=false")
    # A namespace that goes waits half the longest grace of its pods before it looks again: minutes, for a stage's pod.
    # Its Job must not take it along either: a kubelet that is about to wait ten minutes is not told to hurry.
    kubectl("delete", "deployments", "--all", "--wait=false")
    kubectl("delete", "jobs", "--all", "--wait=false", "--cascade=orphan")
    kubectl("delete", "pods", "--all", "--now")
    kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
    for item in kubectl("get", kinds, "-o", "name").split() if kinds else ():
        # The operator may have let it go meanwhile. What is still there the wait below speaks of.
        with contextlib.suppress(KubectlError):
            kubectl("patch", item, "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
    kubectl("wait", "--for=delete", f"namespace/{name}", "--timeout=180s")


def _image(key: str, reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {f"{key}.repository": repository, f"{key}.tag": tag}


@dataclass(frozen=True)
class Loader:
    """A pod that mounts a claim, through which files go in and out."""

    kubectl: Kubectl
    claim: str
    image: str

    def up(self, seconds: int = 180) -> None:
        """Starts the pod and waits until it is ready."""
        self.kubectl.apply(self._manifest())
        self.kubectl("wait", "--for=condition=Ready", f"--timeout={seconds}s", f"pod/{LOADER}")

    def down(self) -> None:
        """Removes the pod."""
        self.kubectl("delete", "pod", LOADER, "--ignore-not-found", "--now")

    def run(self, *command: str) -> str:
        """Runs a command in the pod and answers its output."""
        return self.kubectl("exec", LOADER, "--", *command)

    def put(self, folder: Path, name: str) -> None:
        """Copies a folder's content to `name` on the claim."""
        with tempfile.TemporaryFile() as archive:
            with tarfile.open(fileobj=archive, mode="w") as tar:
                tar.add(folder, arcname=".")
            archive.seek(0)
            script = f"mkdir -p {CLAIM_FOLDER}/{name} && tar -xf - --no-same-owner -C {CLAIM_FOLDER}/{name}"
            command = self.kubectl.command("exec", "-i", LOADER, "--", "sh", "-c", script)
            subprocess.run(command, stdin=archive, check=True, stdout=subprocess.PIPE)

    def fetch(self, name: str, folder: Path) -> None:
        """Copies a folder of the claim to `folder` here."""
        folder.mkdir(parents=True, exist_ok=True)
        command = self.kubectl.command("exec", LOADER, "--", "tar", "-cf", "-", "-C", f"{CLAIM_FOLDER}/{name}", ".")
        with tempfile.TemporaryFile() as archive:
            subprocess.run(command, stdout=archive, check=True)
            archive.seek(0)
            with tarfile.open(fileobj=archive) as tar:
                tar.extractall(folder, filter="data")

    def _manifest(self) -> Manifest:
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": LOADER},
            "spec": {
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 0,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "runAsGroup": 65532,
                    "fsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "loader",
                        "image": self.image,
                        "command": ["sleep", "infinity"],
                        "securityContext": security,
                        "volumeMounts": [{"name": "claim", "mountPath": CLAIM_FOLDER}],
                    }
                ],
                "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": self.claim}}],
            },
        }
