"""The runner's edges: how failures become exit codes, what SIGTERM does, and what the outside sees meanwhile."""

import errno
import json
import logging
import os
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.stage_result import Reason, StageResult
from flywheel_contract.stage_spec import SftSpec
from flywheel_contract.stages import Stage
from flywheel_trainer import __main__, launch, logs
from flywheel_trainer.artifacts import Store
from flywheel_trainer.context import StageContext
from flywheel_trainer.errors import DataError, Interrupted, StopNow
from flywheel_trainer.progress import ProgressBoard, StatusServer
from flywheel_trainer.runner import classify
from tests.trainer.workshop import Workshop


def caused_by(cause: BaseException) -> RuntimeError:
    error = RuntimeError("a library wrapped it")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (DataError("x"), 65, Reason.INVALID_DATA),
        (StopNow(), 143, Reason.INTERRUPTED),
        (MemoryError(), 1, Reason.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, Reason.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, Reason.OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "No space left on device"), 1, Reason.DISK_FULL),
        (caused_by(OSError(errno.EDQUOT, "Disk quota exceeded")), 1, Reason.DISK_FULL),
        (caused_by(Exception("I/O error: No space left on device (os error 28)")), 1, Reason.DISK_FULL),
        (OSError(errno.EACCES, "denied"), 1, Reason.FAULT),
        (KeyError("x"), 1, Reason.FAULT),
    ],
)
def test_every_failure_has_its_code_and_reason(error: BaseException, code: int, reason: Reason) -> None:
    found = classify(error)
    assert found[:2] == (code, reason)
    assert found[2]


def test_the_type_of_an_unknown_error_is_told() -> None:
    assert classify(KeyError("x"))[2] == "KeyError: 'x'"


def test_an_error_that_quotes_what_is_no_text_can_still_be_told() -> None:
    text = classify(DataError("line 3: \udcff"))[2]
    assert StageResult(stage=Stage.CURATE, reason=Reason.INVALID_DATA, message=text).message == "line 3: ?"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "the whole file"),
        ('{"stage": "sft"}', "sft.owner: Field required"),
        ('{"stage": "dpo", "owner": "g", "group": "l", "artifacts": "pvc://lab/a"}', "is for stage dpo"),
        (None, "No such file"),
    ],
)
def test_a_spec_that_cannot_be_used_is_said(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, text: str | None, says: str
) -> None:
    for name, value in workshop.environment().items():
        monkeypatch.setenv(name, value)
    spec = workshop.root / "spec.json"
    if text is not None:
        spec.write_text(text)
    assert __main__.main(["sft", "--spec", str(spec)]) == ExitCode.USAGE
    result = workshop.result()
    assert result.reason is Reason.INVALID_SPEC
    assert says in result.message


def test_wrong_usage_has_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        __main__.main(["no-such-stage"])
    assert ended.value.code == ExitCode.USAGE
    assert "no-such-stage" in capsys.readouterr().err


@pytest.fixture
def ctx(tmp_path: Path) -> StageContext:
    (tmp_path / "lab").mkdir()
    spec = SftSpec(owner="g", group="l", artifacts="pvc://lab/a")
    return StageContext(spec, Store(tmp_path))


def test_sigterm_ends_at_once_where_nothing_can_be_lost(ctx: StageContext) -> None:
    with pytest.raises(StopNow), ctx.catching_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ctx.stopping.is_set()
    with pytest.raises(Interrupted), ctx.deferring_stop():
        pytest.fail("the work must not begin any more")


def test_sigterm_waits_for_a_checkpoint(ctx: StageContext) -> None:
    with ctx.catching_sigterm(), ctx.deferring_stop():
        os.kill(os.getpid(), signal.SIGTERM)
        assert ctx.stopping.is_set()


def get(server: StatusServer, path: str) -> dict[str, object]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
        return dict(json.loads(answer.read()))


def test_progress_is_answered_while_a_stage_runs() -> None:
    board = ProgressBoard()
    server = StatusServer(board, 0)
    try:
        assert get(server, "/healthz") == {"status": "ok"}
        assert get(server, "/progress") == {"percent": 0, "message": ""}
        board.write(10.0, step=20, total_steps=100, message="training")
        board.write(12.0, step=40, loss=1.5)
        assert get(server, "/progress") == {
            "percent": 40,
            "step": 40,
            "totalSteps": 100,
            "loss": 1.5,
            "etaSeconds": 6,
            "message": "training",
        }
        with pytest.raises(urllib.error.HTTPError) as missing:
            get(server, "/other")
        missing.value.close()
        assert missing.value.code == 404
    finally:
        server.close()


def test_logs_are_json_lines_with_stage_and_owner() -> None:
    formatter = logs.JsonFormatter(stage="sft")
    formatter.fields |= {"owner": "gen-1"}
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "said %s", ("so",), sys.exc_info())
    line = json.loads(formatter.format(record))
    assert (line["stage"], line["owner"], line["message"]) == ("sft", "gen-1", "said so")
    assert "ValueError: broken" in line["exception"]


@pytest.mark.parametrize(
    ("codes", "whole"),
    [([0, 0], 0), ([1, 70], 70), ([-9, 65], 65), ([0, 1], 1), ([-9, 0], 137), ([143, 143], 143), ([1, -9], 1)],
)
def test_of_several_processes_the_one_that_knows_why_is_heard(codes: list[int], whole: int) -> None:
    assert launch.worst(codes) == whole
