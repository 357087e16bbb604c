"""From raw objects to our records. What does not parse says so with the field's path."""

from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from flywheel_operator.kube import faults
from flywheel_operator.kube.errors import UnreadableError
from flywheel_operator.kube.resources import Raw
from flywheel_operator.manifests.snapshot import SNAPSHOT_KEY
from flywheel_operator.model.names import (
    ANNOTATION_PRODUCTION,
    LABEL_LINEAGE,
    LABEL_MANAGED_BY,
    MANAGED_BY,
)
from flywheel_operator.model.objects import ABTest, Generation, RewardModel
from flywheel_operator.model.production import Production, ProductionRecord
from flywheel_operator.model.snapshot import Snapshot

_SHOWN: Final = 3

ModelT = TypeVar("ModelT", bound=BaseModel)


def generation(raw: Raw) -> Generation:
    """Raises UnreadableError."""
    return _parse(Generation, raw)


def reward_model(raw: Raw) -> RewardModel:
    """Raises UnreadableError."""
    return _parse(RewardModel, raw)


def ab_test(raw: Raw) -> ABTest:
    """Raises UnreadableError."""
    return _parse(ABTest, raw)


def snapshot(raw: Raw) -> Snapshot:
    """Raises UnreadableError."""
    text = raw.get("data", {}).get(SNAPSHOT_KEY)
    if text is None:
        raise UnreadableError(f"ConfigMap {_where(raw)} has no key {SNAPSHOT_KEY}")
    return _parse_json(Snapshot, text, f"ConfigMap {_where(raw)}, {SNAPSHOT_KEY}")


def is_lineage_service(raw: Raw, lineage: str) -> bool:
    """Whether the Service is the one that we made for `lineage`."""
    labels = raw["metadata"].get("labels") or {}
    return labels.get(LABEL_MANAGED_BY) == MANAGED_BY and labels.get(LABEL_LINEAGE) == lineage


def production(raw: Raw) -> Production:
    """What the lineage's Service says of production. A Service of ours without a record is not "nothing serves".

    Raises:
        UnreadableError: the record is missing or does not parse.
    """
    text = (raw["metadata"].get("annotations") or {}).get(ANNOTATION_PRODUCTION)
    where = f"Service {_where(raw)}, annotation {ANNOTATION_PRODUCTION}"
    if text is None:
        raise UnreadableError(f"{where}: it is missing; put it back, or delete the Service to start the lineage anew")
    return Production(
        record=_parse_json(ProductionRecord, text, where), resource_version=raw["metadata"]["resourceVersion"]
    )


def _parse(model: type[ModelT], raw: Raw) -> ModelT:
    try:
        return model.model_validate(faults.without_fault(raw))
    except ValidationError as error:
        raise UnreadableError(f"{raw.get('kind')} {_where(raw)} does not parse: {_explained(error)}") from error


def _parse_json(model: type[ModelT], text: str, where: str) -> ModelT:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise UnreadableError(f"{where} does not parse: {_explained(error)}") from error


def _explained(error: ValidationError) -> str:
    shown = [f"{'.'.join(str(part) for part in e['loc']) or '(root)'}: {e['msg']}" for e in error.errors()[:_SHOWN]]
    more = error.error_count() - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _where(raw: Raw) -> str:
    return f"{raw['metadata'].get('namespace', '')}/{raw['metadata']['name']}"
