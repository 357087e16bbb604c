"""Near-duplicate pruning: MinHash over word shingles, looked up by locality-sensitive hashing.

Broder, "On the resemblance and containment of documents" (1997); the estimate's standard error is about
`sqrt(s (1 - s) / 128)`, 0.035 at a similarity of 0.8.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

SHINGLE_WORDS: Final = 3
PERMUTATIONS: Final = 128

Signature = NDArray[np.uint32]

FIRST_ROOM: Final = 1024
"""Signatures that there is room for at first; it grows by a quarter."""
_WORDS: Final = re.compile(r"\w+")


def shingles(text: str) -> set[bytes]:
    """The runs of three words in `text`, lower case; all words as one where there are fewer."""
    words = _WORDS.findall(text.lower())
    runs = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return {" ".join(words[i : i + SHINGLE_WORDS]).encode() for i in runs}


def near_duplicates(texts: Iterable[str], similarity: float) -> Iterator[bool]:
    """For each text in turn: whether an earlier one, itself kept, is at least so similar (estimated Jaccard)."""
    index = _Index(similarity)
    permutations = MinHash(num_perm=PERMUTATIONS).permutations  # drawn once: they are the same for every text
    for text in texts:
        sketch = MinHash(num_perm=PERMUTATIONS, permutations=permutations)
        sketch.update_batch(sorted(shingles(text)))
        signature = sketch.hashvalues.astype(np.uint32)
        bands = index.bands(signature)
        near = index.has_near(signature, bands)
        yield near
        if not near:
            index.insert(signature, bands)


class _Index:
    """Kept signatures by their bands: two that are similar share a band very likely.

    It holds about 2 kB for each; datasketch's own index, made for many operations more, holds 6.
    """

    def __init__(self, similarity: float) -> None:
        lsh = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
        self._similarity, self._bands, self._width = similarity, lsh.b, lsh.r
        self._latest: list[dict[int, int]] = [{} for _ in range(lsh.b)]
        """Of each band: hash -> the last signature that has it."""
        self._before = [array("q") for _ in range(lsh.b)]
        """Of each band: signature -> the one before it of the same hash, or -1."""
        self._kept = np.empty((FIRST_ROOM, PERMUTATIONS), dtype=np.uint32)
        self._count = 0

    def bands(self, signature: Signature) -> list[int]:
        """The hashes of a signature's bands."""
        return [hash(signature[i * self._width : (i + 1) * self._width].tobytes()) for i in range(self._bands)]

    def has_near(self, signature: Signature, bands: list[int]) -> bool:
        """Whether a kept signature that shares a band is similar enough."""
        candidates: set[int] = set()
        for latest, before, band in zip(self._latest, self._before, bands, strict=True):
            number = latest.get(band, -1)
            while number >= 0:
                candidates.add(number)
                number = before[number]
        if not candidates:
            return False
        equal = self._kept[sorted(candidates)] == signature
        return bool((equal.mean(axis=1) >= self._similarity).any())

    def insert(self, signature: Signature, bands: list[int]) -> None:
        """Keeps a signature."""
        if self._count == len(self._kept):
            self._kept = np.concatenate([self._kept, np.empty_like(self._kept[: max(FIRST_ROOM, self._count // 4)])])
        self._kept[self._count] = signature
        for latest, before, band in zip(self._latest, self._before, bands, strict=True):
            before.append(latest.get(band, -1))
            latest[band] = self._count
        self._count += 1
