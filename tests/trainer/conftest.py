"""The tiny model, and claims to run stages in."""

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: on a shared machine more threads than cores make each step slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from e2e import tiny_data, tiny_model
from tests.trainer.workshop import Json, Workshop


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder; do not write into it."""
    return tiny_model.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """An empty claim of its own."""
    (tmp_path / "lab").mkdir()
    return Workshop(tmp_path)


@pytest.fixture
def inputs(workshop: Workshop, tiny: Path) -> list[Json]:
    """What sft needs, resolved: a tiny model and a hundred chats."""
    return [
        workshop.input("policy", workshop.add_model(tiny, "base")),
        workshop.input("prompts", workshop.add_data("traffic", tiny_data.traffic(100))),
    ]
