"""Clusters, close neighbours, the diverse share: on vectors, and on what the embedded model makes of sentences."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flywheel_trainer.data import diversity, embeddings
from flywheel_trainer.errors import ModelError


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def groups(count: int, each: int, seed: int = 0, noise: float = 0.02) -> NDArray[np.float32]:
    """`count` far groups of `each` near vectors, one after the other."""
    draw = np.random.default_rng(seed)
    middles = np.eye(count, 48, dtype=np.float32)
    return unit(np.repeat(middles, each, axis=0) + noise * draw.normal(size=(count * each, 48)).astype(np.float32))


def test_k_means_finds_the_groups_that_are_there() -> None:
    found = diversity.assign(groups(6, 40), 6, seed=3)
    assert [len(set(found[i : i + 40])) for i in range(0, 240, 40)] == [1] * 6
    assert len(set(found)) == 6


def test_close_neighbours_are_dropped_and_the_share_is_of_what_is_left() -> None:
    vectors = np.concatenate([groups(4, 30, noise=0.1), groups(4, 30, noise=0.1)])
    found = diversity.choose(vectors, similarity=0.999, keep_fraction=0.5, clusters=4, seed=0)
    assert found.near.tolist() == [False] * 120 + [True] * 120
    assert found.clusters == 4
    assert found.kept.sum() == 60
    assert not (found.kept & found.near).any()


def test_the_square_root_is_the_number_of_clusters_and_one_vector_is_enough() -> None:
    found = diversity.choose(groups(5, 20), similarity=1.0, keep_fraction=1.0, clusters=None, seed=0)
    assert found.kept.all()
    assert found.clusters <= 10
    assert diversity.choose(groups(1, 1), similarity=0.9, keep_fraction=0.1, clusters=8, seed=0).kept.tolist() == [True]


def test_the_farthest_are_kept_first() -> None:
    angles = np.deg2rad([0, 1, 2, 88, 89, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert diversity.spread(vectors, 0.5).tolist() == [0, 2, 5]
    assert diversity.spread(vectors, 1.0).tolist() == [0, 1, 2, 3, 4, 5]
    assert diversity.spread(vectors[:0], 0.5).tolist() == []


def test_large_clusters_are_taken_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "SLICE", 16)
    monkeypatch.setattr(diversity, "_BLOCK", 8)
    vectors = groups(1, 100, noise=0.5)
    assert len(diversity.spread(vectors, 0.25)) == 6 * 4 + 1
    both = np.concatenate([vectors, vectors])
    assert diversity.close(both, 0.999).tolist() == [False] * 100 + [True] * 100


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(0.2, 1.0), st.integers(0, 5))
def test_pruning_is_what_one_by_one_comparison_gives(count: int, similarity: float, seed: int) -> None:
    vectors = unit(np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32))
    kept: list[int] = []
    for row in range(count):
        if all(float(vectors[row] @ vectors[other]) < similarity - 1e-5 for other in kept):
            kept.append(row)
    assert np.flatnonzero(~diversity.close(vectors, similarity)).tolist() == kept


def test_vectors_in_a_file_give_what_vectors_in_memory_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = groups(8, 50, noise=0.1)
    monkeypatch.setattr(embeddings, "LARGE", 100)
    filed = embeddings.allocate(len(vectors), vectors.shape[1], tmp_path / "below" / "vectors.f16")
    assert isinstance(filed, np.memmap)
    filed[:] = vectors
    options = {"similarity": 0.99, "keep_fraction": 0.4, "clusters": 8, "seed": 1}
    assert diversity.choose(filed, **options).kept.sum() == diversity.choose(vectors, **options).kept.sum()
    assert (tmp_path / "below" / "vectors.f16").stat().st_size == 400 * 48 * 2


@pytest.fixture(scope="module")
def embedder() -> embeddings.Embedder:
    return embeddings.Embedder(embeddings.embedded_model())


def test_the_embedded_model_knows_what_means_the_same(embedder: embeddings.Embedder, tmp_path: Path) -> None:
    texts = [
        "How is the weather today?",
        "What's the weather like today?",
        "Tell me a story about pirates.",
        "",
        "?" * 9000,
    ]
    done: list[float] = []
    vectors = embedder.embed(texts, tmp_path / "scratch", progress=done.append)
    assert vectors.shape == (5, embedder.dimensions) == (5, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
    assert vectors[0] @ vectors[1] > 0.85
    assert vectors[0] @ vectors[2] < 0.4
    assert done == [1.0]
    assert not (tmp_path / "scratch").exists()


def test_of_a_long_text_the_end_counts(embedder: embeddings.Embedder, tmp_path: Path) -> None:
    end = "And what do you think of cats?"
    vectors = embedder.embed(
        [("We spoke of taxes. " * 500) + end, ("We sailed far. " * 500) + end, end], tmp_path / "s"
    )
    bare = embedder.embed(["We spoke of taxes. " * 500, "We sailed far. " * 500], tmp_path / "s")
    assert vectors[0] @ vectors[1] > bare[0] @ bare[1] + 0.05


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model's folder without its weights' content: only files are looked at."""
    target = tmp_path / "model"
    ignored = shutil.ignore_patterns("model.safetensors", "vocab.txt")
    shutil.copytree(embeddings.embedded_model(), target, ignore=ignored)
    (target / "model.safetensors").touch()
    return target


def modules(folder: Path, *parts: dict[str, str]) -> None:
    (folder / "modules.json").write_text(json.dumps(parts), encoding="utf-8")


def test_a_whole_folder_is_accepted_wherever_its_transformer_lies(folder: Path, tmp_path: Path) -> None:
    embeddings.check_embedder(folder)
    outer = tmp_path / "outer"
    outer.mkdir()
    folder.rename(outer / "0_Transformer")
    modules(outer, {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"})
    embeddings.check_embedder(outer)


def test_folders_that_run_code_or_lack_parts_are_refused(folder: Path) -> None:
    modules(folder, {"path": "", "type": "builtins.exec"})
    with pytest.raises(ModelError, match=r"names builtins\.exec, which is code of its own and never run; use sentence"):
        embeddings.check_embedder(folder)
    modules(folder, {"path": "../..", "type": "sentence_transformers.models.Transformer"})
    with pytest.raises(ModelError, match="lies outside of the model"):
        embeddings.check_embedder(folder)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").touch()
    own = "sentence_transformers.models."
    modules(folder, {"path": "", "type": own + "Transformer"}, {"path": "2_Dense", "type": own + "Dense"})
    with pytest.raises(ModelError, match="2_Dense has pickle weights only"):
        embeddings.check_embedder(folder)
    for text in ("{", "[1]", '[{"type": "x"}]'):
        (folder / "modules.json").write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match="is no list of modules"):
            embeddings.check_embedder(folder)
    (folder / "modules.json").unlink()
    with pytest.raises(ModelError, match=r"has no modules\.json; name a model that sentence-transformers saved"):
        embeddings.check_embedder(folder)


def test_damaged_weights_are_one_sentence(folder: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        embeddings.Embedder(folder)
