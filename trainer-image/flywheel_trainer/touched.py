"""`flywheel-trainer touched`: which artefacts a user's rows went into, for an answer to a request of erasure.

Rows name their user, so data is looked at row by row. Models and reports do not: they are touched where a manifest says
that something touched was among their inputs, by its digest, from the first model on to all that were trained from it.
"""

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flywheel_contract.base import Digest
from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.manifest import Manifest
from flywheel_contract.stage_spec import Input
from flywheel_contract.stages import Stage
from flywheel_contract.uris import join_uri
from flywheel_trainer import days
from flywheel_trainer.artifacts import Store, digest_folder
from flywheel_trainer.data.files import data_files
from flywheel_trainer.errors import StageError

ROWS: Final = frozenset({"prompts", "evaluation", "accepted", "pairs"})
"""Outputs whose rows name their user."""


@dataclass(frozen=True, slots=True)
class Touched:
    """An artefact that a user's rows went into."""

    uri: str
    digest: Digest
    owner: str
    stage: str
    because: str

    def to_json(self) -> dict[str, str]:
        """As it is printed."""
        return {
            "uri": self.uri, "digest": self.digest, "owner": self.owner, "stage": self.stage, "because": self.because,
        }  # fmt: skip


@dataclass
class Answer:
    """What was found, and what could not be looked at."""

    stages: int = 0
    touched: list[Touched] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    """URI -> why nobody can tell."""


@dataclass(frozen=True, slots=True)
class _Stage:
    uri: str
    manifest: Manifest


def touched(store: Store, artifacts: str, user: str) -> Answer:
    """All artefacts below `artifacts` that rows of `user` (as the rows name it) went into, and how."""
    answer = Answer()
    stages = []
    for uri, manifest in store.manifests(artifacts):
        answer.stages += 1
        if manifest is None:
            answer.unknown[uri] = "its manifest cannot be read"
        else:
            stages.append(_Stage(uri, manifest))
    because = _rows_by_digest(store, stages, user, answer)
    found: dict[str, Touched] = {}
    while new := [t for stage in stages for t in _of_stage(stage, because) if t.uri not in found]:
        for each in new:
            found[each.uri] = each
            because.setdefault(each.digest, f"{each.uri} is touched")
    answer.touched = [found[uri] for uri in sorted(found)]
    return answer


def _rows_by_digest(store: Store, stages: Iterable[_Stage], user: str, answer: Answer) -> dict[Digest, str]:
    """Digest of data that holds rows of the user -> how many. What is no longer there goes to `answer.unknown`."""
    places: dict[Digest, tuple[str, Input | None]] = {}
    for stage in stages:
        for name, digest in stage.manifest.outputs.items():
            if name in ROWS:
                places[digest] = (join_uri(stage.uri, name), None)
    for stage in stages:
        # What curation took of its traffic, which may have changed since, is seen in its outputs.
        for item in () if stage.manifest.stage is Stage.CURATE else stage.manifest.inputs:
            if item.kind == "Data" and item.digest is not None:
                places.setdefault(item.digest, (item.uri, item))
    because = {}
    for digest, (uri, item) in places.items():
        try:
            with tempfile.TemporaryDirectory() as scratch:
                dated = item if item is not None and item.dates is not None else None
                path = days.gather(store, dated, Path(scratch)) if dated else store.local(uri)
                if digest_folder(path) != digest:
                    answer.unknown[uri] = f"it is no longer what was read ({digest})"
                elif count := count_rows(path, user):
                    because[digest] = f"{uri} holds {count} rows of the user"
        except (StageError, OSError, ValueError) as error:
            answer.unknown[uri] = f"it cannot be read ({type(error).__name__})"
    return because


def _of_stage(stage: _Stage, because: dict[Digest, str]) -> list[Touched]:
    """The outputs of a stage that are touched as far as is known yet."""
    inputs = [item for item in stage.manifest.inputs if item.digest in because]
    found = []
    for name, digest in stage.manifest.outputs.items():
        reason = because.get(digest)
        if reason is None:
            # Which rows a stage took from its data is seen in the rows that it left, where it left any.
            reason = next((_made_from(i) for i in inputs if i.kind == "Model" or name not in ROWS), None)
        if reason is not None:
            manifest = stage.manifest
            found.append(Touched(join_uri(stage.uri, name), digest, manifest.owner, manifest.stage.value, reason))
    return found


def _made_from(item: Input) -> str:
    return f"made from {item.name}, {item.uri}"


def count_rows(path: Path, user: str) -> int:
    """How many rows of a file or folder name the user.

    Raises:
        DataError: there is no data file.
        ValueError: a file is no JSON Lines or Parquet.
    """
    return sum(_count_in(file, user) for file in data_files(path))


def _count_in(file: Path, user: str) -> int:
    if file.name.endswith(".parquet"):
        import pyarrow.parquet as pq  # noqa: PLC0415 -- a second of import, for one of the formats

        parquet = pq.ParquetFile(file)
        if "user" not in parquet.schema_arrow.names:
            return 0
        return sum(b.column(0).to_pylist().count(user) for b in parquet.iter_batches(columns=["user"]))
    with gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb") as lines:
        return sum(_user_of(line) == user for line in lines if line.strip())


def _user_of(line: bytes) -> Any:  # noqa: ANN401 -- any JSON value
    row = json.loads(line)
    return row.get("user") if isinstance(row, dict) else None


def main(arguments: list[str]) -> int:
    """Prints the answer as JSON. The exit code is 1 where something could not be looked at."""
    parser = argparse.ArgumentParser(
        prog="flywheel-trainer touched",
        description="Lists the artefacts that a user's rows went into.",
    )
    parser.add_argument("--user", required=True, help="the id as rows name it: the receipt of the erasure has it")
    parser.add_argument("--artifacts", required=True, help="URI of the artefacts, spec.artifacts.uri or below it")
    parsed = parser.parse_args(arguments)
    try:
        answer = touched(Store(), parsed.artifacts, parsed.user)
    except StageError as error:
        print(f"flywheel-trainer touched: {error}", file=sys.stderr)
        return int(error.exit_code)
    if answer.stages == 0:
        print(f"flywheel-trainer touched: there is no manifest below {parsed.artifacts}", file=sys.stderr)
        return int(ExitCode.DATA)
    report = {
        "user": parsed.user,
        "stages": answer.stages,
        "touched": [each.to_json() for each in answer.touched],
        "unknown": [{"uri": uri, "because": why} for uri, why in sorted(answer.unknown.items())],
    }
    print(json.dumps(report, indent=2))
    return int(ExitCode.FAULT if answer.unknown else ExitCode.DONE)
