"""Names that would break Python itself."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SKIPPED = {".venv", ".git", "node_modules", "__pycache__"}


def python_files() -> list[Path]:
    found = []
    for path in sorted(ROOT.glob("*/**/*.py")):
        relative = path.relative_to(ROOT)
        # Virtual environments and caches of whoever works here begin with a dot.
        if not any(part in SKIPPED or part.startswith(".") or part == "site-packages" for part in relative.parts):
            found.append(relative)
    return found


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
