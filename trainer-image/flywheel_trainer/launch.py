"""Runs a training stage in several processes, one for each accelerator of each node, without losing how it ended.

The processes get what `torchrun --nnodes --node-rank --master-addr` (a static rendezvous) would give them. torchrun
itself answers 1 whatever its workers said; the operator needs their exit code.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.paths import MASTER_VARIABLE, NODES_VARIABLE, RENDEZVOUS_PORT
from flywheel_contract.stage_result import Reason, StageResult
from flywheel_contract.stages import DISTRIBUTED, Stage
from flywheel_trainer import runner
from flywheel_trainer.errors import StopNow

_log = logging.getLogger(__name__)

RENDEZVOUS_SECONDS: Final = 600.0
"""How long the other pods may take to start. Once they can be found, torch waits for them in its own time."""
_POLL_SECONDS: Final = 0.2
_GRACE_SECONDS: Final = 10.0
"""How long the others may take to end after one process failed; they often wait for it in vain."""

Resolve = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Gang:
    """The processes of a stage, and this pod's share of them."""

    processes: int
    """In each pod."""
    nodes: int = 1
    node: int = 0
    """Which of the pods this is; the first process of pod 0 reports and writes."""
    address: str = "127.0.0.1"
    """The first pod, where all meet."""
    port: int = 0
    """0: any free one, which only processes of one pod can agree on."""

    def environment(self, local_rank: int) -> dict[str, str]:
        """What torchrun would tell process `local_rank` of this pod."""
        return {
            "WORLD_SIZE": str(self.nodes * self.processes),
            "RANK": str(self.node * self.processes + local_rank),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "LOCAL_RANK": str(local_rank),
            "GROUP_RANK": str(self.node),
            "GROUP_WORLD_SIZE": str(self.nodes),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port or _free_port()),
        }


def gang(stage: Stage) -> Gang | None:
    """How `stage` is shared out, as the pod's environment says; None: this process does it alone, or is one of several.

    A pod has FLYWHEEL_PROCESSES processes, or one for each accelerator of its container.
    """
    if stage not in DISTRIBUTED or "RANK" in os.environ:
        return None
    asked = os.environ.get("FLYWHEEL_PROCESSES")
    processes = int(asked) if asked else max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))
    nodes = int(os.environ.get(NODES_VARIABLE, "1"))
    if nodes > 1:
        port = int(os.environ.get("FLYWHEEL_MASTER_PORT", RENDEZVOUS_PORT))
        node = int(os.environ["JOB_COMPLETION_INDEX"])
        return Gang(processes, nodes, node, os.environ[MASTER_VARIABLE], port)
    return Gang(processes) if processes > 1 else None


def run(arguments: Sequence[str], stage: Stage, together: Gang) -> int:
    """Runs `flywheel-trainer <arguments>` in this pod's processes and answers the exit code of the first that failed.

    Where the first pod cannot be found in time, none is started: another attempt may have more luck.
    """
    workers: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if not workers:
            raise StopNow
        for worker in workers:
            worker.send_signal(number)

    # Early, because the first process of a container ignores SIGTERM until it handles it.
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        if together.nodes > 1 and not await_address(together.address, RENDEZVOUS_SECONDS):
            said = (
                f"the first of the {together.nodes} pods, {together.address}, could not be found within "
                f"{RENDEZVOUS_SECONDS:.0f} s: has every pod a node, and does the cluster's DNS answer?"
            )
            runner.tell(StageResult(stage=stage, reason=Reason.FAULT, message=said))
            return ExitCode.FAULT
        shared = together.environment(0)
        workers.extend(
            subprocess.Popen(
                [sys.executable, "-m", "flywheel_trainer", *arguments],
                env={**os.environ, **together.environment(rank), "MASTER_PORT": shared["MASTER_PORT"]},
            )
            for rank in range(together.processes)
        )
        return _wait(workers)
    except StopNow:
        runner.tell(StageResult(stage=stage, reason=Reason.INTERRUPTED, message="SIGTERM arrived before it began"))
        return ExitCode.INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def await_address(address: str, seconds: float, resolve: Resolve = socket.gethostbyname) -> bool:
    """Whether `address` has become known within `seconds`. The name of a pod is known once the pod has an address."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            resolve(address)
        except OSError as error:
            if time.monotonic() >= deadline:
                _log.error("%s: %s", address, error)
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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
