"""docs/transitions.md from the tables of `phases`: `python -m flywheel_operator.model.transitions_doc FILE`."""

import argparse
import sys
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from flywheel_operator.model import phases

PhaseT = TypeVar("PhaseT", bound=StrEnum)

INTRODUCTION = """\
<!-- Generated from operator/flywheel_operator/model/phases.py by `make regen`; do not edit. -->
# Phases and transitions

`status.phase` says where an object is in its life. What came out of a Generation stands beside it in `status.verdict`,
and what serves now in the condition `Serving`; a rollback changes only the latter.

A phase that ends a life is never left by itself. From every other one, each look may find the object in any of the
phases of its row: a stage whose result lies in the artefact store already ends between two looks, so phases may be
skipped. The planner's property test (tests/unit/test_simulation.py) holds every status that is written against these
tables.
"""

RERUN = """\
The annotation `characterflywheel.dev/rerun-from` leads from any phase behind the snapshot, the ends included, to one of
{phases}; not from `Testing`, and not once the Generation has served.
"""


def table(meaning: Mapping[PhaseT, str], transitions: Mapping[PhaseT, Collection[PhaseT]]) -> str:
    """The Markdown table of one kind: each phase, what it means, and which phases may follow."""
    lines = ["| phase | what it means | may become |", "|---|---|---|"]
    for phase, sentence in meaning.items():
        # In the order of the enumeration: sets have none.
        following = [f"`{p.value}`" for p in meaning if p in transitions[phase] and p is not phase]
        lines.append(f"| `{phase.value}` | {sentence} | {', '.join(following) or 'nothing: it is the end'} |")
    return "\n".join(lines) + "\n"


def document() -> str:
    """The whole file."""
    generation = table(phases.MEANING, phases.TRANSITIONS)
    reward_model = table(phases.REWARD_MODEL_MEANING, phases.REWARD_MODEL_TRANSITIONS)
    abtest = table(phases.ABTEST_MEANING, phases.ABTEST_TRANSITIONS)
    again = [f"`{p.value}`" for p in phases.Phase if p in phases.RERUN]
    rerun = RERUN.format(phases=", ".join(again))
    kinds = {"Generation": f"{generation}\n{rerun}", "RewardModel": reward_model, "ABTest": abtest}
    return "\n".join([INTRODUCTION, *(f"## {kind}\n\n{text}" for kind, text in kinds.items())])


def main(arguments: list[str]) -> int:
    """Writes the file, or with --check says whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the file differs")
    given = parser.parse_args(arguments)
    if given.file.exists() and given.file.read_text() == document():
        return 0
    if given.check:
        print(f"{given.file} does not match the tables: run make regen", file=sys.stderr)
        return 1
    given.file.parent.mkdir(parents=True, exist_ok=True)
    given.file.write_text(document())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
