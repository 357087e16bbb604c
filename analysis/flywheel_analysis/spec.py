"""What to measure: an ABTest manifest, or an AnalysisSpec by itself."""

import json
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from flywheel_analysis import own_metrics
from flywheel_analysis.errors import SpecError
from flywheel_analysis.metrics import BUILTIN, Metric, own
from flywheel_contract.durations import seconds
from flywheel_contract.experiment import AnalysisSpec

_KIND: Final = "ABTest"
_OF_ABTEST: Final = ("allocation", "metrics", "primaries", "guardrails", "dimensions")
"""The fields of an ABTest's spec that say what to measure, named as in an AnalysisSpec."""


def read(file: Path) -> AnalysisSpec:
    """The spec in `file`, YAML or JSON. Of an ABTest, `test` is its name and `dayLength` a duration such as `24h`.

    Raises:
        SpecError: it cannot be read, or it is neither of both, or names metrics that nobody defines.
    """
    try:
        document = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise SpecError(f"{file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{file} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(document, dict):
        raise SpecError(f"{file} holds no object: give an ABTest or an AnalysisSpec")
    given = _of_abtest(file, document) if "kind" in document else document
    try:
        # As JSON, so that what YAML reads as other types is not taken for text.
        spec = AnalysisSpec.model_validate_json(json.dumps(given, default=str))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise SpecError(f"{file}: {where}: {first['msg']}") from error
    own_metrics.check(spec.metrics)
    known = {metric.name for metric in metrics_of(spec)}
    for name in (*spec.primaries, *(guardrail.metric for guardrail in spec.guardrails)):
        if name not in known:
            raise SpecError(f"{file}: {name} is neither a built-in metric nor one of metrics")
    return spec


def metrics_of(spec: AnalysisSpec) -> list[Metric]:
    """The built-in metrics, then the user's own."""
    return [*BUILTIN, *(own(index, definition) for index, definition in enumerate(spec.metrics))]


def deciding(spec: AnalysisSpec) -> list[str]:
    """The names of the metrics that a decision needs, each once: primaries, then guardrails."""
    return list(dict.fromkeys((*spec.primaries, *(guardrail.metric for guardrail in spec.guardrails))))


def _of_abtest(file: Path, document: dict[str, Any]) -> dict[str, Any]:
    if document["kind"] != _KIND:
        raise SpecError(f"{file} is of kind {document['kind']}: give an {_KIND}")
    spec, metadata = document.get("spec"), document.get("metadata")
    if not isinstance(spec, dict):
        raise SpecError(f"{file}: spec is missing")
    given = {field: spec[field] for field in _OF_ABTEST if spec.get(field) is not None}
    if isinstance(metadata, dict) and metadata.get("name"):
        given["test"] = metadata["name"]
    if spec.get("dayLength") is not None:
        try:
            given["dayLengthSeconds"] = seconds(str(spec["dayLength"]))
        except ValueError as error:
            raise SpecError(f"{file}: spec.dayLength: {error}") from error
    return given
