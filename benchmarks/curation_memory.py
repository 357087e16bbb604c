"""Peak memory and time of curation's diversity step, at 10,000, 100,000 and 1,000,000 prompts.

Each size runs in a process of its own, so that the peak (the kernel's ru_maxrss; pages of the vectors' file that are
mapped count) is its own. `--embed FOLDER` embeds so many real utterances with the shipped model, of the package
chitchat-dataset that is installed there (`pip install --target FOLDER chitchat-dataset`); without it the vectors are
synthetic: around 500 middles of unequal weight, a tenth of them copies. `--rows` also builds that many Conversation
rows first, as the stage holds them while it embeds. `nearExact`, up to 20,000: neighbours that a comparison of all
with all finds, where clusters found `near`.
Prints one line of JSON per size. Run it: python -m benchmarks.curation_memory
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from e2e.demo import chitchat
from flywheel_contract.params import DiversityParams
from flywheel_trainer.data import diversity, embeddings
from flywheel_trainer.data.rows import Conversation

SIZES = (10_000, 100_000, 1_000_000)
DIMENSIONS = 384
EXACT = 20_000
_CHUNK = 16_384
_COPIES = 0.1


def synthetic(count: int, scratch: Path, seed: int = 0) -> embeddings.Vectors:
    """Vectors of length 1 around 500 middles, the n-th of them 1/n as frequent as the first."""
    draw = np.random.default_rng(seed)
    middles = draw.normal(size=(500, DIMENSIONS)).astype(np.float32)
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    weights = 1 / np.arange(1, 501)
    vectors = embeddings.allocate(count, DIMENSIONS, scratch)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        near = middles[draw.choice(500, size=size, p=weights / weights.sum())]
        rows = near + (0.7 / DIMENSIONS**0.5) * draw.standard_normal((size, DIMENSIONS), dtype=np.float32)
        copies = draw.random(size) < _COPIES
        rows[copies] = rows[draw.integers(0, size, copies.sum())]
        vectors[start : start + size] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors


def real(count: int, packages: Path, scratch: Path) -> embeddings.Vectors:
    """The first `count` utterances of the chit-chat data set, embedded."""
    raw = json.loads((packages / chitchat.DATASET).read_text(encoding="utf-8"))
    texts = [m["text"] for c in raw.values() for group in c["messages"] for m in group if m["text"].strip()]
    return embeddings.Embedder(embeddings.embedded_model()).embed(texts[:count], scratch)


def rows(count: int) -> list[Conversation]:
    """Conversations of two messages, 120 characters together, every text another one."""
    return [
        Conversation.model_validate(
            {
                "conversation": f"c-{n}", "user": f"{n:064x}", "origin": "User", "character": "luna",
                "time": "2026-05-01T10:00:00Z",
                "messages": [
                    {"role": "user", "content": f"{n} tell me of this and that, and of the sea".ljust(60)},
                    {"role": "assistant", "content": f"{n} oh, the sea, that is a long story".ljust(60)},
                ],
            }
        )
        for n in range(count)
    ]  # fmt: skip


def measure(count: int, packages: Path | None, with_rows: bool) -> None:
    """One size, in this process; prints its line."""
    params = DiversityParams(keep_fraction=0.7)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        held = rows(count) if with_rows else []
        after_rows = _peak()
        scratch = Path(folder) / "vectors"
        vectors = real(count, packages, scratch) if packages else synthetic(count, scratch)
        ready, before = time.perf_counter(), _peak()
        found = diversity.choose(
            vectors, similarity=params.similarity, keep_fraction=params.keep_fraction, clusters=None, seed=0
        )
        line = {
            "prompts": len(vectors),
            "vectors": "MiniLM" if packages else "synthetic",
            "type": str(vectors.dtype),
            "rows": len(held),
            "clusters": found.clusters,
            "largestCluster": int(np.bincount(found.cluster).max()),
            "near": int(found.near.sum()),
            "kept": int(found.kept.sum()),
            "secondsToVectors": round(ready - start, 1),
            "secondsToChoose": round(time.perf_counter() - ready, 1),
            "peakMiBOfRows": round(after_rows),
            "peakMiBOfVectors": round(before),
            "peakMiB": round(_peak()),
        }
        if count <= EXACT:
            line["nearExact"] = int(diversity.close(np.asarray(vectors, np.float32), params.similarity).sum())
    print(json.dumps(line), flush=True)


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--embed", type=Path, metavar="FOLDER", help="embed utterances of the package installed there")
    parser.add_argument("--rows", action="store_true", help="hold as many Conversation rows meanwhile")
    parsed = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for size in parsed.sizes:
        process = spawn.Process(target=measure, args=(size, parsed.embed, parsed.rows))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
