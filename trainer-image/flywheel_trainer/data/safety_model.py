"""A Hugging Face text classifier as a safety classifier: its labels, less those that mean safe, are the categories."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from transformers import AutoTokenizer

from flywheel_safety.classifier import BrokenAnswerError, Classifier, Scores
from flywheel_trainer.errors import ConfigError, ModelError
from flywheel_trainer.model_files import architecture
from flywheel_trainer.models import device, load_classifier

_BATCH: Final = 32
_LONGEST: Final = 512
"""Tokens that are scored at once where the model does not say how many it takes."""
_STRIDE: Final = 32
"""Tokens that two parts of a long text share."""


class TextClassifier(Classifier):
    """Scores a text in parts of the model's length; the worst part counts."""

    def __init__(self, folder: Path, safe_labels: Sequence[str]) -> None:
        """Loads the model onto this process's device.

        Raises:
            ModelError: the folder is refused, or holds no text classifier.
            ConfigError: none of the labels means safe, and the model chooses one of them: everything would be unsafe.
        """
        self._model = load_classifier(folder)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"model folder {folder}: the tokenizer cannot be loaded: {error}") from error
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.unk_token
        config = self._model.config
        config.pad_token_id = self._tokenizer.pad_token_id
        self._labels = [str(config.id2label[index]) for index in range(config.num_labels)]
        self._several = config.problem_type == "multi_label_classification" or config.num_labels == 1
        safe = {label.casefold() for label in safe_labels}
        self._harmful = [index for index, label in enumerate(self._labels) if label.casefold() not in safe]
        if not self._harmful or (len(self._harmful) == len(self._labels) and not self._several):
            raise ConfigError(
                f"curation.safety.safeLabels: the model's labels are {', '.join(self._labels)}; "
                "name those that mean safe, not all and not none"
            )
        room = getattr(config, "max_position_embeddings", None) or _LONGEST
        self._longest = min(_LONGEST, room, self._tokenizer.model_max_length)
        self._name = f"{folder.name}/{architecture(folder)}"

    @property
    def name(self) -> str:
        """The folder and the kind of model in it."""
        return self._name

    def score(self, texts: Sequence[str]) -> list[Scores]:
        """One probability per harmful label and text: softmax where the model chooses one label, else sigmoid."""
        found: list[dict[str, float]] = [dict.fromkeys(self._categories(), 0.0) for _ in texts]
        parts = [(number, ids) for number, text in enumerate(texts) for ids in self._parts(text)]
        # Of like lengths together: padding costs as much as text. The order of the answers does not change.
        parts.sort(key=lambda part: len(part[1]))
        for start in range(0, len(parts), _BATCH):
            batch = parts[start : start + _BATCH]
            probabilities = self._probabilities([ids for _, ids in batch])
            if not bool(torch.isfinite(probabilities).all()):
                raise BrokenAnswerError(f"the safety model {self.name} scored a text with NaN")
            for (number, _), row in zip(batch, probabilities.tolist(), strict=True):
                for index in self._harmful:
                    label = self._labels[index]
                    found[number][label] = max(found[number][label], row[index])
        return list(found)

    def _categories(self) -> Iterator[str]:
        return (self._labels[index] for index in self._harmful)

    def _parts(self, text: str) -> list[list[int]]:
        if not text.strip():
            return []
        ids = self._tokenizer(
            text,
            truncation=True,
            max_length=self._longest,
            stride=min(_STRIDE, self._longest // 4),
            return_overflowing_tokens=True,
        )["input_ids"]
        return [part for part in ids if part]

    def _probabilities(self, ids: list[list[int]]) -> torch.Tensor:
        batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device())
        with torch.inference_mode():
            logits = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        return logits.sigmoid() if self._several else logits.softmax(dim=-1)
