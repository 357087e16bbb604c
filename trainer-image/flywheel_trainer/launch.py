"""Runs a training stage in several processes, one for each accelerator, without losing how it ended.

torchrun answers 1 whatever its workers said; the operator needs their exit code.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.stages import Stage

SEVERAL: Final = (Stage.REWARD_MODEL, Stage.SFT, Stage.DPO, Stage.RL)
"""The stages that know how to share their work."""

_POLL_SECONDS: Final = 0.2
_GRACE_SECONDS: Final = 10.0
"""How long the others may take to end after one process failed; they often wait for it in vain."""


def processes(stage: Stage) -> int:
    """How many processes `stage` is to have: FLYWHEEL_PROCESSES, or one for each accelerator of this container."""
    if stage not in SEVERAL or "RANK" in os.environ:
        return 1
    asked = os.environ.get("FLYWHEEL_PROCESSES")
    return int(asked) if asked else max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def run(arguments: Sequence[str], count: int) -> int:
    """Runs `flywheel-trainer <arguments>` in `count` processes and answers the exit code of the first that failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "flywheel_trainer", *arguments],
            env={**os.environ, **shared, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for worker in workers:
            worker.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        return _wait(workers)
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(workers: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Waits for all; once one has failed, the others get a little time and are killed then."""
    deadline = float("inf")
    while any(worker.poll() is None for worker in workers):
        # One that was interrupted has failed in nothing: the others are saving, and the kubelet sets them their limit.
        broken = any(worker.returncode not in (None, ExitCode.DONE, ExitCode.INTERRUPTED) for worker in workers)
        if broken and deadline == float("inf"):
            deadline = time.monotonic() + _GRACE_SECONDS
        if time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(_POLL_SECONDS)
    return worst([worker.wait() for worker in workers])


def worst(codes: Sequence[int]) -> int:
    """The exit code of the whole: one given on purpose tells more than that of a process killed for its failure."""
    purposeful = [code for code in codes if code in set(ExitCode) - {ExitCode.DONE, ExitCode.FAULT}]
    failed = purposeful or [code for code in codes if code != ExitCode.DONE]
    if not failed:
        return ExitCode.DONE
    return failed[0] if failed[0] > 0 else 128 - failed[0]
