"""What every training stage shares: parameters for TRL, running and resuming, and leaving a complete model.

The order is always the same. `prepare` loads, the stage builds TRL's trainer, `train` runs it (from the last complete
checkpoint, if there is one), and `leave_model` writes the merged model. Everything that is measured afterwards is
measured on the saved model, read back: that is the one that goes on.
"""

import gc
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from peft import LoraConfig, PeftModel
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from flywheel_contract.params import LoraParams, Quantization, TrainingParams
from flywheel_trainer import checkpoints, deepspeed_presets, models, tracking
from flywheel_trainer.callbacks import History, StageCallback
from flywheel_trainer.context import StageContext, is_main_process
from flywheel_trainer.errors import ConfigError, Interrupted
from flywheel_trainer.model_files import check_model

_log = logging.getLogger(__name__)

Config = TypeVar("Config", bound=TrainingArguments)
Loader = Callable[..., PreTrainedModel]
"""Reads a model from a folder in a dtype; keyword arguments go to transformers' `from_pretrained`."""

HISTORY: Final = "metrics.jsonl"
"""One line per optimiser step; it ends up in `logs/` beside the outputs."""


@dataclass
class Start:
    """A stage's starting point."""

    path: Path
    """The predecessor's folder: what is trained, and what the reference is."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    load: Loader
    options: dict[str, Any] = field(default_factory=dict)
    """What `load` was given besides: the quantisation of the frozen weights."""

    def again(self) -> PreTrainedModel:
        """The starting point read anew, as training has it: what the trained model is measured against."""
        return self.load(self.path, self.dtype, **self.options)


def prepare(ctx: StageContext, params: TrainingParams, path: Path, load: Loader) -> Start:
    """Seeds everything and loads model and tokenizer from `path`.

    All weights trained: they are kept in fp32 and bf16 is only the arithmetic (steps of 1e-6 vanish in bf16 weights).
    With adapters the frozen weights take the arithmetic's own type.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    set_seed(ctx.spec.seed)
    ctx.progress(percent=0, message="loading the model")
    dtype = models.dtype_of(params.precision) if params.lora is not None else torch.float32
    options = _quantized(params.lora, dtype) if params.lora is not None else {}
    return Start(path, load(path, dtype, **options), models.load_tokenizer(path), dtype, load, options)


def configure(ctx: StageContext, config: type[Config], params: TrainingParams, **options: Any) -> Config:  # noqa: ANN401 -- TRL's
    """TRL's configuration for `params`; `options` are what the stage adds.

    Raises:
        ConfigError: the DeepSpeed configuration is no JSON, would leave no model behind, or contradicts itself.
    """
    if params.deepspeed is not None or params.deepspeed_config is not None:
        _refuse_zero_on_quantized(params)
    on_gpu = torch.cuda.is_available()
    made = config(
        output_dir=str(ctx.checkpoints()),
        num_train_epochs=params.epochs,
        max_steps=params.max_steps or -1,
        per_device_train_batch_size=params.batch_size,
        gradient_accumulation_steps=params.gradient_accumulation_steps,
        learning_rate=params.learning_rate,
        lr_scheduler_type=params.lr_scheduler_type,
        warmup_steps=params.warmup_steps,
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        bf16=models.dtype_of(params.precision) is torch.bfloat16,
        use_cpu=not on_gpu,
        gradient_checkpointing=params.gradient_checkpointing,
        deepspeed=_deepspeed(ctx, params),
        save_strategy="steps",
        save_steps=params.save_steps,
        save_total_limit=2,
        logging_steps=1,
        # The default replaces a NaN loss by the mean of the others, and so hides it.
        logging_nan_inf_filter=False,
        seed=ctx.spec.seed,
        data_seed=ctx.spec.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
        # The first process may sample alone for long before the others hear of it; the default is half an hour.
        ddp_timeout=6 * 3600,
        **options,
    )
    if made.deepspeed is not None:
        _join_deepspeed(made)
    return made


def _join_deepspeed(args: TrainingArguments) -> None:
    """Tells DeepSpeed's own communication of the processes before a trainer reads a reference model.

    Under ZeRO-3 transformers partitions that while it is read, and DeepSpeed would take itself for the only process.
    """
    from deepspeed import comm  # noqa: PLC0415 -- seconds, for those who ask for it

    if args.distributed_state.num_processes > 1 and not comm.is_initialized():
        comm.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)


def lora(params: TrainingParams, task: str) -> LoraConfig | None:
    """PEFT's configuration, or None where all weights are trained."""
    if params.lora is None:
        return None
    return LoraConfig(
        r=params.lora.r,
        lora_alpha=params.lora.alpha,
        lora_dropout=params.lora.dropout,
        target_modules="all-linear",
        task_type=task,
        # The score of a reward model is new: it has to be trained as a whole.
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )


def train(ctx: StageContext, trainer: Trainer) -> History:
    """Trains to the end and answers the history of all attempts. A run that was finished already is not touched.

    Raises:
        Interrupted: SIGTERM arrived; a checkpoint is saved.
        NotFiniteError: loss, gradient or reward became NaN or infinite.
    """
    folder = ctx.checkpoints()
    if not ctx.spec.resume and is_main_process():
        checkpoints.forget(folder)
    wait_for_all()
    last = checkpoints.last_complete(folder)
    history = History(folder / HISTORY)
    history.keep_up_to(last.step if last is not None else 0)
    if last is not None:
        if last.finished:
            _log.info("training had been finished at step %d", last.step)
            return history
        _log.info("going on from step %d of %d", last.step, last.total_steps)
    trainer.add_callback(StageCallback(ctx, history))
    trainer.remove_callback(PrinterCallback)
    if (trackers := tracking.callback(ctx)) is not None:
        trainer.add_callback(trackers)
    ctx.progress(message="training")
    with ctx.deferring_stop():
        trainer.train(resume_from_checkpoint=str(last.path) if last is not None else None)
        if ctx.stopping.is_set():
            step = trainer.state.global_step
            raise Interrupted(f"SIGTERM arrived; checkpoint saved at step {step} of {trainer.state.max_steps}")
    return history


def leave_model(ctx: StageContext, params: TrainingParams, start: Start) -> Path:
    """Writes the trained model, merged and complete, to output `model`, and answers that folder.

    The weights come from the last checkpoint, whose files are a saved model already (an adapter's with LoRA), so that a
    stage that is stopped behind its last step goes on from there.
    """
    ctx.progress(message="saving the model")
    output = ctx.output("model")
    if is_main_process():
        last = checkpoints.last_complete(ctx.checkpoints())
        if last is None or not last.finished:
            raise RuntimeError(f"training ended without a checkpoint of its last step in {ctx.checkpoints()}")
        if params.lora is None:
            for file in sorted(last.path.iterdir()):
                if file.suffix in (".json", ".safetensors") and file.name != "trainer_state.json":
                    shutil.copy2(file, output / file.name)
        else:
            _merge(ctx, start, last.path, output)
        start.tokenizer.save_pretrained(output)
        check_model(output)
        logs = ctx.beside("logs")
        shutil.copy2(ctx.checkpoints() / HISTORY, logs / HISTORY)
        if (tracked := tracking.folder(ctx)).is_dir():
            # An offline run's links point at its own files.
            shutil.copytree(tracked, logs, dirs_exist_ok=True, ignore=_links)
    wait_for_all()
    return output


def from_first(objects: list[Any]) -> None:
    """Fills `objects` in every process with what the first one holds there."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(objects, src=0)


def _links(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_symlink()]


def wait_for_all() -> None:
    """Returns when every process of this stage has come here; what the first one wrote can be read then."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _merge(ctx: StageContext, start: Start, checkpoint: Path, output: Path) -> None:
    adapter = ctx.beside("adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy2(checkpoint / name, adapter / name)
    # In fp32, whatever was trained in: adding the product of two small matrices to bf16 weights would round it away.
    base = start.load(start.path, torch.float32)
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    merged.save_pretrained(output)


def release(trainer: Trainer, start: Start) -> None:
    """Gives back the memory of training, before the saved model is read, whole."""
    unset_hf_deepspeed_config()
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    if hasattr(trainer, "ref_model"):
        trainer.ref_model = None
    del start.model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _deepspeed(ctx: StageContext, params: TrainingParams) -> str | None:
    text = deepspeed_presets.configuration(params, on_gpu=torch.cuda.is_available())
    if text is None:
        return None
    # Every process writes the same text; DeepSpeed wants a file.
    path = ctx.work / f"deepspeed-{os.environ.get('RANK', '0')}.json"
    path.write_text(text, encoding="utf-8")
    return str(path)


def _quantized(lora: LoraParams, dtype: torch.dtype) -> dict[str, Any]:
    """How the frozen weights are read.

    Raises:
        ConfigError: 4 bits were asked for where they cannot be.
    """
    if lora.quantization is Quantization.NONE:
        return {}
    if not torch.cuda.is_available():
        raise ConfigError("lora.quantization NF4 (QLoRA) needs a GPU: set runtime.gpus, or leave quantization out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "lora.quantization NF4 needs bitsandbytes, which this image does not hold: build the trainer's image with "
            "the extra `qlora`, or leave quantization out"
        )
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _refuse_zero_on_quantized(params: TrainingParams) -> None:
    if params.lora is not None and params.lora.quantization is not Quantization.NONE:
        raise ConfigError(
            "lora.quantization and deepspeed are both set: quantised weights are not partitioned here; keep one of them"
        )
