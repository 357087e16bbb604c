"""Loads models and tokenizers from local folders. No remote code, no pickle, no download."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flywheel_contract.params import Precision
from flywheel_contract.stages import RewardModelType
from flywheel_trainer.errors import ConfigError, ModelError
from flywheel_trainer.model_files import architecture, check_model, reward_type

SCORES_ONE_REPLY: Final = (RewardModelType.POINTWISE, RewardModelType.USER_SIGNAL)
"""The kinds of reward model that a composite reward may have as a term."""

FALLBACK_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""For tokenizers without a chat template. A reply ends with the end-of-sequence token, so a model learns to stop."""


def device() -> torch.device:
    """Where models run: this process's accelerator, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def dtype_of(precision: Precision) -> torch.dtype:
    """The arithmetic of `precision` here. Auto is bf16 on an accelerator that has it, else fp32.

    Raises:
        ConfigError: bf16 was asked for, and the accelerator lacks it.
    """
    accelerated = torch.cuda.is_available()
    if precision is Precision.AUTO:
        return torch.bfloat16 if accelerated and torch.cuda.is_bf16_supported() else torch.float32
    if precision is Precision.BF16:
        if accelerated and not torch.cuda.is_bf16_supported():
            raise ConfigError(f"precision BF16: {torch.cuda.get_device_name()} lacks it; ask for FP32")
        return torch.bfloat16
    return torch.float32


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `path`, with a padding token and a chat template whatever was saved.

    Raises:
        ModelError: the folder is refused, or the tokenizer has no end-of-sequence token.
    """
    check_model(path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"model folder {path}: the tokenizer cannot be loaded: {error}") from error
    if tokenizer.eos_token is None:
        raise ModelError(f"model folder {path}: the tokenizer has no eos_token; set it in tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    return tokenizer


def load_policy(path: Path, precision: Precision = Precision.AUTO) -> PreTrainedModel:
    """The language model in `path`, ready to answer: in evaluation mode, on this process's device.

    Raises:
        ModelError: the folder is refused, or holds something else.
    """
    return read_policy(path, dtype_of(precision)).to(device()).eval()


def load_reward(
    path: Path, precision: Precision = Precision.AUTO, kinds: Sequence[RewardModelType] = SCORES_ONE_REPLY
) -> PreTrainedModel:
    """The reward model in `path`, ready to score: one logit per sequence is the reward.

    Raises:
        ModelError: the folder is refused, or holds no model with one score, or one of another kind than `kinds`.
    """
    check_model(path)
    if reward_type(path) not in kinds:
        raise ModelError(f"model folder {path} holds a {reward_type(path)} model; {' or '.join(kinds)} is needed here")
    if not architecture(path).endswith("ForSequenceClassification"):
        raise ModelError(f"model folder {path} holds {architecture(path) or 'no named architecture'}, no reward model")
    model = _read(AutoModelForSequenceClassification, path, dtype_of(precision))
    if model.config.num_labels != 1:
        raise ModelError(f"model folder {path} gives {model.config.num_labels} scores; a reward is one")
    return model.to(device()).eval()


def read_policy(path: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:  # noqa: ANN401 -- transformers'
    """The language model in `path`, on the CPU, as training wants it; `options` go to `from_pretrained`."""
    check_model(path)
    if architecture(path).endswith("ForSequenceClassification"):
        raise ModelError(f"model folder {path} holds {architecture(path)}, which gives scores; name a language model")
    return _read(AutoModelForCausalLM, path, dtype, **options)


def read_scorer(path: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:  # noqa: ANN401 -- transformers'
    """The model in `path` with a head that gives one score; the head is new where the folder has none."""
    check_model(path)
    return _read(AutoModelForSequenceClassification, path, dtype, may_be_new=("score.",), num_labels=1, **options)


def load_classifier(path: Path) -> PreTrainedModel:
    """The text classifier in `path`, whatever its labels, ready to score.

    Raises:
        ModelError: the folder is refused, or holds no classifier.
    """
    check_model(path)
    if not architecture(path).endswith("ForSequenceClassification"):
        raise ModelError(
            f"model folder {path} holds {architecture(path) or 'no named architecture'}, no text classifier"
        )
    return _read(AutoModelForSequenceClassification, path, torch.float32).to(device()).eval()


def _read(
    auto: type, path: Path, dtype: torch.dtype, may_be_new: tuple[str, ...] = (), **options: object
) -> PreTrainedModel:
    try:
        model, info = auto.from_pretrained(  # type: ignore[attr-defined]
            path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"model folder {path} cannot be loaded: {error}") from error
    # transformers fills missing weights with random numbers and only warns.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(may_be_new or "\0"))
    if missing:
        raise ModelError(f"model folder {path} lacks {len(missing)} weights ({', '.join(missing[:3])}); copy it whole")
    return model
