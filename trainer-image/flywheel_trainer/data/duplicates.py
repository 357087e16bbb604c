"""Near-duplicate pruning: MinHash over word shingles, looked up by locality-sensitive hashing.

Broder, "On the resemblance and containment of documents" (1997); the estimate's standard error is about
`sqrt(s (1 - s) / 128)`, 0.035 at a similarity of 0.8.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from datasketch import MinHash, MinHashLSH

SHINGLE_WORDS: Final = 3
PERMUTATIONS: Final = 128

_WORDS: Final = re.compile(r"\w+")


def shingles(text: str) -> set[bytes]:
    """The runs of three words in `text`, lower case; all words as one where there are fewer."""
    words = _WORDS.findall(text.lower())
    runs = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return {" ".join(words[i : i + SHINGLE_WORDS]).encode() for i in runs}


def near_duplicates(texts: Iterable[str], similarity: float) -> Iterator[bool]:
    """For each text in turn: whether an earlier one, itself kept, is at least so similar (estimated Jaccard)."""
    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
    kept: dict[int, MinHash] = {}
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch(sorted(shingles(text)))
        if any(kept[other].jaccard(sketch) >= similarity for other in index.query(sketch)):
            yield True
            continue
        kept[number] = sketch
        index.insert(number, sketch)
        yield False
