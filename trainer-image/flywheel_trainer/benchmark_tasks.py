"""Which folders of benchmark tasks are accepted: YAML that runs no code."""

from pathlib import Path
from typing import Final

from flywheel_trainer.errors import DataError

_CODE: Final = ("!function", "class:")


def check(folder: Path) -> None:
    """Refuses a folder that holds no task, or whose tasks would run code of their own.

    Raises:
        DataError: the sentence names the file and the fix.
    """
    tasks = sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]) if folder.is_dir() else []
    if not tasks:
        raise DataError(f"benchmark tasks {folder}: no *.yaml in it; name a folder of lm-evaluation-harness tasks")
    for file in tasks:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"benchmark task {file} is not UTF-8; save the file as UTF-8") from error
        if any(mark in text for mark in _CODE):
            raise DataError(
                f"benchmark task {file} names code of its own (!function or class:), which is never run; "
                "write the task with templates and built-in metrics"
            )
