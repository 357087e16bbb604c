import json
from pathlib import Path
from typing import Any

from e2e.demo import diagnosis

RECORDED = Path(__file__).parent / "recorded"


def event(reason: str, second: int, kind: str = "Job") -> dict[str, Any]:
    return {
        "metadata": {},
        "lastTimestamp": f"2026-11-20T10:00:{second:02d}Z",
        "type": "Warning",
        "reason": reason,
        "message": "two\nlines",
        "involvedObject": {"kind": kind, "name": "luna-1"},
    }


def pod(name: str, phase: str, *, restarts: int = 0, ready: bool = True) -> dict[str, Any]:
    status = {"phase": phase, "containerStatuses": [{"restartCount": restarts, "ready": ready}]}
    return {"metadata": {"name": name}, "status": status}


def test_conditions_and_the_stage_that_failed() -> None:
    text = diagnosis.conditions(json.loads((RECORDED / "failed.json").read_text()))
    assert "Generation luna-1: phase Failed" in text
    assert "Complete=False StageFailed: stage curate" in text
    assert "stage curate: Failed, 1 failures: traffic.jsonl, line 3" in text
    assert diagnosis.conditions(None) == ""


def test_the_last_events_oldest_first() -> None:
    text = diagnosis.events([event("Later", 9), event("Sooner", 1)])
    assert text.splitlines() == [
        "Last events:",
        "  10:00:01 Warning Job/luna-1 Sooner: two lines",
        "  10:00:09 Warning Job/luna-1 Later: two lines",
    ]
    many = diagnosis.events([event("E", i) for i in range(40)])
    assert len(many.splitlines()) == 1 + diagnosis.EVENTS
    assert diagnosis.events([]) == ""


def test_pods_that_failed_or_crash() -> None:
    pods = [
        pod("fine", "Running"),
        pod("broke", "Failed", ready=False),
        pod("crashes", "Running", restarts=3, ready=False),
    ]
    assert diagnosis.failing_pods(pods) == [("broke", False), ("crashes", True)]
