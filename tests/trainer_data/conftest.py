import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: on a shared machine more threads than cores make each step slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import set_seed

from e2e import tiny_model
from flywheel_trainer.models import load_tokenizer, read_scorer
from tests.trainer_data.workbench import Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """A claim without any model, for the stages that need none."""
    return _opened(tmp_path)


@pytest.fixture(scope="session")
def model_bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A claim with two tiny policies (`one`, `other`) and a reward model (`judge`) whose weights are random."""
    place = _opened(tmp_path_factory.mktemp("claims"))
    tiny_model.build(place.claim / "models" / "one", seed=0)
    tiny_model.build(place.claim / "models" / "other", seed=1)
    _judge(place.claim / "models" / "one", place.claim / "models" / "judge")
    return place


def _opened(root: Path) -> Workbench:
    (root / "lab").mkdir()
    return Workbench(root)


def _judge(base: Path, folder: Path) -> None:
    set_seed(5)
    model = read_scorer(base, torch.float32)
    torch.nn.init.normal_(model.score.weight)
    tokenizer = load_tokenizer(base)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
