"""Starts the population in a cluster, and reads its report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.kubectl import Kubectl, KubectlError, Manifest
from e2e.population.settings import Settings
from e2e.population.tally import Tally

FOLDER: Final = "/code/e2e/population"
HERE: Final = ("__init__", "job", "rehearsal")
"""Files that stay here: they need kubectl, or no servers."""


@dataclass(frozen=True)
class Population:
    """A population that was started. Its Job runs one pod once: a second one would be other people."""

    kubectl: Kubectl
    name: str

    def tally(self) -> Tally:
        """What happened so far; an empty one before the first report."""
        try:
            lines = self.kubectl("logs", f"job/{self.name}", "--tail=1").strip().splitlines()
        except KubectlError as error:
            # Until the pod's container runs there is no log.
            if "waiting to start" in str(error) or "not found" in str(error) or "timed out waiting" in str(error):
                return Tally()
            raise
        return Tally.from_json(lines[-1]) if lines and lines[-1].startswith("{") else Tally()

    def until(self, reached: Callable[[Tally], bool], seconds: float) -> Tally:
        """Waits until a report says so, and answers it.

        Raises:
            TimeoutError: none did in time.
        """
        last = Tally()

        def look(_: Manifest) -> bool:
            nonlocal last
            last = self.tally()
            return reached(last)

        try:
            self.kubectl.wait("job", self.name, look, seconds, every=2)
        except TimeoutError as error:
            raise TimeoutError(f"{self.name} after {seconds:.0f} s: {last.to_json()}") from error
        return last

    def ended(self, seconds: float) -> Tally:
        """Waits until it has ended by itself and answers the last report."""
        return self.until(lambda tally: tally.done, seconds)

    def stop(self) -> Tally:
        """Sends everybody home and answers the last report that was seen."""
        last = self.tally()
        self.kubectl("delete", "job", self.name, "--ignore-not-found", "--cascade=foreground", "--timeout=60s")
        return last


def start(kubectl: Kubectl, name: str, image: str, settings: Settings) -> Population:
    """Starts a population with `image`, which needs Python and aiohttp; one of that name that is there goes first."""
    kubectl("delete", "job", name, "--ignore-not-found", "--cascade=foreground", "--timeout=60s")
    kubectl.apply(code(name), job(name, image, settings))
    return Population(kubectl, name)


@contextmanager
def living(kubectl: Kubectl, name: str, image: str, settings: Settings) -> Iterator[Population]:
    """A population for as long as the block runs, at most; entered once the first chat was answered."""
    population = start(kubectl, name, image, settings)
    try:
        population.until(lambda tally: tally.answered > 0 or tally.done, 120)
        yield population
    finally:
        population.stop()


def code(name: str) -> Manifest:
    """The ConfigMap with this folder."""
    files = sorted(file for file in Path(__file__).parent.glob("*.py") if file.stem not in HERE)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {file.name: file.read_text(encoding="utf-8") for file in files},
    }


def job(name: str, image: str, settings: Settings) -> Manifest:
    """The Job. It ends by itself; a deadline stands behind that."""
    longest = int(settings.days * settings.day_seconds + settings.timeout_seconds) + 120
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": longest,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 5,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": "population",
                            "image": image,
                            "command": ["python", "-m", "e2e.population", settings.to_json()],
                            "env": [{"name": "PYTHONPATH", "value": "/code"}],
                            "workingDir": "/code",
                            "resources": {
                                "requests": {"cpu": "50m", "memory": "64Mi"},
                                "limits": {"memory": "256Mi"},
                            },
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "capabilities": {"drop": ["ALL"]},
                            },
                            "volumeMounts": [{"name": "code", "mountPath": FOLDER, "readOnly": True}],
                        }
                    ],
                    "volumes": [{"name": "code", "configMap": {"name": name}}],
                }
            },
        },
    }
