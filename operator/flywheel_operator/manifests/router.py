"""The objects of a router: its configuration, its pods, and how many of them may be missing.

A change of behaviour is another immutable ConfigMap and a rolling update. New pods take new connections as soon as they
are ready; the old ones leave the endpoints, let their clients' connections turn over, and finish what streams.
"""

import hashlib
import math
from typing import Final

from flywheel_contract.gateway_config import ROUTER_TOKEN_FILE
from flywheel_operator.manifests.common import Manifest, pod_spec, resources, volumes
from flywheel_operator.manifests.router_config import RouterConfig
from flywheel_operator.manifests.router_nginx import render
from flywheel_operator.manifests.server import ROUTER
from flywheel_operator.model.abtest import RouterSpec
from flywheel_operator.model.names import ANNOTATION_CONFIG, bounded_name
from flywheel_operator.model.runtime import PodRuntime

CONFIG_FOLDER: Final = "/etc/flywheel/router"
TOKEN_FOLDER: Final = "/etc/flywheel/token"
SETTLE_SECONDS: Final = 5
"""Until every node has heard that a pod is no endpoint any more."""
PROGRESS_DEADLINE_SECONDS: Final = 120


def config_name(owner: str, config: RouterConfig) -> str:
    """The ConfigMap with just this configuration: another one has another name."""
    digest = hashlib.sha256(render(config).encode()).hexdigest()
    return bounded_name(owner, ROUTER, unique=f"{owner}/{digest}")


def config_map(owner: str, config: RouterConfig, metadata: Manifest) -> Manifest:
    """The immutable ConfigMap; `metadata` has namespace, labels and the owner."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**metadata, "name": config_name(owner, config)},
        "immutable": True,
        "data": {"nginx.conf": render(config)},
    }


def deployment(
    *,
    name: str,
    owner: str,
    metadata: Manifest,
    config: RouterConfig,
    spec: RouterSpec,
    runtime: PodRuntime,
    image: str,
    key: str,
    pull_secrets: tuple[str, ...],
) -> Manifest:
    """The Deployment `name`; `metadata` has namespace, labels (which its pods are found by) and the owner.

    `key` is the lineage's Secret; of it the router sees the token alone.
    """
    marks = metadata["labels"]
    running = {ANNOTATION_CONFIG: config_name(owner, config)}
    vols, mounts = volumes({})
    vols += [
        {"name": "config", "configMap": {"name": config_name(owner, config)}},
        {"name": "token", "secret": {"secretName": key, "items": [{"key": ROUTER_TOKEN_FILE, "path": "token"}]}},
    ]
    mounts += [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True},
    ]
    drain = drain_seconds(config)
    pod = pod_spec(runtime, _container(image, config, spec, drain, mounts), vols, pull_secrets)
    pod["terminationGracePeriodSeconds"] = drain + spec.drain_seconds
    pod["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": marks},
        }
    ]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**metadata, "name": name, "annotations": running},
        "spec": {
            "replicas": spec.replicas,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": PROGRESS_DEADLINE_SECONDS,
            "selector": {"matchLabels": marks},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": marks, "annotations": running}, "spec": pod},
        },
    }


def drain_seconds(config: RouterConfig) -> int:
    """How long, at most, a pod that leaves waits until no client's connection lies idle."""
    return SETTLE_SECONDS + math.ceil(config.timeouts.turnover + config.timeouts.idle)


def disruption_budget(name: str, metadata: Manifest) -> Manifest:
    """One pod at a time may be evicted. (`minAvailable: 1` would let no node be drained where there is one pod.)"""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {**metadata, "name": name},
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": metadata["labels"]},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _container(image: str, config: RouterConfig, spec: RouterSpec, drain: int, mounts: list[Manifest]) -> Manifest:
    health = {"httpGet": {"path": "/healthz", "port": "health"}}
    return {
        "name": ROUTER,
        "image": image,
        "args": ["serve"],
        "ports": [
            {"name": "http", "containerPort": config.port},
            {"name": "health", "containerPort": config.health_port},
        ],
        "resources": resources(spec.resources, 0),
        "volumeMounts": mounts,
        # Every second: a rolling update waits for it, once a pod.
        "readinessProbe": {**health, "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 2},
        "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        # Then SIGQUIT (the image's stop signal): nginx ends when its last reply has ended.
        "lifecycle": {
            "preStop": {"exec": {"command": ["flywheel-router", "drain", str(drain), str(config.health_port)]}}
        },
    }
