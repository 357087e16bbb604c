"""What goes onto the claim: the base model, preferences, and for each generation a slice of the traffic of its own.

It is made in a process of its own (`python -m e2e.demo.material`), so that neither torch nor its progress bars get in
the way of the live view.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.demo.errors import DemoError
from e2e.demo.manifests import GENERATIONS, REWARD_MODEL, load
from flywheel_trainer.data.files import DATA_FILE
from flywheel_trainer.data.split import held_out

Say = Callable[[str], None]

TRAFFIC = 1800
"""Conversations: two slices with more than 50 held-out users of each origin, which the default gates need."""
PREFERENCES = 440
"""Conversations to which the base model replies; about half of them make a pair."""

TENTHS = 10
SAYS, MADE = "says", "made"
"""Keys of the lines of JSON by which the process tells how far it is, and in the end what it made."""


@dataclass(frozen=True, slots=True)
class Material:
    """Place on the claim -> local folder, and in words where all of it comes from."""

    folders: dict[str, Path]
    rule: str


def prepare(say: Say, log: Path) -> Material:
    """Make everything, or find it in the cache. What the libraries print goes into `log`.

    Raises:
        DemoError: it could not be made; the end of the log says why.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] | None = None
    command = [sys.executable, "-m", "e2e.demo.material"]
    with log.open("w", encoding="utf-8") as errors:
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # as in the trainer's image
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process:
            for line in process.stdout or ():
                told = json.loads(line)
                made = told.get(MADE, made)
                if SAYS in told:
                    say(told[SAYS])
    if process.returncode or made is None:
        raise DemoError(f"preparing model and data failed ({log}): {log.read_text(encoding='utf-8').strip()[-600:]}")
    return Material({place: Path(folder) for place, folder in made["folders"].items()}, made["rule"])


def make(say: Say) -> Material:
    """As `prepare`, in this process."""
    from e2e.demo import data, preferences  # noqa: PLC0415 -- they bring torch

    told: set[str] = set()

    def report(message: str, share: float) -> None:
        text = f"{message}, {int(share * TENTHS) * TENTHS} %"
        if text not in told:
            told.add(text)
            say(text)

    made = data.prepare(data.Sizes(TRAFFIC, PREFERENCES), report=report)
    folders = {"models/base": made.model}
    for origin in data.ORIGINS:
        folders[f"data/preferences-{origin.lower()}"] = made.preferences[origin]
        for number, folder in enumerate(slices(made.traffic[origin], len(GENERATIONS)), start=1):
            folders[f"data/traffic-{number}-{origin.lower()}"] = folder
    return Material(
        folders, rule(made.facts, preferences.unfinished_accuracy(held_out_pairs(made.preferences.values())))
    )


def slices(folder: Path, count: int) -> list[Path]:
    """Deals the rows of a source to `count` folders beside it, in turn, so that no conversation is in two.

    People come back: a user may be in several. The hold-out goes by user, so who judges one generation trains none.
    """
    lines = (folder / DATA_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    found = []
    for number in range(count):
        target = folder.with_name(f"{folder.name}-slice-{number + 1}-of-{count}")
        text = "".join(lines[number::count])
        target.mkdir(exist_ok=True)
        if not (target / DATA_FILE).is_file() or (target / DATA_FILE).read_text(encoding="utf-8") != text:
            (target / DATA_FILE).write_text(text, encoding="utf-8")
        found.append(target)
    return found


def held_out_pairs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The pairs that measure the reward model."""
    fraction = load(REWARD_MODEL)["spec"]["training"]["holdoutFraction"]
    lines = [line for folder in folders for line in (folder / DATA_FILE).read_text(encoding="utf-8").splitlines()]
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [row for row in rows if held_out(row["user"], fraction)]


def rule(facts: dict[str, Any], unfinished: float) -> str:
    """How preferences and origins came about, and what they give away by their surface."""
    return (
        "The rule behind the preferences: chosen is what the human really replied, rejected what the base model said "
        f"to the same prefix, cut to a comparable length ({facts['pairs']} pairs; on all of them the better of "
        f'"longer wins" and "shorter wins" is right in {facts["lengthOnlyAccuracyCharacters"]:.0%}). '
        "Punctuation is not matched: many people end without a full stop, the model never does, and the rule "
        f'"no full stop at the end wins" alone is right in {unfinished:.0%} of the held-out pairs. '
        f"The data has one origin; of the users, 40 % by a hash of their id are called Internal "
        f"({facts['usersByOrigin']['Internal']} users), the others User ({facts['usersByOrigin']['User']} users), "
        "so a gap between the two is chance."
    )


def main() -> None:
    """Make it, and tell on standard output, a line of JSON at a time."""
    # Libraries write there too, at times only when their caches are empty; theirs goes where their errors go.
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(key: str, value: object) -> None:
        told.write(json.dumps({key: value}) + "\n")
        told.flush()

    made = make(lambda text: tell(SAYS, text))
    tell(MADE, {"folders": {place: str(folder) for place, folder in made.folders.items()}, "rule": made.rule})


if __name__ == "__main__":
    main()
