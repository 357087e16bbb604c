"""Every label, annotation, finalizer and name that we write on objects; each is spelled here and nowhere else."""

import hashlib
from typing import Final

GROUP: Final = "characterflywheel.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
FIELD_MANAGER: Final = "flywheel-operator"

LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
MANAGED_BY: Final = "flywheel-operator"
LABEL_OWNER_KIND: Final = f"{GROUP}/owner-kind"
LABEL_OWNER: Final = f"{GROUP}/owner"
LABEL_LINEAGE: Final = f"{GROUP}/lineage"
LABEL_STAGE: Final = f"{GROUP}/stage"
LABEL_QUEUE: Final = "kueue.x-k8s.io/queue-name"

ANNOTATION_PRODUCTION: Final = f"{GROUP}/production"
"""On a lineage's Service: what serves and what served, as JSON. Changed with the selector, by compare-and-swap."""
ANNOTATION_MODEL_DIGEST: Final = f"{GROUP}/model-digest"

COMMAND_PROMOTE: Final = f"{GROUP}/promote"
COMMAND_ROLLBACK: Final = f"{GROUP}/rollback"
COMMAND_RETIRE: Final = f"{GROUP}/retire"
COMMAND_ABORT: Final = f"{GROUP}/abort"

FINALIZER_SERVING: Final = f"{GROUP}/serving"
"""On every Generation that has a model server: it is not deleted from under its users."""

NAME_LIMIT: Final = 63


def bounded_name(*parts: str, unique: str) -> str:
    """`parts` joined by dashes, cut to fit into 63 characters with eight hexadecimal digits of `unique`'s hash."""
    suffix = hashlib.sha256(unique.encode()).hexdigest()[:8]
    stem = "-".join(parts)[: NAME_LIMIT - 9].rstrip("-.")
    return f"{stem}-{suffix}"


def server_name(generation: str) -> str:
    """The Deployment of a Generation's model server."""
    name = f"{generation}-server"
    return name if len(name) <= NAME_LIMIT else bounded_name(generation, "server", unique=generation)


def snapshot_name(generation: str, uid: str) -> str:
    """The immutable ConfigMap that a Generation's stages run from."""
    return bounded_name(generation, "snapshot", unique=uid)
