"""resolve: looks at everything that is named by URI before any of it is used, and answers what it is: its digest.

It reads and computes, nothing else: no torch, no GPU, no output. What cannot be used is refused here, in the first
minute, and not after hours of training. In a dry run it reads every row, too, and counts.
"""

import re
from pathlib import Path
from typing import Final

from flywheel_contract.base import Digest
from flywheel_contract.stage_spec import Input
from flywheel_contract.stages import Role
from flywheel_trainer import benchmark_tasks, counting, style
from flywheel_trainer.artifacts import digest_folder
from flywheel_trainer.context import LocalInput, StageContext, StageOutcome
from flywheel_trainer.data.embeddings import check_embedder
from flywheel_trainer.data.files import data_files
from flywheel_trainer.errors import DataError, ModelError
from flywheel_trainer.model_files import architecture, check_model

_HUB_COMMIT: Final = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")


def run(ctx: StageContext) -> StageOutcome:
    """Answers the digest of each input by its name.

    Raises:
        ConfigError: a pattern of spec.style cannot be used.
        DataError: data is missing or empty, or not what the spec says it must be.
        ModelError: a model folder is missing or refused, or of the wrong kind for its role.
    """
    style.features(ctx.spec.style)
    found = [i for role in Role for i in ctx.inputs(role)]
    digests: dict[str, Digest] = {}
    notes = []
    for number, item in enumerate(sorted(found, key=lambda i: i.name)):
        ctx.progress(percent=100 * number / len(found), message=f"looking at {item.name}")
        _check(item)
        digests[item.name] = _digest(ctx, item)
        _refuse_other(item.spec, digests[item.name])
        if commit := _HUB_COMMIT.search(str(item.path)):
            notes.append(f"{item.name} is commit {commit[1]}")
    sizes = counting.sizes(ctx, found) if ctx.spec.params.count else []
    return StageOutcome(message="; ".join([f"resolved {len(digests)} inputs", *notes]), digests=digests, sizes=sizes)


def _check(item: LocalInput) -> None:
    if item.spec.role is Role.BENCHMARK:
        benchmark_tasks.check(item.path)
        return
    if item.spec.kind == "Data":
        _check_data(item.path)
        return
    if item.spec.role is Role.EMBEDDER:
        check_embedder(item.path)
        return
    check_model(item.path)
    scores = architecture(item.path).endswith("ForSequenceClassification")
    if item.spec.role is Role.REWARD and not scores:
        raise ModelError(f"input {item.name}: {item.spec.uri} is no reward model; name one that gives a score")
    if item.spec.role is Role.SAFETY and not scores:
        raise ModelError(f"input {item.name}: {item.spec.uri} is no text classifier; name one for sequences")
    if item.spec.role in (Role.BASELINE, Role.JUDGE, Role.POOL) and scores:
        raise ModelError(f"input {item.name}: {item.spec.uri} gives scores; name a language model")


def _check_data(path: Path) -> None:
    empty = [file for file in data_files(path) if file.stat().st_size == 0]
    if empty:
        raise DataError(f"{empty[0]} is empty: write at least one row into it, or take the source away")


def _digest(ctx: StageContext, item: LocalInput) -> Digest:
    """An output of ours carries its digest in its stage's manifest; everything else is read through and hashed."""
    output = item.spec.uri.rstrip("/").rpartition("/")[2]
    manifest = ctx.manifest_beside(item.spec)
    if manifest is not None and output in manifest.outputs:
        return manifest.outputs[output]
    return digest_folder(item.path)


def _refuse_other(spec: Input, digest: Digest) -> None:
    if spec.digest is not None and spec.digest != digest:
        error = DataError if spec.kind == "Data" else ModelError
        raise error(f"input {spec.name}: {spec.uri} is {digest}, not {spec.digest}; correct the URI or the digest")
