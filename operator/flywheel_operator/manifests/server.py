"""The Deployment of a Generation's model server, and the lineage's public Service."""

from typing import Final

from flywheel_contract.paths import SERVER_PORT
from flywheel_contract.uris import claim_of
from flywheel_operator.manifests import gateway
from flywheel_operator.manifests.common import Manifest, labels, mounts_of, pod_spec, resources, volumes
from flywheel_operator.manifests.gateway import DRAIN_PAUSE_SECONDS, PROBE_SECONDS, STORE_SECONDS, Beside
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
from flywheel_operator.model.runtime import PodRuntime
from flywheel_operator.model.serving import ServingSpec
from flywheel_operator.model.status import ModelRef

SERVER: Final = "server"
ROUTER: Final = "router"
GRACE_SECONDS: Final = 90
"""For the pause and the replies in flight, at least; `runtime.terminationGracePeriodSeconds` is for checkpoints."""


def server(
    generation: Generation,
    candidate: ModelRef,
    image: str,
    replicas: int,
    pull_secrets: tuple[str, ...],
    beside: Beside | None,
) -> Manifest:
    """The Deployment of a Generation's candidate, with the gateway `beside` it.

    It has no owner reference: a foreground deletion of the Generation would take it away from under the users while our
    finalizer still holds the Generation. The finalizer's pass deletes it.
    """
    name = generation.metadata.name
    return model_server(
        name=server_name(name),
        metadata={
            "namespace": generation.metadata.namespace,
            "labels": labels("Generation", name, SERVER, generation.spec.lineage),
        },
        serves=name,
        model=candidate,
        spec=generation.spec.serving,
        runtime=generation.spec.runtime,
        image=image,
        replicas=replicas,
        pull_secrets=pull_secrets,
        beside=beside,
    )


def model_server(
    *,
    name: str,
    metadata: Manifest,
    serves: str,
    model: ModelRef,
    spec: ServingSpec,
    runtime: PodRuntime,
    image: str,
    replicas: int,
    pull_secrets: tuple[str, ...],
    beside: Beside | None,
) -> Manifest:
    """The Deployment `name` that serves `model` under the name `serves`; `metadata` has namespace, labels, owners."""
    claim = claim_of(model.uri)
    # The pod's claims; who only reads one that another container writes mounts it read-only.
    log = beside.claim if beside else None
    read = {claim: False} if claim else {}
    vols, mounts = volumes(read | ({log: True} if log else {}))
    # `http` is where users come in.
    port = "http" if beside is None else SERVER
    health = {"httpGet": {"path": "/health", "port": port}, "periodSeconds": PROBE_SECONDS}
    container: Manifest = {
        "name": SERVER,
        "image": image,
        "args": ["serve", "--model", model.uri, "--name", serves, "--port", str(SERVER_PORT), *_parser(spec)],
        "ports": [{"name": port, "containerPort": SERVER_PORT}],
        "resources": resources(spec.resources, spec.gpus),
        "volumeMounts": mounts_of(mounts, read),
        # Ready means that it has answered a real request, not that a port is open.
        "startupProbe": {
            "exec": {"command": ["flywheel-trainer", "probe", "--port", str(SERVER_PORT)]},
            "periodSeconds": PROBE_SECONDS,
            "timeoutSeconds": 60,
            "failureThreshold": max(1, spec.startup_timeout_seconds // PROBE_SECONDS),
        },
        "readinessProbe": {**health, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**health, "timeoutSeconds": 30, "failureThreshold": 12},
        "lifecycle": {"preStop": beside.outlast if beside else {"sleep": {"seconds": DRAIN_PAUSE_SECONDS}}},
    }
    others: tuple[Manifest, ...] = ()
    if beside is not None:
        made, own = gateway.container(serves, beside, mounts)
        others, vols = (made,), [*vols, *own]
    return deployment(
        name=name,
        metadata=metadata,
        replicas=replicas,
        annotations={ANNOTATION_MODEL_DIGEST: model.digest},
        startup_seconds=spec.startup_timeout_seconds,
        pod=pod_spec(runtime, container, vols, pull_secrets, others) | _grace(beside),
    )


def _grace(beside: Beside | None) -> Manifest:
    seconds = max(GRACE_SECONDS, beside.drain_seconds + STORE_SECONDS) if beside else GRACE_SECONDS
    return {"terminationGracePeriodSeconds": seconds}


def _parser(spec: ServingSpec) -> list[str]:
    return ["--tool-call-parser", spec.tool_call_parser] if spec.tool_call_parser is not None else []


def gateway_server(
    *,
    name: str,
    metadata: Manifest,
    serves: str,
    runtime: PodRuntime,
    replicas: int,
    pull_secrets: tuple[str, ...],
    beside: Beside,
) -> Manifest:
    """The Deployment of a gateway alone, before a server that runs already."""
    vols, mounts = volumes({beside.claim: True} if beside.claim else {})
    made, own = gateway.container(serves, beside, mounts)
    return deployment(
        name=name,
        metadata=metadata,
        replicas=replicas,
        annotations={},
        startup_seconds=GRACE_SECONDS,
        pod=pod_spec(runtime, made, [*vols, *own], pull_secrets) | _grace(beside),
    )


def deployment(
    *, name: str, metadata: Manifest, replicas: int, annotations: dict[str, str], startup_seconds: int, pod: Manifest
) -> Manifest:
    """A Deployment that never has fewer ready pods than were asked for while it rolls over."""
    marks = metadata["labels"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**metadata, "name": name, "annotations": annotations},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": marks},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "progressDeadlineSeconds": startup_seconds + 60,
            "template": {"metadata": {"labels": marks, "annotations": annotations}, "spec": pod},
        },
    }


def public_service(lineage: str, namespace: str, record: ProductionRecord) -> Manifest:
    """The lineage's Service: its selector is what serves, its annotation says so and what served before.

    It has no owner: it outlives every Generation. After retirement its selector matches nothing.
    """
    selector = _selector(record)
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
            "selector": selector,
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _selector(record: ProductionRecord) -> dict[str, str]:
    if record.router is not None:
        return {LABEL_OWNER_KIND: "ABTest", LABEL_OWNER: record.router, LABEL_COMPONENT: ROUTER}
    if record.serving is not None:
        return {LABEL_OWNER_KIND: "Generation", LABEL_OWNER: record.serving.generation, LABEL_COMPONENT: SERVER}
    return {LABEL_OWNER_KIND: "Generation", LABEL_COMPONENT: "retired"}
