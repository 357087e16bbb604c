import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from e2e.cluster import CannotRunError
from e2e.demo import flow, manifests, reporters, storage, watch
from e2e.demo.board import Board
from e2e.demo.errors import DemoError
from e2e.demo.objects import Turn
from e2e.demo.watch import TurnFailedError
from e2e.kubectl import Kubectl, KubectlError

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    return found


class FakeCluster(Kubectl):
    """Answers what is scripted; remembers what was applied and deleted."""

    def __init__(self, *looks: list[str] | Exception, there: str | None = None) -> None:
        super().__init__(Path("kubectl"), Path("kubeconfig"), "demo")
        object.__setattr__(self, "looks", list(looks))
        object.__setattr__(self, "there", there)
        object.__setattr__(self, "done", [])

    def list(self, kind: str, *selectors: str) -> list[dict[str, Any]]:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]  # type: ignore[attr-defined]
        if isinstance(look, Exception):
            raise look
        return [recorded(name) for name in look]

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        return recorded(self.there) if self.there else None  # type: ignore[attr-defined]

    def apply(self, *applied: dict[str, Any]) -> None:
        self.done.extend(("apply", m["metadata"]["name"]) for m in applied)  # type: ignore[attr-defined]

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        self.done.append(arguments[:3])  # type: ignore[attr-defined]
        return ""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.0)


def reporter(board: Board) -> reporters.Reporter:
    return reporters.PlainReporter(Console(file=io.StringIO()), board, lambda: datetime.now(UTC))


def board() -> Board:
    return Board(datetime.now(UTC))


def test_it_follows_to_the_end_and_an_api_server_that_restarts_is_no_end() -> None:
    shown = board()
    cluster = FakeCluster([], ["running"], KubectlError("refused"), ["promoted"])
    watch.follow(cluster, ["luna-1"], shown, reporter(shown))
    assert shown.turns["luna-1"].promoted


def test_a_gated_generation_is_an_end_and_a_failed_one_an_error() -> None:
    shown = board()
    watch.follow(FakeCluster(["gated"]), ["luna-2"], shown, reporter(shown))
    with pytest.raises(TurnFailedError, match=r"luna-1 is Failed\. StageFailed: stage curate") as caught:
        watch.follow(FakeCluster(["failed"]), ["luna-1"], shown, reporter(shown))
    assert caught.value.turn.name == "luna-1"


def test_an_api_server_that_stays_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = board()
    with pytest.raises(DemoError, match="20 times in a row: refused"):
        watch.follow(FakeCluster(KubectlError("refused")), ["luna-1"], shown, reporter(shown))
    monkeypatch.setattr(watch, "SILENCE_SECONDS", -1.0)
    with pytest.raises(DemoError, match="no status has changed"):
        watch.follow(FakeCluster(["running"]), ["luna-1"], shown, reporter(shown))


@pytest.mark.parametrize(
    ("there", "done"),
    [
        (None, [("apply", "luna-1")]),
        ("promoted", []),
        ("running", []),
        ("failed", [("delete", "generations", "luna-1"), ("apply", "luna-1")]),
    ],
)
def test_a_second_run_keeps_what_is_complete(there: str | None, done: list[Any]) -> None:
    shown = board()
    cluster = FakeCluster(["promoted"], there=there)
    demo = flow.Demo(Console(file=io.StringIO()), None, shown, reporter(shown))  # type: ignore[arg-type]
    turn = demo._turn(cluster, manifests.load(manifests.GENERATIONS[0]))
    assert turn.promoted
    assert cluster.done == done  # type: ignore[attr-defined]


def run_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> tuple[int, str]:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(flow.Demo, "run", fail)
    monkeypatch.setattr(flow.Demo, "kubectl", lambda _: FakeCluster([]))
    monkeypatch.setattr(flow, "diagnose", lambda _kubectl, turn: f"diagnosis of {turn.name if turn else 'all'}")
    out = io.StringIO()
    return flow.up(Console(file=out, width=200)), out.getvalue()


def test_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = run_with(monkeypatch, TurnFailedError(Turn.parse(recorded("failed"))))
    assert (code, "diagnosis of luna-1" in said) == (1, True)
    code, said = run_with(monkeypatch, CannotRunError("This machine cannot."))
    assert (code, "This machine cannot." in said, "diagnosis" in said) == (2, True, False)
    code, said = run_with(monkeypatch, KeyboardInterrupt())
    assert (code, "make demo" in said) == (130, True)


def test_what_lies_on_the_claim_is_not_copied_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The receipt on the claim decides."""
    files: dict[str, str] = {}
    copied: list[str] = []

    class OnDisk(storage.Claim):
        def text(self, path: str) -> str | None:
            return files.get(path)

        def shell(self, script: str, stdin: str = "") -> str:
            files[storage.RECEIPT] = stdin
            return ""

    monkeypatch.setattr(storage.Loader, "run", lambda *_: "")
    monkeypatch.setattr(storage.Loader, "put", lambda _self, _folder, name: copied.append(name))
    (tmp_path / "data.jsonl").write_text("{}\n")
    claim = OnDisk(FakeCluster([]), "trainer:1")
    assert claim.put({"data/a": tmp_path}, copied.append) == ["data/a"]
    assert claim.put({"data/a": tmp_path}, copied.append) == []
    (tmp_path / "data.jsonl").write_text('{"changed": 1}\n')
    assert claim.put({"data/a": tmp_path}, lambda _: None) == ["data/a"]
    files[storage.RECEIPT] = "{half a rec"
    assert claim.put({"data/a": tmp_path}, lambda _: None) == ["data/a"]
    with pytest.raises(DemoError, match="there is nothing"):
        storage.digest_of(tmp_path / "empty")
