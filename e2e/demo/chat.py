"""One and the same prompt, answered by the base model and by both generations.

What serves is asked through its public Service, as a user of the cluster would; the others by pods of their own, which
go away again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from e2e.demo.errors import DemoError
from e2e.demo.storage import Claim
from e2e.kubectl import Kubectl, KubectlError, Manifest
from flywheel_contract.paths import SERVER_PORT
from flywheel_contract.uris import claim_of
from flywheel_operator.manifests.common import pod_spec, volumes
from flywheel_operator.model.common import Runtime

PROMPT = "Hey! I just moved to a new city and I don't know anyone here yet. What would you do first?"
MAX_TOKENS = 60
LABEL = "demo.characterflywheel.dev/answers"
START_SECONDS = 180

ASK = """
import json, sys, urllib.request
job = json.load(sys.stdin)
request = urllib.request.Request(job["url"], json.dumps(job["body"]).encode(), {"Content-Type": "application/json"})
with urllib.request.urlopen(request, timeout=120) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])
"""
"""Runs in the loader: a client inside the cluster, with its DNS and its Services."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model that is to answer."""

    name: str
    uri: str
    service: str | None = None
    """The Service that it stands behind, if it serves."""


def answers(
    kubectl: Kubectl, claim: Claim, image: str, speakers: Sequence[Speaker], messages: Sequence[Mapping[str, str]]
) -> dict[str, str]:
    """What each of `speakers` answers to `messages`.

    Raises:
        DemoError: a model did not come up, or gave no answer.
    """
    hidden = [speaker for speaker in speakers if speaker.service is None]
    try:
        if hidden:
            kubectl.apply(*(server_pod(speaker, image) for speaker in hidden))
        addresses = {s.name: f"http://{s.service}" for s in speakers if s.service is not None}
        for speaker in hidden:
            name = pod_name(speaker)
            kubectl("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={START_SECONDS}s")
            pod = kubectl.get("pod", name)
            addresses[speaker.name] = f"http://{pod['status']['podIP']}:{SERVER_PORT}" if pod else ""
        return {s.name: _ask(claim, addresses[s.name], messages) for s in speakers}
    except (KubectlError, json.JSONDecodeError) as error:
        raise DemoError(f"a model gave no answer: {error}") from error
    finally:
        kubectl("delete", "pods", f"--selector={LABEL}", "--wait=false", "--grace-period=1")


def pod_name(speaker: Speaker) -> str:
    """The pod that answers for a model that does not serve."""
    return f"demo-{speaker.name}"


def server_pod(speaker: Speaker, image: str) -> Manifest:
    """A pod with the model server that a promoted generation gets, and the same security."""
    name = claim_of(speaker.uri)
    vols, mounts = volumes({name: False} if name else {})
    container: Manifest = {
        "name": "server",
        "image": image,
        "args": ["serve", "--model", speaker.uri, "--name", speaker.name, "--port", str(SERVER_PORT)],
        "volumeMounts": mounts,
        "readinessProbe": {
            "exec": {"command": ["flywheel-trainer", "probe", "--port", str(SERVER_PORT)]},
            "periodSeconds": 5,
            "timeoutSeconds": 60,
        },
    }
    spec = pod_spec(Runtime(), container, vols, ())
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod_name(speaker), "labels": {LABEL: speaker.name}},
        "spec": {**spec, "restartPolicy": "Never"},
    }


def _ask(claim: Claim, address: str, messages: Sequence[Mapping[str, str]]) -> str:
    body = {"model": "any", "messages": list(messages), "max_tokens": MAX_TOKENS}
    return claim.python(ASK, {"url": f"{address}/v1/chat/completions", "body": body}).strip()
