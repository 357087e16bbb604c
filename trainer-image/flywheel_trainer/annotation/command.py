"""`flywheel-trainer annotate export | import`: tasks for annotators, and back to the rows that the stages read."""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from flywheel_contract.characters import Character
from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.pairs import AgreementParams
from flywheel_contract.stages import Origin
from flywheel_trainer.annotation import identifiers, label_studio, outcomes, side_by_side, sources
from flywheel_trainer.annotation.formats import Item, Kind, Label, dumped, read
from flywheel_trainer.annotation.hashing import read_key
from flywheel_trainer.artifacts import Store
from flywheel_trainer.data.files import DATA_FILE, write_rows
from flywheel_trainer.data.rows import explained
from flywheel_trainer.errors import ConfigError, StageError
from flywheel_trainer.usage import Parser

TASKS: Final = "tasks.json"
CONFIGURATION: Final = "labelling.xml"
ITEMS: Final = "items.jsonl"
REPORT: Final = "_report.json"
_PRIVACY: Final = "spec.curation.privacy as JSON: what counts as an identifier; such texts are left out"


def main(arguments: Sequence[str]) -> int:
    """Runs the command and answers the exit code; what was wrong with the input is one sentence on stderr."""
    parsed = _parser().parse_args(arguments)
    try:
        summary = parsed.run(parsed)
    except StageError as error:
        print(f"flywheel-trainer annotate: {error}", file=sys.stderr)
        return int(error.exit_code)
    print(json.dumps(summary, indent=2, ensure_ascii=False))
    return int(ExitCode.DONE)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="flywheel-trainer annotate", description=__doc__)
    commands = parser.add_subparsers(required=True)
    out = commands.add_parser("export", help="write Label Studio tasks")
    out.add_argument("--kind", type=Kind, choices=list(Kind), required=True, metavar="|".join(Kind))
    out.add_argument("--input", required=True, help="rows of a stage: a file or folder, by path or URI (pvc://, s3://)")
    out.add_argument("--output", type=Path, required=True, help="folder for tasks, configuration and items")
    out.add_argument("--key-file", type=Path, required=True, help="at least 16 random bytes; hashes ids, blinds orders")
    out.add_argument("--characters", type=Path, help="spec.characters as JSON: description and rules are shown")
    out.add_argument("--origin", type=Origin, choices=list(Origin), metavar="|".join(Origin), help="of the rows")
    out.add_argument("--max-items", type=_positive, help="at most so many, drawn by the key")
    out.add_argument("--privacy", type=Path, help=_PRIVACY)
    out.set_defaults(run=_export)
    back = commands.add_parser("import", help="read annotations back")
    given = back.add_mutually_exclusive_group(required=True)
    given.add_argument("--export", type=Path, help="Label Studio's JSON export; needs --items and --key-file")
    given.add_argument("--labels", type=Path, help="labels of another tool, as docs/annotation.md describes them")
    back.add_argument("--items", type=Path, help=f"{ITEMS} of the export")
    back.add_argument("--key-file", type=Path, help="the key of the export")
    back.add_argument("--output", type=Path, required=True, help="folder for the rows")
    back.add_argument("--min-reviews", type=int, default=2, help="reviews that agreement needs (default: %(default)s)")
    back.add_argument("--min-share", type=float, default=1.0, help="share that must agree (default: %(default)s)")
    back.add_argument("--privacy", type=Path, help=_PRIVACY)
    back.set_defaults(run=_import)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _export(parsed: argparse.Namespace) -> dict[str, Any]:
    characters = _characters(parsed.characters)
    blinding = read_key(parsed.key_file)
    private = identifiers.finder(parsed.privacy, [character.name for character in characters])
    found, counts = sources.items(
        _local(parsed.input), parsed.kind, parsed.origin, blinding, private, datetime.now(UTC)
    )
    drawn = sources.draw(found, parsed.max_items)
    tasks = label_studio.tasks(drawn, characters)
    parsed.output.mkdir(parents=True, exist_ok=True)
    _write(parsed.output / TASKS, tasks)
    configuration = label_studio.configuration(parsed.kind, len(drawn[0].replies))
    (parsed.output / CONFIGURATION).write_text(configuration, encoding="utf-8")
    write_rows(parsed.output / ITEMS, dumped(drawn))
    return {"items": len(drawn), "counts": counts, "forAnnotators": [TASKS, CONFIGURATION], "keepPrivate": [ITEMS]}


def _import(parsed: argparse.Namespace) -> dict[str, Any]:
    params = _agreement(parsed)
    counts: dict[str, int] = {}
    if parsed.export is not None:
        if parsed.items is None or parsed.key_file is None:
            raise ConfigError("--export needs --items and --key-file, both as they were at the export")
        blinding = read_key(parsed.key_file)
        labels, counts = label_studio.labels(parsed.export, read(parsed.items, Item, "items"), blinding)
    else:
        labels = read(parsed.labels, Label, "labels")
    labels, private = identifiers.without_identifiers(labels, identifiers.finder(parsed.privacy))
    found = outcomes.outcome(labels, params)
    for name, rows in (
        ("preferences", found.preferences),
        ("rewrites", found.rewrites),
        ("tool-calls", found.tool_calls),
        ("tool-preferences", found.tool_preferences),
    ):
        if rows:
            write_rows(parsed.output / name / DATA_FILE, rows)
    write_rows(parsed.output / "labels" / DATA_FILE, dumped(labels))
    report: dict[str, Any] = {
        "agreement": params.to_json(),
        "counts": {**counts, **private, **found.counts},
        "itemsByOrigin": outcomes.by_origin(labels),
        "questions": outcomes.questions(labels),
    }
    compared = [label for label in labels if label.kind is Kind.SIDE_BY_SIDE]
    if compared:
        report["sideBySide"] = side_by_side.report(compared, params)
    _write(parsed.output / REPORT, report)
    return report


def _local(text: str) -> Path:
    """A path as it is, a URI as the stages read it: from the mounted claim, or fetched."""
    return Store().local(text) if "://" in text else Path(text)


def _agreement(parsed: argparse.Namespace) -> AgreementParams:
    try:
        return AgreementParams(min_reviews=parsed.min_reviews, min_share=parsed.min_share)
    except ValidationError as error:
        raise ConfigError(f"--min-reviews, --min-share: {explained(error)}") from error


def _characters(path: Path | None) -> list[Character]:
    if path is None:
        return []
    try:
        return TypeAdapter(list[Character]).validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--characters {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"--characters {path}: {explained(error)}; write spec.characters as a JSON list") from error


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
