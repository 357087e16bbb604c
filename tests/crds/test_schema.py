"""The CRDs as files: generated, structural, and each field with a description."""

import functools
from collections.abc import Iterator

import pytest
import yaml

from flywheel_operator.model import crds
from tests.kubernetes_fixtures import ROOT, Object

UNDESCRIBED = {"metadata"}
"""The API server allows no description there; kubectl has its own."""


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


def test_the_folder_is_what_the_models_say() -> None:
    assert {p.name: p.read_text() for p in (ROOT / "crds").glob("*.yaml")} == crds.documents()


@pytest.mark.parametrize("name", schemas())
def test_every_field_has_a_description(name: str) -> None:
    bare = [path for path, field in fields(schemas()[name]) if not field.get("description") and path not in UNDESCRIBED]
    assert bare == []


@pytest.mark.parametrize("name", schemas())
def test_the_schema_is_closed(name: str) -> None:
    """No part of it accepts unknown fields or untyped values."""
    for path, field in fields(schemas()[name]):
        assert "x-kubernetes-preserve-unknown-fields" not in field, path
        assert "type" in field or field.get("x-kubernetes-int-or-string"), path


@pytest.mark.parametrize("name", schemas())
def test_lists_and_strings_of_the_spec_that_rules_read_have_bounds(name: str) -> None:
    """Without bounds the API server takes the worst for granted and refuses rules as too costly."""
    spec = schemas()[name]["properties"]["spec"]
    unbounded = [path for path, field in fields(spec) if field.get("type") == "array" and "maxItems" not in field]
    assert unbounded == []
