"""What test_executors has run in a network and process namespace of its own, where a Ray cluster may open its ports.

The cluster is one as KubeRay makes it: a head without CPUs, and a worker that comes later.

Prints a line of JSON: the exit code of a curation as a client of the cluster, and what came of work on a node of it.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flywheel_contract.paths import RAY_ADDRESS, RAY_WORKERS
from flywheel_trainer.data.executors import executor
from flywheel_trainer.errors import DataError, StageError

GCS, CLIENT = "127.0.0.1:6399", "ray://127.0.0.1:10001"
RAY = Path(sys.executable).with_name("ray")
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def doubled(rows: Sequence[int]) -> list[int]:
    """Work on numbers, of which 13 is wrong."""
    if 13 in rows:
        raise DataError("row 13 is wrong")
    return [2 * row for row in rows]


def print_to_stderr(message: str) -> None:
    """Where progress goes."""
    print(message, file=sys.stderr)


def mapped(numbers: Sequence[int]) -> list[int] | str:
    """What the executor makes of `doubled`."""
    # By its module's name: this one is __main__ here, and another one in the workers.
    from tests.trainer_data import on_ray  # noqa: PLC0415 -- see above

    with executor(print_to_stderr) as chosen:
        try:
            return [number for part in chosen.map(on_ray.doubled, numbers, 4) for number in part]
        except StageError as error:
            return f"{type(error).__name__}: {error}"


@contextmanager
def cluster() -> Iterator[None]:
    """A head and a worker on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
    ports = ["--port=6399", "--ray-client-server-port=10001", "--include-dashboard=false"]
    node = [str(RAY), "start", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    subprocess.run([*node, "--head", "--num-cpus=0", *ports], check=True, stdout=sys.stderr)
    try:
        subprocess.run([*node, f"--address={GCS}", "--num-cpus=2"], check=True, stdout=sys.stderr)
        yield
    finally:
        subprocess.run([str(RAY), "stop"], check=True, stdout=sys.stderr)


def main(spec: str) -> None:
    """`spec` is the StageSpec of a curation, whose claims root is the folder that it lies in."""
    root = Path(spec).parent
    own = {
        RAY_ADDRESS: CLIENT,
        RAY_WORKERS: "1",
        "FLYWHEEL_CLAIMS_ROOT": str(root),
        "FLYWHEEL_STATUS_PORT": "0",
        "FLYWHEEL_TERMINATION_LOG": str(root / "termination-log"),
    }
    found: dict[str, object] = {}
    # Before there is a head: as the stage's pod, it waits for its cluster.
    command = [sys.executable, "-m", "flywheel_trainer", "curate", "--spec", spec]
    curation = subprocess.Popen(command, env=os.environ | own)
    with cluster():
        found["curate"] = curation.wait()
        os.environ[RAY_ADDRESS] = GCS
        found["doubled"] = mapped(range(12))
        found["wrong"] = mapped(range(20))
    try:
        mapped(range(2))
    except StageError as error:
        found["gone"] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
