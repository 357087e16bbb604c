"""The base of every record on the wire: camelCase keys, nothing unknown, nothing changed after parsing."""

import functools
import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
"""`sha256:` and 64 hexadecimal digits."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=63)]
"""A Kubernetes name."""


class Record(BaseModel):
    """An immutable record; JSON keys are camelCase, unknown keys are errors."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    def to_json(self) -> dict[str, Any]:
        """The JSON object, camelCase, without the fields that are None, where that is what leaving them out says."""
        pruned: dict[str, Any] = _pruned(self, self.model_dump(mode="json", by_alias=True))
        return pruned


def _pruned(value: Any, dumped: Any) -> Any:  # noqa: ANN401 -- any part of a record, and what it was dumped to
    if isinstance(value, BaseModel):
        return {
            key: _pruned(inner, dumped[key])
            for name, key, telling in _keys(type(value))
            if (inner := getattr(value, name)) is not None or telling
        }
    if isinstance(value, list):
        return [_pruned(v, d) for v, d in zip(value, dumped, strict=True)]
    if isinstance(value, dict):
        return {k: _pruned(v, d) for v, (k, d) in zip(value.values(), dumped.items(), strict=True)}
    return dumped


@functools.cache
def _keys(model: type[BaseModel]) -> tuple[tuple[str, str, bool], ...]:
    """Name, key in JSON, and whether None says something else than the default, of each field."""
    return tuple((name, field.alias or name, field.default is not None) for name, field in model.model_fields.items())


def digest_of(value: Any) -> str:  # noqa: ANN401 -- any JSON value
    """The digest of a JSON value in canonical form: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def list_map(*keys: str) -> dict[str, Any]:
    """The schema extension of a list in the CRDs whose entries are told apart by `keys`."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
