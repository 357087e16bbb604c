"""Runs one stage from its StageSpec to its manifest, termination message and exit code."""

import errno
import importlib
import importlib.metadata
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from flywheel_contract import paths
from flywheel_contract.base import digest_of
from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.manifest import MANIFEST_NAME, Manifest
from flywheel_contract.stage_result import MESSAGE_MAX_LENGTH, Reason, StageResult
from flywheel_contract.stage_spec import StageSpec, inputs_digest
from flywheel_contract.stages import OUTPUTS, Stage
from flywheel_contract.uris import join_uri
from flywheel_trainer import logs
from flywheel_trainer.artifacts import Store, digest_folder
from flywheel_trainer.context import StageContext, StageOutcome, is_first_of_its_node, is_main_process
from flywheel_trainer.errors import Interrupted, SpecError, StageError, StopNow
from flywheel_trainer.progress import StatusServer

_log = logging.getLogger(__name__)

_LIBRARIES: Final = (
    "accelerate", "datasets", "deepspeed", "flywheel-trainer", "peft", "safetensors", "tokenizers", "torch",
    "transformers", "trl",
)  # fmt: skip


def run_stage(stage: Stage, spec_file: Path) -> ExitCode:
    """Runs `stage` as `spec_file` says and answers the exit code; whatever happens, the termination message tells it.

    Where the manifest of these very inputs lies there already, nothing is done again.
    """
    try:
        spec = read_spec(stage, spec_file)
        logs.add(owner=spec.owner)
        ctx = StageContext(spec, Store())
        # Early, because the first process of a container ignores SIGTERM until it handles it.
        with ctx.catching_sigterm():
            result = reused(ctx) or _run(ctx)
    except (Exception, StopNow) as error:  # noqa: BLE001 -- the boundary: every failure becomes an exit code and a reason
        code, reason, message = classify(error)
        _log.error("stage %s failed: %s", stage, message, exc_info=error if code == ExitCode.FAULT else None)
        result = StageResult(stage=stage, reason=reason, message=message[:MESSAGE_MAX_LENGTH])
        tell(result)
        return code
    tell(result)
    return ExitCode.DONE


def read_spec(stage: Stage, spec_file: Path) -> StageSpec:
    """The StageSpec in `spec_file`.

    Raises:
        SpecError: it is missing, no StageSpec, or one of another stage.
    """
    try:
        spec: StageSpec = TypeAdapter(StageSpec).validate_json(spec_file.read_bytes())
    except OSError as error:
        raise SpecError(f"{spec_file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise SpecError(f"{spec_file}: {where}: {first['msg']}") from error
    if spec.stage != stage:
        raise SpecError(f"{spec_file} is for stage {spec.stage}, and {stage} was asked for")
    return spec


def reused(ctx: StageContext) -> StageResult | None:
    """The result of an earlier attempt at the same inputs. `resolve` has none: it looks at the world as it is."""
    if ctx.spec.stage is Stage.RESOLVE:
        return None
    manifest = ctx.store.read_manifest(ctx.uri)
    if manifest is None or manifest.inputs_digest != inputs_digest(ctx.spec):
        return None
    _log.info("found the manifest of an earlier attempt in %s", ctx.uri)
    return _result(ctx, manifest, "found the manifest of an earlier attempt", reused=True)


def classify(error: BaseException) -> tuple[ExitCode, Reason, str]:
    """Exit code, reason and sentence of a failure."""
    if isinstance(error, StopNow):
        return Interrupted.exit_code, Interrupted.reason, "SIGTERM arrived; the next attempt goes on from here"
    if isinstance(error, StageError):
        return error.exit_code, error.reason, _printable(str(error))
    chain = list(_causes(error))
    text = _printable(f"{type(error).__name__}: {error}")
    if any(_is_out_of_memory(e) for e in chain):
        return ExitCode.FAULT, Reason.OUT_OF_MEMORY, f"out of memory: {text}"
    if any(_is_disk_full(e) for e in chain):
        return ExitCode.FAULT, Reason.DISK_FULL, f"disk full: {text}"
    return ExitCode.FAULT, Reason.FAULT, text


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    # torch is not imported for this: its error carries the same class name on every device. On the CPU it is a bare
    # RuntimeError that only its text tells apart.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _is_disk_full(error: BaseException) -> bool:
    # safetensors and torch write from native code and pass on only the text of the system's error.
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or (
        "No space left on device" in str(error)
    )


def _run(ctx: StageContext) -> StageResult:
    module = importlib.import_module(f"flywheel_trainer.stages.{ctx.spec.stage.value.replace('-', '_')}")
    logs.adopt_libraries()
    started = _now()
    server = StatusServer(ctx.board, _status_port()) if is_main_process() else None
    try:
        if is_main_process() and OUTPUTS[ctx.spec.stage]:
            for kind in ("out", "beside"):
                shutil.rmtree(ctx.work / kind, ignore_errors=True)
        outcome: StageOutcome = module.run(ctx)
        return _finish(ctx, outcome, started)
    finally:
        if server is not None:
            server.close()


def _status_port() -> int:
    return int(os.environ.get("FLYWHEEL_STATUS_PORT", paths.STATUS_PORT))


def _finish(ctx: StageContext, outcome: StageOutcome, started: str) -> StageResult:
    """Leaves outputs and manifest, and answers the result. In processes other than the first there is nothing to do."""
    spec = ctx.spec
    if spec.stage is Stage.RESOLVE or not is_main_process():
        return StageResult(
            stage=spec.stage, reason=Reason.SUCCEEDED, message=outcome.message[:MESSAGE_MAX_LENGTH],
            outputs=outcome.digests, metrics=outcome.metrics, sizes=outcome.sizes,
        )  # fmt: skip
    ctx.progress(percent=100, message="leaving the outputs")
    outputs = {name: ctx.output(name) for name in OUTPUTS[spec.stage]}
    manifest = Manifest(
        stage=spec.stage,
        owner=spec.owner,
        group=spec.group,
        inputs_digest=inputs_digest(spec),
        inputs=spec.inputs,
        seed=spec.seed,
        outputs={name: digest_folder(folder) for name, folder in outputs.items()},
        metrics=outcome.metrics,
        counts=outcome.counts,
        versions=dict(_versions()),
        device=_device(),
        started_at=started,
        finished_at=_now(),
    )
    beside = {p.name: p for p in sorted((ctx.work / "beside").glob("*"))}
    ctx.store.publish(ctx.uri, {**outputs, **beside}, manifest)
    ctx.store.drop_work(ctx.uri, ctx.work)
    return _result(ctx, manifest, "; ".join([outcome.message, *ctx.notes]))


def _printable(text: str) -> str:
    """`text` without lone surrogates, which a library's error may quote from a file and no JSON can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _result(ctx: StageContext, manifest: Manifest, message: str, *, reused: bool = False) -> StageResult:
    return StageResult(
        stage=ctx.spec.stage,
        reason=Reason.SUCCEEDED,
        message=message[:MESSAGE_MAX_LENGTH],
        manifest_uri=join_uri(ctx.uri, MANIFEST_NAME),
        manifest_digest=digest_of(manifest.to_json()),
        outputs=manifest.outputs,
        metrics=manifest.metrics,
        reused=reused,
    )


def tell(result: StageResult) -> None:
    """Writes the termination message of this pod. Outside a pod there is no such file, and none is made unless it is
    asked for. On several nodes each pod says how its own part ended; what counts of a success is the first one's."""
    if not is_first_of_its_node():
        return
    named = os.environ.get("FLYWHEEL_TERMINATION_LOG")
    target = Path(named or paths.TERMINATION_LOG)
    if named or target.exists():
        target.write_text(result.to_termination_message(), encoding="utf-8")
    _log.info("stage %s: %s %s", result.stage, result.reason, result.message)


def _versions() -> Iterator[tuple[str, str]]:
    for name in _LIBRARIES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _device() -> str:
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else "cpu"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
