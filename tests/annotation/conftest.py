"""A folder with a key, and rows to annotate."""

import json
from pathlib import Path
from typing import Any

import pytest

from flywheel_trainer.annotation import command

Json = dict[str, Any]


class Desk:
    """Where exports and imports of one test lie."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        (folder / "key").write_bytes(b"0123456789abcdef0123")

    def rows(self, *rows: Json, name: str = "rows.jsonl") -> str:
        """Writes rows and answers their file."""
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(self.folder / name)

    def run(self, *arguments: str) -> tuple[int, Any, str]:
        """Exit code, what was printed, and what went wrong."""
        code = command.main(arguments)
        out, err = self._capsys.readouterr()
        return code, json.loads(out) if out else None, err.strip()

    def export(self, kind: str, *rows: Json, more: tuple[str, ...] = ()) -> tuple[int, Any, str]:
        """Exports rows."""
        return self.run(
            "export", "--kind", kind, "--input", self.rows(*rows), "--output", str(self.folder / "out"),
            "--key-file", str(self.folder / "key"), *more,
        )  # fmt: skip

    def tasks(self) -> list[Json]:
        """The tasks that were exported."""
        return list(json.loads((self.folder / "out/tasks.json").read_text(encoding="utf-8")))

    def items(self) -> list[Json]:
        """The private side of the export."""
        return self.read("out/items.jsonl")

    def import_(self, exported: object, *more: str) -> tuple[int, Any, str]:
        """Imports what Label Studio would export."""
        text = exported if isinstance(exported, str) else json.dumps(exported)
        (self.folder / "export.json").write_text(text, encoding="utf-8")
        return self.run(
            "import", "--export", str(self.folder / "export.json"), "--items", str(self.folder / "out/items.jsonl"),
            "--key-file", str(self.folder / "key"), "--output", str(self.folder / "in"), *more,
        )  # fmt: skip

    def read(self, name: str) -> list[Json]:
        """The rows of a file."""
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    """An empty desk."""
    return Desk(tmp_path, capsys)
