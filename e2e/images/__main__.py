"""The command line: `python -m e2e.images build|load|list|clean [IMAGE ...]`."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

from e2e.cluster import ClusterError
from e2e.cluster.layout import cache_home
from e2e.cluster.toolchain import say_to_stderr
from e2e.images import builders, recipes, targets


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code: 0, 1 when something failed, 2 when this machine cannot."""
    parser = argparse.ArgumentParser(prog="python -m e2e.images", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the images with the tag that their content has now")
    commands.add_parser("clean", help="remove every built image and the layers kept for loading")
    build = commands.add_parser("build", help="build what changed; prints the full names")
    load = commands.add_parser("load", help="build and bring into the cluster NAME (or CONTEXT's); prints the names")
    load.add_argument("--name", default="flywheel", help="which cluster (default: %(default)s)")
    for command in (build, load):
        command.add_argument("images", nargs="*", metavar="IMAGE", help="default: all")
    chosen = parser.parse_args(arguments)
    try:
        _run(chosen)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _run(chosen: argparse.Namespace) -> None:
    match chosen.command:
        case "list":
            print("\n".join(recipes.find()))
        case "clean":
            _clean()
        case "build":
            builder = builders.choose(say_to_stderr)
            for recipe in _wanted(chosen.images):
                print(builder.build(recipe))
        case "load":
            target = targets.choose(chosen.name, os.environ)
            target.up()
            print("\n".join(target.images([recipe.name for recipe in _wanted(chosen.images)]).values()))


def _wanted(names: list[str]) -> list[recipes.Recipe]:
    found = recipes.find()
    for name in names:
        if name not in found:
            raise ClusterError(f"there is no image {name}; there are: {', '.join(found) or 'none'}")
    return [found[name] for name in names or found]


def _clean() -> None:
    home = cache_home(os.environ)
    # buildah leaves the overlay's own folder mounted.
    subprocess.run(["umount", "--lazy", str(home / "images" / "storage" / "overlay")], capture_output=True, check=False)
    for folder in ("images", "registry"):
        shutil.rmtree(home / folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
