"""The command line: `python -m e2e.cluster up|down|status|kubeconfig|tools --name NAME`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from e2e.cluster import Cluster, ClusterError


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code: 0, 1 when something failed, 2 when this machine cannot."""
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    parser.add_argument("--name", default="flywheel", help="which cluster (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("up", "bring it up, or mend it; prints the kubeconfig's path"),
        ("down", "remove it with everything it keeps"),
        ("status", "tell how each part is, as JSON"),
        ("kubeconfig", "print the kubeconfig's path"),
        ("tools", "print the paths of kubectl and helm (built if need be)"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument("--name", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    load = commands.add_parser("load", help="load image archives into it")
    load.add_argument("--name", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    load.add_argument("archives", nargs="+", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        _run(Cluster(chosen.name), chosen)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _run(cluster: Cluster, chosen: argparse.Namespace) -> None:
    match chosen.command:
        case "up":
            cluster.up()
            print(cluster.kubeconfig)
        case "down":
            cluster.down()
        case "status":
            print(json.dumps(cluster.status(), indent=2))
        case "kubeconfig":
            print(cluster.kubeconfig)
        case "tools":
            print(f"kubectl {cluster.tools.kubectl}\nhelm {cluster.tools.helm}")
        case "load":
            for archive in chosen.archives:
                cluster.load_archive(archive)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
