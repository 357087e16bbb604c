"""The generated schemas, and a walk over their fields."""

import functools
from collections.abc import Iterator

import yaml

from flywheel_operator.model import crds
from tests.kubernetes_fixtures import Object


def fields(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    """Every property of a schema, however deep, by its path."""
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}".lstrip("."), child
        yield from fields(child, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from fields(schema["additionalProperties"], f"{path}{{}}")


@functools.cache
def schemas() -> dict[str, Object]:
    """The schema of each generated CRD by file name."""
    return {
        name: yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for name, text in crds.documents().items()
    }
