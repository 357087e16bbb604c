"""Names that would break Python itself."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python_files() -> list[Path]:
    found = []
    for folder, names, files in os.walk(ROOT):
        # Virtual environments and caches of whoever works here begin with a dot.
        names[:] = [n for n in names if not n.startswith((".", "__pycache__")) and n != "site-packages"]
        found += [Path(folder, f).relative_to(ROOT) for f in files if f.endswith(".py")]
    return sorted(found)


def test_the_folder_operator_is_no_package_and_holds_no_tests() -> None:
    """As a package, or collected from in importlib mode, it would replace the standard library's `operator`."""
    folder = ROOT / "operator"
    assert not (folder / "__init__.py").exists()
    strange = [p for p in folder.rglob("*.py") if p.name == "conftest.py" or p.name.startswith("test_")]
    assert strange == []


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    offenders = [str(p) for p in python_files() if p.stem != "__main__" and p.stem in sys.stdlib_module_names]
    assert python_files()
    assert offenders == []


def test_no_package_is_named_like_one_of_the_standard_library() -> None:
    packages = {p.parent for p in python_files() if p.name == "__init__.py"}
    assert [str(p) for p in sorted(packages) if p.name in sys.stdlib_module_names] == []
