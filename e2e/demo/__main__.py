"""The command line: `python -m e2e.demo up|down`."""

import argparse
import sys

from rich.console import Console

from e2e.demo import flow


def main(arguments: list[str]) -> int:
    """Run one command and answer its exit code."""
    parser = argparse.ArgumentParser(prog="python -m e2e.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="run the demo; goes on where an earlier run was")
    commands.add_parser("down", help="remove what it made")
    chosen = parser.parse_args(arguments)
    console = Console()
    return flow.up(console) if chosen.command == "up" else flow.down(console)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
