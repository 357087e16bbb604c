"""What draws replies: the model in this process, vLLM, or an endpoint, behind one small protocol.

A drawer is used as a context and lets its model go at the end: the reward models come next and need the memory.
"""

import contextlib
import gc
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from flywheel_contract.params import Engine, Precision, SamplingParams
from flywheel_trainer import models
from flywheel_trainer.data.rows import Message
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.sampling import Report, encode_prompt, sample_replies


class Drawer(Protocol):
    """Draws replies to prompts."""

    def draw(
        self, prompts: Sequence[Sequence[Message]], params: SamplingParams, *, count: int, seed: int, report: Report
    ) -> list[list[str]]:
        """`count` replies to each prompt, in the order of the prompts; an empty text is a reply without words."""


@dataclass
class TransformersDrawer:
    """The model in this process: batched generation."""

    model: Any
    tokenizer: Any

    def draw(
        self, prompts: Sequence[Sequence[Message]], params: SamplingParams, *, count: int, seed: int, report: Report
    ) -> list[list[str]]:
        """As the protocol says; the same seed and model give the same replies."""
        return sample_replies(self.model, self.tokenizer, prompts, params, count=count, seed=seed, report=report)


@dataclass
class VllmDrawer:
    """vLLM in this process, on its GPUs; it does the batching itself."""

    engine: Any
    tokenizer: Any

    def draw(
        self, prompts: Sequence[Sequence[Message]], params: SamplingParams, *, count: int, seed: int, report: Report
    ) -> list[list[str]]:
        """As the protocol says."""
        from vllm import SamplingParams as Options  # noqa: PLC0415 -- installed where GPUs are  # type: ignore[import-not-found]

        options = Options(
            n=count,
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=params.max_new_tokens,
            seed=seed,
        )
        encoded = [
            {"prompt_token_ids": encode_prompt(self.tokenizer, prompt, params.max_prompt_tokens)} for prompt in prompts
        ]
        answers = self.engine.generate(encoded, options, use_tqdm=False)
        report(1.0)
        return [[output.text.strip() for output in answer.outputs] for answer in answers]


def use_vllm(engine: Engine) -> bool:
    """Whether `engine` means vLLM on this machine.

    Raises:
        ConfigError: vLLM was asked for by name, and it or a GPU is missing.
    """
    if engine is Engine.TRANSFORMERS:
        return False
    installed, accelerated = importlib.util.find_spec("vllm") is not None, torch.cuda.is_available()
    if engine is Engine.VLLM and not (installed and accelerated):
        lacking = "a GPU" if not accelerated else "the package vllm, which this image does not hold"
        raise ConfigError(f"engine VLLM needs {lacking}; ask for Auto or Transformers, or change the pod")
    return installed and accelerated


@contextlib.contextmanager
def opened(folder: Path, engine: Engine, precision: Precision, max_length: int) -> Iterator[Drawer]:
    """The model in `folder`, ready to draw; its memory is given back at the end.

    Args:
        max_length: tokens of the longest prompt with its reply; vLLM sets memory aside for it.
    """
    drawer: Drawer
    if use_vllm(engine):
        from vllm import LLM  # noqa: PLC0415  # type: ignore[import-not-found]

        models.check_model(folder)
        dtype = str(models.dtype_of(precision)).removeprefix("torch.")
        # A part of the card stays free for what the stage loads next to it.
        llm = LLM(str(folder), dtype=dtype, max_model_len=max_length, gpu_memory_utilization=0.85)
        drawer = VllmDrawer(llm, models.load_tokenizer(folder))
        del llm
    else:
        drawer = TransformersDrawer(models.load_policy(folder, precision), models.load_tokenizer(folder))
    try:
        yield drawer
    finally:
        # The caller's name for the drawer outlives the block: empty it, or the model stays.
        for name in list(vars(drawer)):
            setattr(drawer, name, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
