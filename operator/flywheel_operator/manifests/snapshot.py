"""The immutable ConfigMap of a Generation's snapshot."""

import json
from typing import Final

from flywheel_operator.manifests.common import Manifest, labels, owner_reference
from flywheel_operator.model.objects import Metadata
from flywheel_operator.model.snapshot import Snapshot

SNAPSHOT_KEY: Final = "snapshot.json"


def snapshot_config_map(generation: Metadata, lineage: str, name: str, snapshot: Snapshot) -> Manifest:
    """The ConfigMap; its owner is the Generation."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": generation.namespace,
            "labels": labels("Generation", generation.name, "snapshot", lineage),
            "ownerReferences": [owner_reference("Generation", generation)],
        },
        "immutable": True,
        "data": {SNAPSHOT_KEY: json.dumps(snapshot.to_json(), indent=1)},
    }
