"""Diversity by meaning: k-means over embeddings, close neighbours pruned within a cluster, then a diverse share kept.

Pruning within clusters is that of SemDeDup (Abbas et al., 2023, arXiv:2303.09540): neighbours that fall into
different clusters are not seen. The share is chosen by farthest-first traversal (Gonzalez, "Clustering to minimize the
maximum intercluster distance", 1985), which starts at the cluster's middle. Everything is deterministic for a seed.

Vectors are rows of length 1. They may lie in a file: only a sample, one batch or one cluster's part is in memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from flywheel_trainer.data.embeddings import Vectors

SAMPLE_PER_CLUSTER: Final = 64
"""Vectors that k-means sees for each cluster; more move the centres little (FAISS warns below 39)."""
ITERATIONS: Final = 15
BATCH: Final = 16_384
"""Vectors given a cluster at a time."""
SLICE: Final = 4096
"""Members of a cluster that are compared with one another at a time when the diverse share is chosen."""
_BLOCK: Final = 1024
_ROUNDING: Final = 1e-5
"""Equal vectors have a cosine of 1 less this at most, in single precision."""


@dataclass(frozen=True, slots=True)
class Diverse:
    """What is kept of the vectors, and why the others are not: one entry per vector in each array."""

    kept: NDArray[np.bool_]
    near: NDArray[np.bool_]
    """Too close to an earlier one of its cluster."""
    cluster: NDArray[np.int32]
    clusters: int
    """Clusters that hold at least one vector."""


def choose(vectors: Vectors, *, similarity: float, keep_fraction: float, clusters: int | None, seed: int) -> Diverse:
    """Which vectors are kept. Those in `near` are closer than `similarity` to one that was kept at that point; of each
    cluster's others `keep_fraction`, rounded up, are.

    Args:
        vectors: n rows of length 1.
        similarity: cosine from which two are the same.
        keep_fraction: share of a cluster's members that are left.
        clusters: how many; None: the square root of n.
        seed: of k-means.
    """
    count = len(vectors)
    near = np.zeros(count, dtype=np.bool_)
    kept = np.zeros(count, dtype=np.bool_)
    cluster = assign(vectors, min(clusters or round(math.sqrt(count)), count), seed)
    used = 0
    for members in _members(cluster):
        used += 1
        own = _rows(vectors, members)
        repeated = close(own, similarity)
        near[members[repeated]] = True
        left = members[~repeated]
        kept[left if keep_fraction >= 1 else left[spread(own[~repeated], keep_fraction)]] = True
    return Diverse(kept=kept, near=near, cluster=cluster, clusters=used)


def assign(vectors: Vectors, clusters: int, seed: int) -> NDArray[np.int32]:
    """The cluster of each vector: k-means on the sphere, fitted to a sample, then the nearest centre for all."""
    count, width = vectors.shape
    if clusters <= 1:
        return np.zeros(count, dtype=np.int32)
    drawn = np.random.default_rng(seed).permutation(count)[: clusters * SAMPLE_PER_CLUSTER]
    kmeans = faiss.Kmeans(
        width, clusters, niter=ITERATIONS, seed=seed, spherical=True, min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE_PER_CLUSTER,
    )  # fmt: skip
    kmeans.train(_rows(vectors, np.sort(drawn)))
    found = np.empty(count, dtype=np.int32)
    for start in range(0, count, BATCH):
        batch = _rows(vectors, slice(start, start + BATCH))
        found[start : start + len(batch)] = kmeans.index.search(batch, 1)[1][:, 0]
    return found


def close(vectors: NDArray[np.float32], similarity: float) -> NDArray[np.bool_]:
    """For each row in turn: whether an earlier one, itself not close, is at least so similar."""
    bound = similarity - _ROUNDING
    repeated = np.zeros(len(vectors), dtype=np.bool_)
    kept = np.empty((0, vectors.shape[1]), dtype=np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        out = repeated[start : start + len(block)]
        for first in range(0, len(kept), SLICE):
            out |= (block @ kept[first : first + SLICE].T).max(axis=1) >= bound
        among = block @ block.T >= bound
        for row in range(1, len(block)):
            if not out[row]:
                out[row] = bool((among[row, :row] & ~out[:row]).any())
        kept = np.concatenate([kept, block[~out]])
    return repeated


def spread(vectors: NDArray[np.float32], fraction: float) -> NDArray[np.intp]:
    """The numbers of `fraction` of the rows, rounded up, each the farthest from those before it.

    Rows are compared in slices of SLICE, in their order, so that a cluster of any size takes bounded memory and time.
    """
    chosen = []
    for start in range(0, len(vectors), SLICE):
        part = vectors[start : start + SLICE]
        chosen.append(start + _farthest_first(part, math.ceil(round(fraction * len(part), 6))))
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.intp)


def _farthest_first(vectors: NDArray[np.float32], wanted: int) -> NDArray[np.intp]:
    order = np.empty(wanted, dtype=np.intp)
    order[0] = int(np.argmax(vectors @ vectors.mean(axis=0)))
    nearest = vectors @ vectors[order[0]]
    for number in range(1, wanted):
        nearest[order[number - 1]] = np.inf  # one that is chosen is never the farthest
        order[number] = int(np.argmin(nearest))
        np.maximum(nearest, vectors @ vectors[order[number]], out=nearest)
    return order


def _members(cluster: NDArray[np.int32]) -> Iterator[NDArray[np.intp]]:
    """The row numbers of each cluster that has any, in their order."""
    order = np.argsort(cluster, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1)


def _rows(vectors: Vectors, numbers: NDArray[np.intp] | slice) -> NDArray[np.float32]:
    """The rows as float32; where they lie as float16 their length is made 1 again."""
    rows = np.ascontiguousarray(vectors[numbers], dtype=np.float32)
    if vectors.dtype == np.float16:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return rows
