"""What a stage is given and what it gives back."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Final

from flywheel_contract.base import Digest
from flywheel_contract.manifest import Manifest, Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_result import Size
from flywheel_contract.stage_spec import Input, StageSpec, stage_uri
from flywheel_contract.stages import Origin, Role, Stage
from flywheel_contract.uris import parse_uri
from flywheel_trainer import days
from flywheel_trainer.artifacts import Store, digest_folder, size_of
from flywheel_trainer.errors import ConfigError, DataError, Interrupted, ModelError, SpecError, StopNow
from flywheel_trainer.progress import ProgressBoard, monotonic

_log = logging.getLogger(__name__)

MODEL_HASH_LIMIT: Final = 2 << 30
"""Models that are no output of ours are hashed again up to this many bytes; larger ones are trusted as resolved."""


def rank() -> str:
    """This process's number among all of the stage's."""
    return os.environ.get("RANK", "0")


def is_main_process() -> bool:
    """Whether this process reports and writes: rank 0 of several, or the only one."""
    return rank() == "0"


def is_first_of_its_node() -> bool:
    """Whether this process speaks for its pod: each pod has a termination message of its own."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """What a stage has measured. Its outputs lie in the folders that `StageContext.output` gave."""

    metrics: dict[Metric, Measurement] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    message: str = ""
    digests: dict[str, Digest] = field(default_factory=dict)
    """Only for `resolve`: the name of each input and its digest."""
    sizes: list[Size] = field(default_factory=list)
    """Only for `resolve` in a dry run, in the order of the inputs."""


@dataclass(frozen=True, slots=True)
class LocalInput:
    """An input together with the local file or folder that it was found in."""

    spec: Input
    path: Path

    @property
    def name(self) -> str:
        """Its name in the StageSpec."""
        return self.spec.name

    @property
    def origin(self) -> Origin | None:
        """Where traffic and preferences come from, as the source declares it."""
        return self.spec.origin

    @property
    def weight(self) -> float:
        """Weight of a reward in the composite, or share of data in the mixture."""
        return self.spec.weight


@dataclass
class StageContext:
    """The world as a stage may see it."""

    spec: StageSpec
    store: Store
    board: ProgressBoard = field(default_factory=ProgressBoard)
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set once SIGTERM has arrived."""
    notes: list[str] = field(default_factory=list)
    """What the status is to say beside the stage's own sentence: what was left out, given up, or does not apply."""
    _deferring: bool = False

    @cached_property
    def uri(self) -> str:
        """The stage's own folder, in which outputs and manifest end up."""
        return stage_uri(self.spec)

    @cached_property
    def work(self) -> Path:
        """Checkpoints and unfinished outputs; the same folder in every attempt at the same inputs."""
        return self.store.work(self.uri)

    def output(self, name: str) -> Path:
        """The folder in which output `name` is to be written. It is empty when the stage starts."""
        return self._fresh("out", name)

    def beside(self, name: str) -> Path:
        """A folder that is kept next to the outputs (logs, an adapter) though no later stage reads it."""
        return self._fresh("beside", name)

    def checkpoints(self) -> Path:
        """The folder of checkpoints, which outlives an interrupted attempt."""
        path = self.work / "checkpoints"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def keep_checkpoints(self) -> None:
        """Copies the checkpoints to remote storage where the work folder is local to this machine."""
        self.store.save_work(self.uri, self.work, "checkpoints")

    def inputs(self, role: Role) -> list[LocalInput]:
        """The inputs of a role, in the order of the spec, each still what it was when it was resolved.

        Raises:
            DataError, ModelError: missing, or changed since it was resolved.
        """
        return [self._checked(i) for i in self.spec.inputs if i.role == role]

    def input(self, role: Role) -> LocalInput:
        """The only input of a role.

        Raises:
            ConfigError: there is none, or there are several.
        """
        found = self.inputs(role)
        if len(found) != 1:
            raise ConfigError(f"stage {self.spec.stage} needs exactly one input of role {role}, and has {len(found)}")
        return found[0]

    def manifest_beside(self, spec: Input) -> Manifest | None:
        """The manifest of the stage whose output `spec` is; None where it was made elsewhere."""
        location = parse_uri(spec.uri)
        if location.scheme == "hf" or "/" not in location.path:
            return None
        return self.store.read_manifest(spec.uri.rstrip("/").rpartition("/")[0])

    def progress(
        self,
        *,
        percent: float | None = None,
        step: int | None = None,
        total_steps: int | None = None,
        loss: float | None = None,
        reward: float | None = None,
        message: str | None = None,
    ) -> None:
        """Tells the status endpoint how far the stage is. What is left out keeps its last value."""
        self.board.write(
            monotonic(),
            percent=percent,
            step=step,
            total_steps=total_steps,
            loss=loss,
            reward=reward,
            message=message,
        )

    @contextlib.contextmanager
    def deferring_stop(self) -> Iterator[None]:
        """Inside, SIGTERM only sets `stopping`, and the stage ends in its own time; outside, it ends at once."""
        if self.stopping.is_set():
            raise Interrupted("SIGTERM arrived before the work began")
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        """The handler of SIGTERM."""
        self.stopping.set()
        if not self._deferring:
            raise StopNow

    @contextlib.contextmanager
    def catching_sigterm(self) -> Iterator[None]:
        """Handles SIGTERM inside the block. Outside the main thread there is nothing to handle."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self.on_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _fresh(self, kind: str, name: str) -> Path:
        path = self.work / kind / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _checked(self, spec: Input) -> LocalInput:
        error = DataError if spec.kind == "Data" else ModelError
        if spec.dates is not None:
            if self.spec.stage is Stage.RESOLVE:
                days.refuse_unfinished(spec)
            # Each process gathers links of its own: several share the work folder.
            path = days.gather(self.store, spec, self.work / "days" / rank() / spec.name)
        else:
            path = self.store.local(spec.uri)
        if not path.exists():
            raise error(f"input {spec.name}: {spec.uri} does not exist")
        if self.spec.stage is Stage.RESOLVE:
            return LocalInput(spec, path)
        if spec.digest is None:
            raise SpecError(f"input {spec.name}: it has no digest; inputs are resolved before any other stage")
        if self._must_be_hashed(spec, path) and digest_folder(path) != spec.digest:
            raise error(
                f"input {spec.name}: {spec.uri} has changed since it was resolved; leave data and models in place "
                "while a generation runs, and put new ones under a new path"
            )
        return LocalInput(spec, path)

    def _must_be_hashed(self, spec: Input, path: Path) -> bool:
        """Data always. Of models, those whose own stage's manifest does not vouch for them, and that are not huge."""
        if spec.kind == "Data":
            return True
        manifest = self.manifest_beside(spec)
        if manifest is not None and spec.digest in manifest.outputs.values():
            return False
        return size_of(path) <= MODEL_HASH_LIMIT
