"""A client that chats through a lineage's Service without a pause, from inside the cluster, and counts what it gets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from e2e.kubectl import Kubectl, Manifest

PROGRAM: Final = """
import json, signal, sys, time, urllib.request
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
url, answered, lost = sys.argv[1], 0, []
body = json.dumps({"model": "any", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}).encode()
while not stopping:
    try:
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            json.load(reply)["choices"][0]["message"]["content"]
        answered += 1
    except (OSError, ValueError, KeyError) as error:
        lost.append(repr(error))
    print(json.dumps({"answered": answered, "lost": lost}), flush=True)
    time.sleep(0.1)
"""


@dataclass
class Count:
    """What a client got."""

    answered: int
    lost: list[str]


@dataclass(frozen=True)
class Client:
    """A running client pod."""

    kubectl: Kubectl
    name: str

    def count(self) -> Count:
        """What it got so far."""
        lines = self.kubectl("logs", self.name, "--tail=1").strip().splitlines()
        return Count(**json.loads(lines[-1])) if lines else Count(0, [])


@contextmanager
def chatting(kubectl: Kubectl, image: str, lineage: str) -> Iterator[Client]:
    """A client for as long as the block runs; entered once its first request was answered."""
    client = Client(kubectl, f"client-{lineage}")
    kubectl("delete", "pod", client.name, "--ignore-not-found", "--now")
    kubectl.apply(_pod(client.name, image, f"http://{lineage}/v1/chat/completions"))
    kubectl("wait", "--for=condition=Ready", "--timeout=120s", f"pod/{client.name}")
    kubectl.wait("pod", client.name, lambda _: client.count().answered > 0, 120)
    try:
        yield client
    finally:
        kubectl("delete", "pod", client.name, "--now")


def _pod(name: str, image: str, url: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "client",
                    "image": image,
                    "command": ["python", "-c", PROGRAM, url],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }
