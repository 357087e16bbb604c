"""The few requests to the API server that bringing up a cluster needs; kubectl would be a 140 MB program each time."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from e2e.cluster.errors import ClusterError

Json = dict[str, Any]

FIELD_MANAGER = "characterflywheel-cluster"

PATHS = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
    "StorageClass": "storageclasses",
}


@dataclass
class Api:
    """A client with the credentials of one kubeconfig."""

    host: str
    port: int
    context: ssl.SSLContext

    @classmethod
    def of(cls, kubeconfig: Path) -> Api:
        """Read a kubeconfig of ours: certificates inside, one cluster, one user."""
        content = yaml.safe_load(kubeconfig.read_text())
        cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
        server = urlsplit(cluster["server"])
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile(suffix=".pem") as pair:  # ssl reads a client's key from files only
            pair.write(base64.b64decode(user["client-certificate-data"]))
            pair.write(base64.b64decode(user["client-key-data"]))
            pair.flush()
            context.load_cert_chain(pair.name)
        return cls(str(server.hostname), int(server.port or 443), context)

    def request(
        self, method: str, path: str, body: Json | None = None, *, kind: str = "application/json"
    ) -> tuple[int, bytes]:
        """Send one request and return status and body.

        Raises:
            OSError: the server cannot be reached.
        """
        connection = http.client.HTTPSConnection(self.host, self.port, context=self.context, timeout=10)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()

    def ready(self) -> bool:
        """Say whether the API server answers and calls itself ready."""
        try:
            return self.request("GET", "/readyz")[0] == http.client.OK
        except OSError:
            return False

    def get(self, path: str) -> Json | None:
        """Read one object; None when there is none.

        Raises:
            ClusterError: any other answer.
        """
        status, body = self.request("GET", path)
        if status == http.client.NOT_FOUND:
            return None
        if status != http.client.OK:
            raise ClusterError(f"GET {path}: {status} {body.decode(errors='replace')[:300]}")
        answer: Json = json.loads(body)
        return answer

    def apply(self, manifest: Json) -> None:
        """Apply an object, as the server merges it.

        Raises:
            ClusterError: the server refused it.
        """
        path = path_of(manifest)
        status, body = self.request(
            "PATCH",
            f"{path}?fieldManager={FIELD_MANAGER}&force=true",
            manifest,
            kind="application/apply-patch+yaml",
        )
        if status not in (http.client.OK, http.client.CREATED):
            raise ClusterError(f"apply {path}: {status} {body.decode(errors='replace')[:300]}")


def path_of(manifest: Json) -> str:
    """Return where the API serves an object."""
    version, metadata = manifest["apiVersion"], manifest["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    place = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{root}{place}/{PATHS[manifest['kind']]}/{metadata['name']}"
