"""The JSON schema of the report, from the contract: `python -m flywheel_analysis.schema FILE [--check]`."""

import argparse
import json
import sys
from pathlib import Path

from flywheel_contract.experiment import AnalysisReport


def text() -> str:
    """The schema as it stands in the file; fields with a default are always written, but for None."""
    return json.dumps(AnalysisReport.model_json_schema(by_alias=True), indent=2) + "\n"


def main(given: list[str]) -> int:
    """Writes the file, or with --check says whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the file differs")
    arguments = parser.parse_args(given)
    if arguments.file.exists() and arguments.file.read_text() == text():
        return 0
    if arguments.check:
        print(f"{arguments.file} does not match the contract: run make regen", file=sys.stderr)
        return 1
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    arguments.file.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
