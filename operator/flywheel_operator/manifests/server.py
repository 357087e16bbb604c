"""The Deployment of a Generation's model server, and the lineage's public Service."""

from typing import Final

from flywheel_contract.paths import SERVER_PORT
from flywheel_contract.uris import claim_of
from flywheel_operator.manifests.common import Manifest, labels, pod_spec, resources, volumes
from flywheel_operator.model.names import (
    ANNOTATION_MODEL_DIGEST,
    ANNOTATION_PRODUCTION,
    LABEL_COMPONENT,
    LABEL_LINEAGE,
    LABEL_MANAGED_BY,
    LABEL_OWNER,
    LABEL_OWNER_KIND,
    MANAGED_BY,
    server_name,
)
from flywheel_operator.model.objects import Generation
from flywheel_operator.model.production import ProductionRecord
from flywheel_operator.model.status import ModelRef

SERVER: Final = "server"
PROBE_SECONDS: Final = 5
DRAIN_PAUSE_SECONDS: Final = 5
"""Between the end of a pod's being an endpoint and its SIGTERM, so that proxies have heard of it."""
GRACE_SECONDS: Final = 60
"""For the pause and the replies in flight; `runtime.terminationGracePeriodSeconds` speaks of checkpoints instead."""


def server(
    generation: Generation, candidate: ModelRef, image: str, replicas: int, pull_secrets: tuple[str, ...]
) -> Manifest:
    """The Deployment.

    It has no owner reference: a foreground deletion of the Generation would take it away from under the users while our
    finalizer still holds the Generation. The finalizer's pass deletes it.
    """
    spec = generation.spec.serving
    name = generation.metadata.name
    marks = labels("Generation", name, SERVER, generation.spec.lineage)
    claim = claim_of(candidate.uri)
    vols, mounts = volumes({claim: False} if claim else {})
    health = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": PROBE_SECONDS}
    container: Manifest = {
        "name": SERVER,
        "image": image,
        "args": ["serve", "--model", candidate.uri, "--name", name, "--port", str(SERVER_PORT)],
        "ports": [{"name": "http", "containerPort": SERVER_PORT}],
        "resources": resources(spec.resources, spec.gpus),
        "volumeMounts": mounts,
        # Ready means that it has answered a real request, not that a port is open.
        "startupProbe": {
            "exec": {"command": ["flywheel-trainer", "probe", "--port", str(SERVER_PORT)]},
            "periodSeconds": PROBE_SECONDS,
            "timeoutSeconds": 60,
            "failureThreshold": max(1, spec.startup_timeout_seconds // PROBE_SECONDS),
        },
        "readinessProbe": {**health, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**health, "timeoutSeconds": 30, "failureThreshold": 12},
        "lifecycle": {"preStop": {"sleep": {"seconds": DRAIN_PAUSE_SECONDS}}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": server_name(name),
            "namespace": generation.metadata.namespace,
            "labels": marks,
            "annotations": {ANNOTATION_MODEL_DIGEST: candidate.digest},
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": marks},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "progressDeadlineSeconds": spec.startup_timeout_seconds + 60,
            "template": {
                "metadata": {"labels": marks, "annotations": {ANNOTATION_MODEL_DIGEST: candidate.digest}},
                "spec": pod_spec(generation.spec.runtime, container, vols, pull_secrets)
                | {"terminationGracePeriodSeconds": GRACE_SECONDS},
            },
        },
    }


def public_service(lineage: str, namespace: str, record: ProductionRecord) -> Manifest:
    """The lineage's Service: its selector is what serves, its annotation says so and what served before.

    It has no owner: it outlives every Generation. After retirement its selector matches nothing.
    """
    serving = record.serving.generation if record.serving else None
    selector = {LABEL_OWNER_KIND: "Generation", LABEL_COMPONENT: SERVER if serving else "retired"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": lineage,
            "namespace": namespace,
            "labels": {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: "production", LABEL_LINEAGE: lineage},
            "annotations": {ANNOTATION_PRODUCTION: record.model_dump_json(by_alias=True, exclude_none=True)},
        },
        "spec": {
            "selector": selector | ({LABEL_OWNER: serving} if serving else {}),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }
