"""The shipped examples as objects, and JSON merge patches on them."""

import copy
from typing import Any

import yaml

from tests.kubernetes_fixtures import ROOT, Object

EXAMPLES = ROOT / "manifests" / "examples"


def load(file: str, kind: str, namespace: str | None = None) -> Object:
    """The first object of `kind` in an example, moved to `namespace`."""
    documents = yaml.safe_load_all((EXAMPLES / file).read_text())
    found: Object = next(document for document in documents if document["kind"] == kind)
    if namespace:
        found["metadata"]["namespace"] = namespace
    return found


def generation(namespace: str | None = None) -> Object:
    """The first, short example."""
    return load("generation.yaml", "Generation", namespace)


def reward_model(namespace: str | None = None) -> Object:
    """The example of a RewardModel."""
    return load("reward-model.yaml", "RewardModel", namespace)


def ab_test(namespace: str | None = None) -> Object:
    """The example of an ABTest."""
    return load("abtest.yaml", "ABTest", namespace)


def merged(target: Any, patch: Any) -> Any:  # noqa: ANN401 -- any JSON value
    """RFC 7396: objects are merged, null removes, all else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value)
    return out
