"""A Generation's model server with its gateway: everything that has to be there for it, at once."""

from flywheel_contract.characters import Character
from flywheel_operator.manifests.common import labels
from flywheel_operator.manifests.gateway import GATEWAY, Beside, config_map, config_name, gateway, key_secret
from flywheel_operator.manifests.server import server
from flywheel_operator.model.names import server_name
from flywheel_operator.model.observed import ObservedGeneration
from flywheel_operator.model.status import GenerationStatus, ModelRef
from flywheel_operator.plan.actions import Manifest, Ref
from flywheel_operator.plan.draft import Draft
from flywheel_operator.plan.prerequisites import Missing, resolve_characters


def apply_server(
    draft: Draft[GenerationStatus], observed: ObservedGeneration, candidate: ModelRef, replicas: int
) -> None:
    """Asks for `replicas` of the server of `candidate`, and for what its pods mount."""
    generation = observed.generation
    beside = beside_server(observed)
    if beside is not None:
        metadata = _metadata(observed)
        draft.create.append(key_secret(generation.spec.lineage, metadata))
        draft.create.append(config_map(generation.metadata.name, beside, metadata))
    image = draft.status.trainer_image or observed.settings.trainer_image
    pull = observed.settings.image_pull_secrets
    draft.apply.append(server(generation, candidate, image, replicas, pull, beside))


def delete_server(draft: Draft[GenerationStatus], observed: ObservedGeneration) -> None:
    """Removes the server and the gateway's configuration. The lineage's key stays."""
    name = observed.generation.metadata.name
    draft.delete.append(Ref("apps/v1", "Deployment", server_name(name)))
    beside = beside_server(observed)
    if beside is not None:
        draft.delete.append(Ref("v1", "ConfigMap", config_name(name, beside)))


def beside_server(observed: ObservedGeneration) -> Beside | None:
    """The gateway of the Generation's server; None where it is switched off."""
    spec = observed.generation.spec
    if spec.serving.gateway.mode == "Disabled":
        return None
    return gateway(
        image=observed.settings.gateway_image,
        spec=spec.serving.gateway,
        serves=observed.generation.metadata.name,
        lineage=spec.lineage,
        artifacts=spec.artifacts.uri,
        characters=_characters(observed),
    )


def _characters(observed: ObservedGeneration) -> list[Character]:
    """As they were at the start. Where the snapshot was deleted, as they are now; those without a prompt at all are
    left out: the others' users are served."""
    if observed.snapshot is not None:
        return observed.snapshot.characters
    found = [resolve_characters([c], observed) for c in observed.generation.spec.characters]
    return [character for each in found if not isinstance(each, Missing) for character in each]


def _metadata(observed: ObservedGeneration) -> Manifest:
    generation = observed.generation
    # No owner reference: like the Deployment, it must not go while our finalizer holds the Generation.
    return {
        "namespace": generation.metadata.namespace,
        "labels": labels("Generation", generation.metadata.name, GATEWAY, generation.spec.lineage),
    }
