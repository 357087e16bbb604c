"""Diversity over the conversations of a stage: embeds what was said, origin by origin, and says which are kept."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from flywheel_contract.curation_params import DiversityParams
from flywheel_contract.stages import Origin
from flywheel_trainer.data import diversity
from flywheel_trainer.data.embeddings import Embedder
from flywheel_trainer.data.executors import Executor
from flywheel_trainer.data.rows import Conversation, prompt_text


def diverse(
    rows: Sequence[Conversation],
    params: DiversityParams,
    embedder: Embedder,
    *,
    seed: int,
    scratch: Path,
    executor: Executor,
    say: Callable[[str], None],
) -> tuple[set[int], dict[str, int]]:
    """The numbers of the rows that are kept, and counts of clusters and pruned neighbours by origin.

    Each origin is taken by itself: what is near in one must not push out the other. Many vectors lie in the file
    `scratch`; `say` is told how far the work is.
    """
    kept: set[int] = set()
    counts: dict[str, int] = {}
    for origin in Origin:
        numbers = np.array([n for n, row in enumerate(rows) if row.origin is origin], dtype=np.intp)
        if not len(numbers):
            continue
        vectors = embedder.embed(
            [prompt_text(rows[n]) for n in numbers],
            scratch,
            executor,
            lambda share, own=origin: say(f"embedding prompts of {own.value}: {share:.0%}"),
        )
        say(f"comparing prompts of {origin.value}")
        found = diversity.choose(
            vectors,
            similarity=params.similarity,
            keep_fraction=params.keep_fraction,
            clusters=params.clusters,
            seed=seed,
        )
        kept.update(numbers[found.kept].tolist())
        counts[f"diversityClusters{origin.value}"] = found.clusters
        counts[f"diversityNeighbours{origin.value}"] = int(found.near.sum())
    return kept, counts
