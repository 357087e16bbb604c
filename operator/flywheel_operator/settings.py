"""What the operator is set to: parsed from arguments and environment here, once, and nowhere else."""

import argparse
import re
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flywheel_operator.model.observed import Settings

_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_NAME: Final = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
IMAGES: Final = (
    ("trainer", "image of stages and model servers"),
    ("gateway", "image of the gateways beside them"),
    ("router", "image of the routers of ABTests"),
    ("analysis", "image of the Jobs that measure ABTests"),
)
LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """All settings of the process."""

    trainer_image: str
    gateway_image: str
    router_image: str
    analysis_image: str
    namespaces: tuple[str, ...]
    """Empty: the whole cluster."""
    lease_namespace: str
    lease_name: str
    identity: str
    """Who we are among the candidates for the lease, and in Events."""
    image_pull_secrets: tuple[str, ...]
    workers: int
    port: int
    resync_seconds: float
    log_level: str
    kubeconfig: str | None
    """None: the pod's service account."""

    def for_planner(self) -> Settings:
        """The part that plans depend on."""
        return Settings(
            trainer_image=self.trainer_image,
            gateway_image=self.gateway_image,
            router_image=self.router_image,
            analysis_image=self.analysis_image,
            image_pull_secrets=self.image_pull_secrets,
        )


def parse(
    arguments: Sequence[str], environment: Mapping[str, str], namespace_file: Path = _NAMESPACE_FILE
) -> OperatorSettings:
    """The settings; an argument wins over its variable. `namespace_file` exists where we run in a pod.

    Raises:
        SystemExit: something is missing or wrong; the sentence is on stderr.
    """
    parser = _parser(environment)
    given = parser.parse_args(arguments)
    kubeconfig = _kubeconfig(environment)
    if kubeconfig is None and not namespace_file.exists():
        parser.error("this is no pod with a service account: set KUBECONFIG")
    # In a cluster the name of the pod is enough, and a restarted container takes its own lease over at once.
    identity = socket.gethostname() if kubeconfig is None else f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    own = namespace_file.read_text().strip() if namespace_file.exists() else ""
    namespaces = tuple(dict.fromkeys(given.namespace or _split(environment.get("FLYWHEEL_NAMESPACES", ""))))
    lease_namespace = given.lease_namespace or own or next(iter(namespaces), "")
    for what, _ in IMAGES:
        if not getattr(given, f"{what}_image"):
            parser.error(f"say which image it is: --{what}-image or FLYWHEEL_{what.upper()}_IMAGE")
    if not lease_namespace:
        parser.error("say where the lease lives: --lease-namespace or FLYWHEEL_LEASE_NAMESPACE")
    for name in (*namespaces, lease_namespace):
        if not _NAME.match(name):
            parser.error(f"{name!r} is no namespace's name")
    return OperatorSettings(
        trainer_image=given.trainer_image,
        gateway_image=given.gateway_image,
        router_image=given.router_image,
        analysis_image=given.analysis_image,
        namespaces=namespaces,
        lease_namespace=lease_namespace,
        lease_name=given.lease_name,
        identity=identity,
        image_pull_secrets=_split(given.image_pull_secrets),
        workers=given.workers,
        port=given.port,
        resync_seconds=given.resync_seconds,
        log_level=given.log_level,
        kubeconfig=kubeconfig,
    )


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    def variable(name: str, default: str = "") -> str:
        return environment.get(f"FLYWHEEL_{name}", "") or default

    parser = argparse.ArgumentParser(
        prog="flywheel_operator",
        description="The CharacterFlywheel operator. Every option can be given as an environment variable "
        "FLYWHEEL_<OPTION> too, e.g. FLYWHEEL_TRAINER_IMAGE; several namespaces as FLYWHEEL_NAMESPACES=a,b.",
    )
    parser.add_argument("--namespace", action="append", help="watch this namespace (repeatable; none: all of them)")
    for what, help_ in IMAGES:
        parser.add_argument(f"--{what}-image", default=variable(f"{what.upper()}_IMAGE"), help=help_)
    parser.add_argument(
        "--image-pull-secrets",
        default=variable("IMAGE_PULL_SECRETS"),
        help="names of Secrets, with commas, that every pod pulls its image with",
    )
    parser.add_argument(
        "--lease-namespace",
        default=variable("LEASE_NAMESPACE"),
        help="where the leader's Lease lives (the pod's own namespace)",
    )
    parser.add_argument("--lease-name", default=variable("LEASE_NAME", "flywheel-operator"), help="its name")
    parser.add_argument("--workers", type=_positive, default=variable("WORKERS", "4"), help="passes at a time")
    parser.add_argument("--port", type=_port, default=variable("PORT", "8080"), help="/healthz, /readyz and /metrics")
    parser.add_argument(
        "--resync-seconds",
        type=_positive,
        default=variable("RESYNC_SECONDS", "300"),
        help="look at every object at least this often",
    )
    parser.add_argument("--log-level", choices=LEVELS, default=variable("LOG_LEVEL", "info"), help="what is logged")
    return parser


def _kubeconfig(environment: Mapping[str, str]) -> str | None:
    return environment.get("KUBECONFIG") or None


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return number
