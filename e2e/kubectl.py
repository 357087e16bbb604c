"""kubectl, as a person would use it, for the demo and the cluster tests."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]


class KubectlError(RuntimeError):
    """kubectl ended with an error; the message is what it said."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl bound to a cluster and a namespace."""

    program: Path
    kubeconfig: Path
    namespace: str

    def command(self, *arguments: str) -> list[str]:
        """The whole command line."""
        return [str(self.program), f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Runs it and answers what it printed.

        Raises:
            KubectlError: it failed.
        """
        done = subprocess.run(self.command(*arguments), input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *manifests: Manifest) -> None:
        """Applies manifests, as `kubectl apply` does."""
        self("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def get(self, kind: str, name: str) -> Manifest | None:
        """One object; None where it does not exist."""
        text = self("get", kind, name, "--ignore-not-found", "-o", "json")
        return dict(json.loads(text)) if text.strip() else None

    def list(self, kind: str, *selectors: str) -> list[Manifest]:
        """The objects of a kind that match the label selectors."""
        chosen = [f"--selector={s}" for s in selectors]
        return list(json.loads(self("get", kind, *chosen, "-o", "json"))["items"])

    def annotate(self, kind: str, name: str, **annotations: str) -> None:
        """Sets annotations of ours, e.g. annotate("gen", "luna-1", promote="...")."""
        pairs = [f"characterflywheel.dev/{key}={value}" for key, value in annotations.items()]
        self("annotate", "--overwrite", kind, name, *pairs)

    def wait(
        self, kind: str, name: str, until: Callable[[Manifest], bool], seconds: float, every: float = 1.0
    ) -> Manifest:
        """Looks until `until` holds for the object.

        Raises:
            TimeoutError: it did not in time; the message holds the status.
        """
        deadline = time.monotonic() + seconds
        found: Manifest | None = None
        while time.monotonic() < deadline:
            found = self.get(kind, name)
            if found is not None and until(found):
                return found
            time.sleep(every)
        status = json.dumps((found or {}).get("status"), indent=1)
        raise TimeoutError(f"{kind}/{name} after {seconds:.0f} s: {status}")
