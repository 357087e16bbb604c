"""The CRDs, generated from the pydantic models: `python -m flywheel_operator.model.crds FOLDER [--check]`."""

import argparse
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from flywheel_contract.base import Record
from flywheel_operator.model import abtest, generation, reward_model
from flywheel_operator.model.abtest_status import ABTestStatus
from flywheel_operator.model.names import GROUP, VERSION
from flywheel_operator.model.rules import cel
from flywheel_operator.model.status import GenerationStatus, RewardModelStatus

Schema = dict[str, Any]

_KEEP = {
    "type", "description", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "required", "format", "x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
    "x-kubernetes-int-or-string",
}  # fmt: skip


def structural(model: type[BaseModel]) -> Schema:
    """The structural OpenAPI v3 schema of `model`, as apiextensions.k8s.io/v1 wants it: no $ref, no anyOf with null,
    defaults of nested objects written as `{}` so that the API server fills them in level by level.

    Raises:
        TypeError: a field has a type that a structural schema cannot express.
    """
    document = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(document, document.get("$defs", {}), model)


def _convert(node: Schema, definitions: dict[str, Schema], model: type[BaseModel] | None = None) -> Schema:
    node = dict(node)
    if "$ref" in node:
        target = definitions[node.pop("$ref").rsplit("/", 1)[1]]
        node = {**target, **node}
    nullable = False
    if "anyOf" in node and not node.get("x-kubernetes-int-or-string"):
        branches = [b for b in node.pop("anyOf") if b.get("type") != "null"]
        if len(branches) != 1:
            raise TypeError(f"a field of several types is not structural: {node}")
        nullable = "default" in node and node["default"] is not None
        return _convert({**branches[0], **node}, definitions) | ({"nullable": True} if nullable else {})
    out: Schema = {key: node[key] for key in node if key in _KEEP}
    if node.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "const" in node:
        out |= {"type": "string", "enum": [node["const"]]}
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in node:
            out |= {bound: node[exclusive], exclusive: True}
    if "items" in node:
        out["items"] = _convert(node["items"], definitions)
    if "properties" in node:
        out["properties"] = {name: _convert(child, definitions) for name, child in node["properties"].items()}
    elif isinstance(node.get("additionalProperties"), dict):
        out["additionalProperties"] = _convert(node["additionalProperties"], definitions)
    if node.get("default") is not None:
        out["default"] = node["default"]
    return out


def _models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 -- any annotation
    """The models in an annotation, be it optional; not those in lists, which are `_item_models`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _models(part)


def _item_models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 -- any annotation
    """The models that a list holds."""
    if get_origin(annotation) is list:
        yield from _models(get_args(annotation)[0])


def fill_defaults(schema: Schema, model: type[BaseModel]) -> Schema:
    """Adds the defaults that pydantic keeps in factories: lists and objects, `{}` for those that fill themselves in."""
    for name, field in model.model_fields.items():
        child = schema["properties"][field.alias or name]
        for inner in _models(field.annotation):
            fill_defaults(child, inner)
        for item in _item_models(field.annotation):
            fill_defaults(child["items"], item)
        if field.default_factory is not None:
            child["default"] = _plain(field.get_default(call_default_factory=True, validated_data={}))
    return schema


def _plain(value: Any) -> Any:  # noqa: ANN401 -- any default
    if isinstance(value, Record):
        own = value.model_fields_set
        return value.model_dump(mode="json", by_alias=True, include=own, exclude_none=True)
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.value if isinstance(value, Enum) else value


def _gate_metrics(spec: Schema, names: list[str]) -> None:
    rule = spec["properties"]["gates"]["properties"]["rules"]["items"]["properties"]["metric"]
    rule["enum"] = names


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> Schema:
    return {"name": name, "jsonPath": path, "type": kind, **({"priority": priority} if priority else {})}


_NAME_RULES = [
    # Children are named after it, and labels carry it: 63 characters less the longest suffix, and no dots.
    cel(
        "size(self.metadata.name) <= 50 && !self.metadata.name.contains('.')",
        "the name must have at most 50 characters and no dots: children and labels are named after it",
        ".metadata.name",
    )
]
_SERVED_NAME_RULES = [
    *_NAME_RULES,
    # The Services of a test's arms are named after it, and it after its Generation.
    cel(
        "self.metadata.name.matches('^[a-z]')",
        "the name must begin with a letter: Services are named after it",
        ".metadata.name",
    ),
]


def _crd(
    *,
    kind: str,
    plural: str,
    short: str,
    description: str,
    spec: Schema,
    status: type[Record],
    rules: list[Schema],
    columns: list[Schema],
) -> Schema:
    schema = {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"{kind}."},
            # A rule's fieldPath must name a property that the schema knows, so metadata.name is spelled out; the API
            # server allows no description of metadata itself.
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string", "description": "At most 50 characters, no dots."}},
            },
            "spec": spec,
            "status": _without_defaults(structural(status)),
        },
        "x-kubernetes-validations": rules,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["flywheel"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [*columns, _column("Age", ".metadata.creationTimestamp", "date")],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _without_defaults(schema: Schema) -> Schema:
    """Status is written by us alone: defaults, bounds and rules there would only hinder another version of us."""
    drop = ("default", "x-kubernetes-validations", "required", "pattern", "enum", "minimum", "maximum", "minLength",
            "maxLength", "minItems", "maxItems", "exclusiveMinimum", "exclusiveMaximum")  # fmt: skip
    out = {key: value for key, value in schema.items() if key not in drop}
    keys = out.get("x-kubernetes-list-map-keys")
    for name in ("items", "additionalProperties"):
        if name in out:
            out[name] = _without_defaults(out[name])
    if keys:
        out["items"]["required"] = keys
    if "properties" in out:
        out["properties"] = {name: _without_defaults(child) for name, child in out["properties"].items()}
    return out


def generation_crd() -> Schema:
    """The CRD of Generation."""
    spec = fill_defaults(structural(generation.GenerationSpec), generation.GenerationSpec)
    _gate_metrics(spec, generation.GENERATION_METRICS)
    return _crd(
        kind="Generation",
        plural="generations",
        short="gen",
        description="One turn of the wheel: a candidate model is trained, judged and, if it passes, promoted.",
        spec=spec,
        status=GenerationStatus,
        rules=[*_SERVED_NAME_RULES, *generation.ROOT_RULES],
        columns=[
            _column("Phase", ".status.phase"),
            _column("Stage", ".status.stage"),
            _column("Progress", ".status.progress"),
            _column("Win-Rate", ".status.winRate"),
            _column("Verdict", ".status.verdict.result"),
            _column("Serving", '.status.conditions[?(@.type=="Serving")].reason'),
            _column("Lineage", ".spec.lineage", priority=1),
            _column("Reason", '.status.conditions[?(@.type=="Progressing")].message', priority=1),
        ],
    )


def reward_model_crd() -> Schema:
    """The CRD of RewardModel."""
    spec = fill_defaults(structural(reward_model.RewardModelSpec), reward_model.RewardModelSpec)
    _gate_metrics(spec, reward_model.REWARD_MODEL_METRICS)
    return _crd(
        kind="RewardModel",
        plural="rewardmodels",
        short="rm",
        description="One trained judge of replies, which Generations name as a term of their reward.",
        spec=spec,
        status=RewardModelStatus,
        rules=[*_NAME_RULES, *reward_model.ROOT_RULES],
        columns=[
            _column("Phase", ".status.phase"),
            _column("Stage", ".status.stage"),
            _column("Progress", ".status.progress"),
            _column("Accuracy", ".status.accuracy"),
            _column("AUC", ".status.auc"),
            _column("Type", ".spec.type"),
            _column("Reason", '.status.conditions[?(@.type=="Progressing")].message', priority=1),
        ],
    )


def abtest_crd() -> Schema:
    """The CRD of ABTest."""
    return _crd(
        kind="ABTest",
        plural="abtests",
        short="abt",
        description="Two models on live users, in two arms of equal standing, and what came out.",
        spec=fill_defaults(structural(abtest.ABTestSpec), abtest.ABTestSpec),
        status=ABTestStatus,
        rules=[*_SERVED_NAME_RULES, *abtest.ROOT_RULES],
        columns=[
            _column("Phase", ".status.phase"),
            _column("Day", ".status.day"),
            _column("Exposed", ".status.exposed"),
            _column("Lift", ".status.lift"),
            _column("Verdict", ".status.verdict.result"),
            _column("Lineage", ".spec.lineage", priority=1),
            _column("Reason", '.status.conditions[?(@.type=="Progressing")].message', priority=1),
        ],
    )


class ManifestDumper(yaml.SafeDumper):
    """YAML for kubectl and helm, to which a bare `n` or `y` is a truth value; without anchors, for people."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401 -- any YAML value
        return True


ManifestDumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^[yYnN]$"), list("yYnN"))


def documents() -> dict[str, str]:
    """File name -> YAML text of each CRD."""
    note = "# Generated from operator/flywheel_operator/model by `make regen`; do not edit.\n"
    crds = (generation_crd(), reward_model_crd(), abtest_crd())
    return {
        f"{GROUP}_{crd['spec']['names']['plural']}.yaml": note
        + yaml.dump(crd, Dumper=ManifestDumper, sort_keys=False, width=1_000_000)
        for crd in crds
    }


def main(given: list[str]) -> int:
    """Writes the files, or with --check says which are not up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs")
    arguments = parser.parse_args(given)
    wanted = documents()
    stale = [
        name
        for name, text in wanted.items()
        if not (arguments.folder / name).exists() or (arguments.folder / name).read_text() != text
    ]
    if arguments.check:
        for name in stale:
            print(f"{arguments.folder / name} does not match the models: run make regen", file=sys.stderr)
        return 1 if stale else 0
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (arguments.folder / name).write_text(wanted[name])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
