"""The gateway that stands beside a model server: its container, its configuration, the lineage's key."""

import json
import math
from dataclasses import dataclass
from typing import Final

from flywheel_contract.base import digest_of
from flywheel_contract.characters import Character
from flywheel_contract.gateway_config import (
    GATEWAY_CONFIG,
    KEY_DIRECTORY,
    SPOOL,
    CharacterPrompt,
    ConsentPolicy,
    GatewayConfig,
    Limits,
    LogSettings,
    Moderation,
)
from flywheel_contract.online import GATEWAY_PORT, METRICS_PORT, traffic_uri
from flywheel_contract.uris import claim_of
from flywheel_operator.manifests.common import Manifest, mounts_of, resources
from flywheel_operator.model.names import LABEL_LINEAGE, bounded_name, lineage_key_name
from flywheel_operator.model.serving import GatewaySpec

GATEWAY: Final = "gateway"
PROBE_SECONDS: Final = 5
DRAIN_PAUSE_SECONDS: Final = 5
"""Between the end of a pod's being an endpoint and its SIGTERM, so that proxies have heard of it."""
STORE_SECONDS: Final = 40
"""What the gateway takes at most, behind its last reply, to write the log to a slow store."""
_OUTLAST: Final = """
import socket, sys, time
port, end = int(sys.argv[1]), time.monotonic() + int(sys.argv[2])
while time.monotonic() < end:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        break
    except OSError:
        pass
    time.sleep(0.25)
"""


@dataclass(frozen=True, slots=True)
class Beside:
    """A gateway with all that its pod needs for it."""

    image: str
    config: GatewayConfig
    spec: GatewaySpec
    key: str
    """The Secret with the lineage's key."""

    @property
    def claim(self) -> str | None:
        """The claim that the log lies on."""
        return claim_of(self.config.log.store)

    @property
    def drain_seconds(self) -> int:
        """From the pod's deletion to the end of the gateway's last reply, at most."""
        limits = self.config.limits
        return DRAIN_PAUSE_SECONDS + math.ceil(limits.drain_delay_seconds + limits.drain_seconds)

    @property
    def outlast(self) -> Manifest:
        """The preStop hook of the model server behind it, which the gateway asks until its last reply.

        It ends with the gateway's metrics, which go last (the users' port closes when the drain begins), or when the
        drain's time is over: mostly seconds after SIGTERM. In the trainer's image, as the server's probe is.
        """
        return {"exec": {"command": ["python", "-I", "-c", _OUTLAST, str(METRICS_PORT), str(self.drain_seconds)]}}


def gateway(
    *,
    image: str,
    spec: GatewaySpec,
    serves: str,
    lineage: str,
    artifacts: str,
    characters: list[Character],
    upstream: str | None = None,
    model: str | None = None,
) -> Beside:
    """The gateway before `upstream`; None: the model server in the same pod."""
    limits, capture, identity = spec.limits, spec.capture, spec.identity
    prompts = [
        CharacterPrompt(name=c.name, system_prompt=c.prompt, refusal=c.refusal, tools=c.tools) for c in characters
    ]
    given = {} if upstream is None else {"upstream": upstream}
    vouched = bool(identity.trusted_proxies)
    config = GatewayConfig(
        generation=serves,
        lineage=lineage,
        model=model,
        characters=prompts,
        default_character=prompts[0].name if len(prompts) == 1 else None,
        log=LogSettings(
            store=traffic_uri(artifacts, lineage), turns=capture.turns, rotate_seconds=capture.rotate_seconds
        ),
        consent=ConsentPolicy(mode="Require" if capture.require_consent else "Mark"),
        retention_days=capture.retention_days,
        moderation=Moderation(
            prompt=spec.moderation.prompts,
            reply=spec.moderation.replies,
            threshold=spec.moderation.threshold,
            safe_reply=spec.moderation.safe_reply,
            words=spec.moderation.words,
            endpoint=spec.moderation.endpoint,
        ),
        limits=Limits(
            requests_per_second=limits.requests_per_second,
            burst=limits.burst,
            concurrent_requests=limits.concurrent_requests,
            body_bytes=limits.body_bytes,
            total_seconds=limits.timeout_seconds,
        ),
        trusted_proxies=identity.trusted_proxies,
        user_header=identity.user_header.lower() if vouched else None,
        cookie_secure=identity.secure_cookie,
        **given,
    )
    return Beside(image=image, config=config, spec=spec, key=lineage_key_name(lineage))


def config_name(owner: str, beside: Beside) -> str:
    """The ConfigMap with just this configuration: another one has another name."""
    return bounded_name(owner, GATEWAY, unique=f"{owner}/{digest_of(beside.config.to_json())}")


def config_map(owner: str, beside: Beside, metadata: Manifest) -> Manifest:
    """The immutable ConfigMap; `metadata` has namespace, labels and, where it has one, the owner."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**metadata, "name": config_name(owner, beside)},
        "immutable": True,
        "data": {"gateway.json": json.dumps(beside.config.to_json(), indent=1)},
    }


def key_secret(lineage: str, metadata: Manifest) -> Manifest:
    """The lineage's Secret without its values: they are drawn where it is created, and nobody reads them again.

    It has no owner: users' hashed ids hang on it for as long as the lineage lives.
    """
    marks = {**metadata.get("labels", {}), LABEL_LINEAGE: lineage}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {**metadata, "name": lineage_key_name(lineage), "labels": marks},
        "type": "Opaque",
        "immutable": True,
    }


def container(owner: str, beside: Beside, mounts: list[Manifest]) -> tuple[Manifest, list[Manifest]]:
    """The gateway's container, whose port is the pod's `http`, and the volumes that it alone uses.

    `mounts` are those of the pod's claims.
    """
    own: list[Manifest] = [
        {"name": "gateway-config", "mountPath": GATEWAY_CONFIG.rpartition("/")[0], "readOnly": True},
        {"name": "users-key", "mountPath": KEY_DIRECTORY, "readOnly": True},
        {"name": "spool", "mountPath": SPOOL},
    ]
    made: Manifest = {
        "name": GATEWAY,
        "image": beside.image,
        "args": ["serve", "--config", GATEWAY_CONFIG],
        "ports": [
            {"name": "http", "containerPort": GATEWAY_PORT},
            {"name": "metrics", "containerPort": METRICS_PORT},
        ],
        "resources": resources(beside.spec.resources, 0),
        "volumeMounts": [*mounts_of(mounts, {beside.claim: True} if beside.claim else {}), *own],
        # Ready while the model server behind it is; alive whatever that does.
        "readinessProbe": {
            "httpGet": {"path": "/health", "port": "metrics"},
            "periodSeconds": PROBE_SECONDS,
            "timeoutSeconds": 5,
        },
        "livenessProbe": {
            "httpGet": {"path": "/live", "port": "metrics"},
            "periodSeconds": PROBE_SECONDS,
            "timeoutSeconds": 30,
            "failureThreshold": 12,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": DRAIN_PAUSE_SECONDS}}},
    }
    vols: list[Manifest] = [
        {"name": "gateway-config", "configMap": {"name": config_name(owner, beside)}},
        {"name": "users-key", "secret": {"secretName": beside.key}},
        {"name": "spool", "emptyDir": {}},
    ]
    return made, vols
