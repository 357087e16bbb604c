"""What helm makes of the chart, as objects."""

import subprocess
from pathlib import Path
from typing import Any

from charts.sync import CHART, KUBE_VERSION, parsed
from tests.kubernetes_fixtures import Object

ALL_EXTRAS = (
    "podDisruptionBudget.enabled=true",
    "metrics.serviceMonitor.enabled=true",
    "metrics.rules.enabled=true",
    "metrics.dashboard.enabled=true",
)


def run(helm: Path, *arguments: str, values: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs helm, whatever the outcome."""
    command = [str(helm), *arguments, *(f"--set={value}" for value in values)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def template(helm: Path, *values: str, release: str = "flywheel", namespace: str = "flywheel-system") -> list[Object]:
    """The objects of `helm template`, which must succeed."""
    where = (f"--namespace={namespace}", f"--kube-version={KUBE_VERSION}")
    done = run(helm, "template", release, str(CHART), *where, values=values)
    assert done.returncode == 0, done.stderr
    return parsed(done.stdout)


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """Those of some kinds."""
    return [o for o in objects if o["kind"] in kinds]


def deployment(objects: list[Object]) -> Object:
    """The operator's Deployment."""
    (found,) = of_kind(objects, "Deployment")
    return found


def container(objects: list[Object]) -> Object:
    """The operator's container."""
    (found,) = deployment(objects)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def environment(objects: list[Object]) -> dict[str, Any]:
    """Its environment variables: value, or where it comes from."""
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container(objects)["env"]}
