"""The CRDs as files: generated, structural, and each field with a description."""

from collections.abc import Iterator

import pytest

from flywheel_operator.model import crds
from tests.crds.schema import fields, schemas
from tests.kubernetes_fixtures import ROOT, Object

UNDESCRIBED = {"metadata"}
"""The API server allows no description there; kubectl has its own."""


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


def test_names_that_yaml_takes_for_truth_values_are_quoted() -> None:
    """kubectl and helm read a bare `n` as false: the field would be called `false`, and ours would be dropped."""
    for text in (t for name, t in crds.documents().items() if "abtests" not in name):
        assert '"n":' in text.replace("'", '"')
        assert not [line for line in text.splitlines() if line.strip().lower() in ("n:", "y:", "- n", "- y")]


@pytest.mark.parametrize("name", schemas())
def test_what_may_be_applied_empty_is_there_when_it_is_applied_again(name: str) -> None:
    """Server-side apply takes `abTest: {}` away the second time, where a default put a list of type `map` into it."""
    spec = schemas()[name]["properties"]["spec"]
    for path, field in fields(spec):
        if "properties" in field and "required" not in field and "default" not in field:
            assert list(_filled_maps(field, path)) == []


def _filled_maps(schema: Object, path: str) -> Iterator[str]:
    """The lists of type `map` below an object that defaults fill."""
    for name, child in schema.get("properties", {}).items():
        if "default" in child:
            if child.get("x-kubernetes-list-type") == "map":
                yield f"{path}.{name}"
            yield from _filled_maps(child, f"{path}.{name}")
