"""A Workshop for the stages that do not train: no parameters of training in every spec."""

import json
from pathlib import Path

from tests.trainer.workshop import Json, Workshop


class Workbench(Workshop):
    """`root` is the claims' root with one claim, `lab`."""

    def data(self, name: str, rows: list[Json]) -> str:
        """Writes rows and answers their URI."""
        return self.add_data(name, rows)

    def output(self, uri_of_manifest: str | None, name: str) -> str:
        """The URI of an output."""
        assert uri_of_manifest is not None
        return uri_of_manifest.removesuffix("manifest.json") + name

    def spec(self, stage: str, inputs: list[Json], **params: object) -> Path:
        """Writes a StageSpec with just these parameters and answers its file."""
        path = super().spec(stage, inputs, **{key: params.pop(key) for key in ("screening",) if key in params})
        spec = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**spec, "params": params}), encoding="utf-8")
        return path
