"""Where the row-wise work of curation runs: in this process, or on the Ray cluster that RAY_ADDRESS names.

Filters and embeddings look at a batch of rows at a time, whoever does it: both give the same results. What compares
rows with one another (near-duplicates, clusters, shares, the split) stays in the stage's own process.
"""

import logging
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from flywheel_contract.paths import RAY_ADDRESS, RAY_WORKERS
from flywheel_trainer.errors import ConfigError, StageError

_log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 10.0
STARTING_SECONDS: Final = 900.0
"""How long a cluster that comes up together with the stage may take: nodes are found and images pulled."""
_POLL_SECONDS: Final = 2.0
RowT = TypeVar("RowT")
DoneT = TypeVar("DoneT")


class Executor(Protocol):
    """Does work on batches of rows."""

    def map(self, work: Callable[[Sequence[RowT]], DoneT], rows: Sequence[RowT], batch: int) -> Iterator[DoneT]:
        """`work(rows[i : i + batch])` for each batch, in their order.

        Raises:
            StageError: what `work` raises, wherever it ran.
        """


class LocalExecutor:
    """In this process, one batch after the other."""

    def map(self, work: Callable[[Sequence[RowT]], DoneT], rows: Sequence[RowT], batch: int) -> Iterator[DoneT]:
        """As `Executor.map`."""
        return (work(part) for part in _batches(rows, batch))


HERE: Final = LocalExecutor()


class RayExecutor:
    """On the connected Ray cluster, by Ray Data: an actor for each CPU that is free, which holds `work`.

    `work` travels by pickle, so an object that holds a model says by `__reduce__` how it is loaded there: the workers
    need this package and the same folders at the same places.
    """

    def map(self, work: Callable[[Sequence[RowT]], DoneT], rows: Sequence[RowT], batch: int) -> Iterator[DoneT]:
        """As `Executor.map`."""
        import ray  # noqa: PLC0415 -- seconds, for those who have a cluster

        parts = [pickle.dumps(part) for part in _batches(rows, batch)]
        if not parts:
            return
        # From inside the cluster: Ray Data cannot be driven by a client of it (ray://).
        driver = ray.remote(num_cpus=0)(_spread)
        for done in ray.get(driver.remote(pickle.dumps(work), parts)):
            result = pickle.loads(done)
            if isinstance(result, StageError):
                raise result
            yield result


def _spread(work: bytes, parts: list[bytes]) -> list[bytes]:
    """Has every part done, and answers what came of each, in their order."""
    import ray  # noqa: PLC0415 -- as above

    ray.data.DataContext.get_current().enable_progress_bars = False
    actors = max(1, min(len(parts), int(ray.cluster_resources().get("CPU", 1))))
    rows = [{"number": number, "part": part} for number, part in enumerate(parts)]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Worker,
        fn_constructor_args=(work,),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=1,
    )
    # Ray Data hands on what is done first; rows have an order.
    return [row["done"] for row in sorted(done.take_all(), key=lambda row: int(row["number"]))]


class _Worker:
    """An actor on the cluster."""

    def __init__(self, work: bytes) -> None:
        self._pickled = work
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Does the work on one batch. A failure of ours is a result; any other one Ray meets with another attempt."""
        try:
            self._work = self._work or pickle.loads(self._pickled)
            done = self._work(pickle.loads(part["part"]))
        except StageError as error:
            done = error
        return {"number": part["number"], "done": pickle.dumps(done)}


@contextmanager
def executor(say: Callable[[str], None]) -> Iterator[Executor]:
    """The executor of this pod: on Ray where RAY_ADDRESS names a cluster.

    That is `ray://host:10001`, `host:6379`, or `local` for a cluster of this process's own. One that starts together
    with the stage (RAY_WORKERS) is waited for.

    Raises:
        StageError: the cluster cannot be reached, or has no worker: another attempt may succeed.
        ConfigError: it is of another version of Ray or Python.
    """
    named = os.environ.get(RAY_ADDRESS)
    if not named:
        yield HERE
        return
    workers = int(os.environ.get(RAY_WORKERS, "0"))
    _await_head(named, STARTING_SECONDS if workers else 0.0, say)
    import ray  # noqa: PLC0415 -- as above

    try:
        ray.init(address=named, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, TimeoutError) as error:
        raise StageError(f"the Ray cluster at {RAY_ADDRESS}={named} cannot be reached: {error}") from error
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the Ray cluster at {RAY_ADDRESS}={named} cannot be used: {error}; it has to run this image's version "
            f"of Ray, {ray.__version__}, and of Python"
        ) from error
    _await_workers(workers, say)
    _log.info("curation runs on the Ray cluster at %s: %s", named, ray.cluster_resources())
    try:
        yield RayExecutor()
    finally:
        ray.shutdown()


def _await_head(address: str, patience: float, say: Callable[[str], None]) -> None:
    """Ray itself asks a head that is away for many minutes, and cannot be interrupted meanwhile."""
    head = urlsplit(address if "//" in address else f"//{address}")
    if head.hostname is None or head.port is None:
        return  # `local` or `auto`: nothing is asked over the network
    until = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((head.hostname, head.port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            if time.monotonic() >= until:
                raise StageError(f"the Ray cluster at {RAY_ADDRESS}={address} cannot be reached: {error}") from error
            say("waiting for the Ray cluster's head")
            time.sleep(_POLL_SECONDS)
        else:
            return


def _await_workers(wanted: int, say: Callable[[str], None]) -> None:
    """Until all workers are there, or time is up and there is at least one. The head has no CPU to offer."""
    import ray  # noqa: PLC0415 -- as above

    until = time.monotonic() + STARTING_SECONDS
    while (there := sum(node["Alive"] for node in ray.nodes()) - 1) < wanted:
        if time.monotonic() >= until:
            if there < 1:
                raise StageError(f"none of the {wanted} workers of the Ray cluster has come within its time")
            _log.warning("curation goes on with %d of %d workers of the Ray cluster", there, wanted)
            return
        say(f"waiting for workers of the Ray cluster: {there} of {wanted}")
        time.sleep(_POLL_SECONDS)


def _batches(rows: Sequence[RowT], batch: int) -> Iterator[Sequence[RowT]]:
    return (rows[start : start + batch] for start in range(0, len(rows), batch))
