"""What the cluster knows of a failure: conditions, events, and the log of the pod that failed."""

from collections.abc import Iterable
from typing import Any

from e2e.demo.objects import KINDS, Turn
from e2e.kubectl import Kubectl, KubectlError, Manifest

EVENTS = 15
LOG_LINES = 40


def diagnose(kubectl: Kubectl, turn: Turn | None) -> str:
    """Everything that helps, as text; what cannot be asked any more is left out."""
    parts = []
    if turn is not None:
        parts += _safely(lambda: conditions(kubectl.get(KINDS[turn.kind], turn.name)))
    parts += _safely(lambda: events(kubectl.list("events")))
    parts += _safely(lambda: _logs(kubectl))
    return "\n\n".join(part for part in parts if part)


def conditions(item: Manifest | None) -> str:
    """The conditions of an object, and the stages that are not done."""
    if item is None:
        return ""
    status = item.get("status") or {}
    lines = [f"{item['kind']} {item['metadata']['name']}: phase {status.get('phase', 'none yet')}"]
    lines += [
        f"  {c['type']}={c['status']} {c.get('reason', '')}: {c.get('message', '')}"
        for c in status.get("conditions", [])
    ]
    lines += [
        f"  stage {s['name']}: {s.get('state')}, {s.get('failures', 0)} failures: {s.get('message', '')}"
        for s in status.get("stages", [])
        if s.get("state") not in ("Succeeded", "Pending")
    ]
    return "\n".join(lines)


def events(items: Iterable[Manifest]) -> str:
    """The last events of the namespace, oldest first."""
    last = sorted(items, key=_time)[-EVENTS:]
    lines = [
        f"  {_time(e)[11:19]} {e.get('type')} {e['involvedObject'].get('kind')}/{e['involvedObject'].get('name')} "
        f"{e.get('reason')}: {' '.join((e.get('message') or '').split())[:300]}"
        for e in last
    ]
    return "\n".join(["Last events:", *lines]) if lines else ""


def failing_pods(pods: Iterable[Manifest]) -> list[tuple[str, bool]]:
    """Pods that failed or are not ready, newest last, and whether their log is that of an earlier container."""
    found = []
    for pod in sorted(pods, key=lambda p: str(p["metadata"].get("creationTimestamp", ""))):
        states: list[dict[str, Any]] = pod.get("status", {}).get("containerStatuses", [])
        failed = pod.get("status", {}).get("phase") == "Failed"
        restarted = any(s.get("restartCount") and not s.get("ready") for s in states)
        if failed or restarted:
            found.append((str(pod["metadata"]["name"]), restarted))
    return found


def _logs(kubectl: Kubectl) -> str:
    parts = []
    for name, earlier in failing_pods(kubectl.list("pods"))[-2:]:
        text = kubectl("logs", name, f"--tail={LOG_LINES}", *(["--previous"] if earlier else []))
        parts.append(f"Log of pod {name}:\n{text.rstrip()}")
    return "\n\n".join(parts)


def _time(event: Manifest) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")


def _safely(ask: Any) -> list[str]:  # noqa: ANN401 -- a function without arguments
    try:
        return [ask()]
    except (KubectlError, ValueError, KeyError) as error:
        return [f"(could not ask: {error})"]
