"""General benchmarks by lm-evaluation-harness, candidate against baseline on the same documents."""

import contextlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from flywheel_contract.judging import BenchmarkParams
from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.params import EvaluateParams
from flywheel_contract.stages import Role
from flywheel_trainer import benchmark_tasks, models
from flywheel_trainer.context import LocalInput, StageContext
from flywheel_trainer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

_PREFERRED: Final = ("acc_norm", "acc", "exact_match", "f1", "bleu", "rougeL")
"""The metric of a task that counts, where it has several: the first of these, else its first."""
_Z: Final = 1.96


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One task of one model: the metric that counts, document by document, higher is better."""

    metric: str
    documents: dict[int, float]


def compare(ctx: StageContext, params: EvaluateParams) -> tuple[dict[Metric, Measurement], dict[str, Any]]:
    """The worst change of any task, and every task's part of the report.

    Raises:
        ConfigError: a task is unknown.
        DataError: the task folder is refused, or a task's data cannot be read.
    """
    asked = params.benchmarks
    if asked is None:
        return {}, {}
    policy, baseline = ctx.input(Role.POLICY), ctx.input(Role.BASELINE)
    candidate = _scores(ctx, policy, asked, params)
    before = candidate if policy.spec.digest == baseline.spec.digest else _scores(ctx, baseline, asked, params)
    rows = [_change(name, candidate[name], before[name]) for name in sorted(candidate)]
    worst = min(rows, key=lambda row: row["change"]["value"])
    return {Metric.BENCHMARK_CHANGE: Measurement(**worst["change"])}, {"benchmarks": rows}


def _change(name: str, after: TaskScore, before: TaskScore) -> dict[str, Any]:
    """The mean difference over the documents, with its normal 95 % interval: the same documents, so a paired one."""
    shared = sorted(after.documents.keys() & before.documents.keys())
    first, second = (np.array([s.documents[k] for k in shared], dtype=np.float64) for s in (after, before))
    difference = first - second
    half = _Z * float(difference.std(ddof=1)) / len(shared) ** 0.5 if len(shared) > 1 else 0.0
    value = float(difference.mean())
    return {
        "task": name,
        "metric": after.metric,
        "candidate": float(first.mean()),
        "baseline": float(second.mean()),
        "change": {"value": value, "low": value - half, "high": value + half, "n": len(shared)},
    }


def _scores(
    ctx: StageContext, folder: LocalInput, asked: BenchmarkParams, params: EvaluateParams
) -> dict[str, TaskScore]:
    # Seconds of import, which nobody else should pay for.
    from lm_eval.evaluator import simple_evaluate  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    ctx.progress(message=f"{folder.name} does {len(asked.tasks)} benchmarks")
    own = [each.path for each in ctx.inputs(Role.BENCHMARK)]
    for path in own:
        benchmark_tasks.check(path)
    manager = TaskManager(include_path=str(own[0]) if own else None, include_defaults=not own)
    unknown = [name for name in asked.tasks if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(f"evaluation.benchmarks.tasks: {', '.join(unknown)} is no task of {_where(own)}")
    with _quiet(), contextlib.chdir(own[0]) if own else contextlib.nullcontext():
        _check_documents(manager, asked)
        results = simple_evaluate(
            model=HFLM(
                pretrained=models.load_policy(folder.path, params.precision),
                tokenizer=models.load_tokenizer(folder.path),
                batch_size=params.batch_size,
                max_length=params.max_prompt_tokens,
            ),
            tasks=list(asked.tasks),
            num_fewshot=asked.num_fewshot,
            limit=asked.limit,
            apply_chat_template=asked.apply_chat_template,
            task_manager=manager,
            bootstrap_iters=0,
            random_seed=ctx.spec.seed,
            numpy_random_seed=ctx.spec.seed,
            torch_random_seed=ctx.spec.seed,
            fewshot_random_seed=ctx.spec.seed,
        )
    return {name: _score(name, results, samples) for name, samples in results["samples"].items()}


def _check_documents(manager: "TaskManager", asked: BenchmarkParams) -> None:
    """Reads the tasks' documents and writes their questions once, before a model is loaded.

    Raises:
        DataError: the data cannot be read, or a document does not fit the task; names it.
    """
    try:
        tasks = manager.load(list(asked.tasks))["tasks"]
    except Exception as error:
        raise DataError(
            f"benchmarks: the data of {', '.join(asked.tasks)} cannot be read, or does not fit the task "
            f"({type(error).__name__}: {error}); correct the one or the other"
        ) from error
    for name, task in tasks.items():
        documents = list(itertools.islice(task.eval_docs, asked.limit))
        if not documents:
            raise DataError(f"benchmarks: the task {name} has no documents; write some into its data")
        for number, document in enumerate(documents):
            try:
                task.construct_requests(doc=document, ctx=task.doc_to_text(document), metadata=(name, number, 1))
                _check_target(task, document)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                raise DataError(
                    f"benchmarks: document {number + 1} of the task {name} does not fit it ({said}); correct the "
                    "document or the task"
                ) from error


def _check_target(task: "ConfigurableTask", document: Mapping[str, Any]) -> None:
    """The harness takes a target that is none of the choices for a question that nobody can answer, and goes on.

    Raises:
        ValueError: it is none of them.
    """
    target = task.doc_to_target(document)
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    choices = task.doc_to_choice(document)
    for each in target if isinstance(target, list) else [target]:
        if not (0 <= each < len(choices) if type(each) is int else each in choices):
            raise ValueError(f"the target is none of the {len(choices)} choices")


def _score(name: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> TaskScore:
    """The metric of a task that counts, turned so that higher is better."""
    better = results["higher_is_better"].get(name, {})
    numeric = [m for m in better if samples and isinstance(samples[0].get(m), int | float | np.number)]
    metric = next((m for m in (*_PREFERRED, *numeric) if m in numeric), None)
    if metric is None:
        raise ConfigError(f"evaluation.benchmarks.tasks: {name} has no metric that is a number for each document")
    sign = 1.0 if better[metric] in (True, None) else -1.0
    return TaskScore(metric, {int(s["doc_id"]): sign * float(s[metric]) for s in samples})


def _where(own: Sequence[Path]) -> str:
    return "the folder evaluation.benchmarkTasks" if own else "lm-evaluation-harness"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The harness seeds torch and logs each request; neither may leak into the rest of the stage."""
    logger = logging.getLogger("lm_eval")
    level, state = logger.level, torch.random.get_rng_state()
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
        torch.random.set_rng_state(state)
