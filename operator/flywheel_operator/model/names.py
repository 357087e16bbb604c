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
COMMAND_RERUN: Final = f"{GROUP}/rerun-from"

FINALIZER_ROUTING: Final = f"{GROUP}/routing"
"""On every ABTest whose router users come through: it is not deleted before they have another way."""
FINALIZER_SERVING: Final = f"{GROUP}/serving"
"""On every Generation that has a model server: it is not deleted from under its users."""

ANNOTATION_CONFIG: Final = f"{GROUP}/config"
"""On a Deployment: the ConfigMap that its pods run with."""

NAME_LIMIT: Final = 63
OWN_NAME_LIMIT: Final = 50


def bounded_name(*parts: str, unique: str, limit: int = NAME_LIMIT) -> str:
    """`parts` joined by dashes, cut to fit into `limit` characters with eight hexadecimal digits of `unique`'s hash."""
    suffix = _short(unique)
    stem = "-".join(parts)[: limit - 9].rstrip("-.")
    return f"{stem}-{suffix}"


def server_name(generation: str) -> str:
    """The Deployment of a Generation's model server."""
    return child_name(generation, "server")


def snapshot_name(generation: str, uid: str) -> str:
    """The immutable ConfigMap that a Generation's stages run from."""
    return bounded_name(generation, "snapshot", unique=uid)


def child_name(owner: str, part: str) -> str:
    """`owner-part`, shortened where it would be too long."""
    name = f"{owner}-{part}"
    return name if len(name) <= NAME_LIMIT else bounded_name(owner, part, unique=owner)


def test_name(generation: str) -> str:
    """The ABTest of a Generation. Names of our own kinds have at most 50 characters."""
    name = f"{generation}-test"
    if len(name) <= OWN_NAME_LIMIT:
        return name
    return f"{generation[: OWN_NAME_LIMIT - 14].rstrip('-')}-{_short(generation)}-test"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def lineage_key_name(lineage: str) -> str:
    """The Secret with the key that a lineage's user ids are hashed with, and the token between router and gateways."""
    return child_name(lineage, "users-key")
