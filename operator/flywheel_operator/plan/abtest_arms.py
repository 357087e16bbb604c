"""What serves the arms of an ABTest: Generations' servers, servers of its own, or servers that run already."""

from dataclasses import dataclass
from typing import Any, Final

from flywheel_contract.experiment import Arm
from flywheel_contract.online import traffic_uri
from flywheel_operator.manifests.common import Manifest, labels, owner_reference
from flywheel_operator.manifests.gateway import GATEWAY, config_map, gateway, key_secret
from flywheel_operator.manifests.server import SERVER, gateway_server, model_server
from flywheel_operator.model.abtest import ABTestSpec, Variant
from flywheel_operator.model.names import (
    LABEL_COMPONENT,
    LABEL_OWNER,
    LABEL_OWNER_KIND,
    child_name,
)
from flywheel_operator.model.objects import ABTest, Generation
from flywheel_operator.model.observed import ObservedABTest
from flywheel_operator.model.phases import ABTestPhase, Phase
from flywheel_operator.model.serving import CharacterSpec
from flywheel_operator.model.status import ModelRef
from flywheel_operator.plan.actions import Ref
from flywheel_operator.plan.draft import Draft
from flywheel_operator.plan.prerequisites import Missing, resolve_characters

ARM_PORT: Final = 80
GENERATION_NOT_FOUND: Final = "GenerationNotFound"
GENERATION_NOT_READY: Final = "GenerationNotReady"
CONTROL_NOT_SERVING: Final = "ControlNotServing"
ARTIFACTS_DIFFER: Final = "ArtifactsDiffer"


@dataclass(frozen=True, slots=True)
class Side:
    """One arm."""

    arm: Arm
    variant: Variant


def sides(observed: ObservedABTest) -> tuple[Side, Side]:
    """Control and treatment."""
    spec = observed.test.spec
    return Side(Arm.CONTROL, spec.control), Side(Arm.TREATMENT, spec.treatment)


def service_name(observed: ObservedABTest, arm: Arm) -> str:
    """The Service of an arm, which the router sends its users to."""
    return child_name(observed.test.metadata.name, arm.value)


def server_name(observed: ObservedABTest, arm: Arm) -> str:
    """The Deployment of an arm that is no Generation."""
    return child_name(observed.test.metadata.name, f"{arm.value}-server")


def check(observed: ObservedABTest) -> tuple[ModelRef, ModelRef, ABTestSpec] | Missing:
    """What the arms are and the spec with the prompts themselves in it, or the first thing that is missing."""
    found = []
    for side in sides(observed):
        reference = _reference(observed, side)
        if isinstance(reference, Missing):
            return reference
        found.append(reference)
    spec = observed.test.spec
    characters = resolve_characters(spec.characters, observed)
    if isinstance(characters, Missing):
        return characters
    inline = [CharacterSpec.inlined(character) for character in characters]
    return found[0], found[1], spec.model_copy(update={"characters": inline})


def _reference(observed: ObservedABTest, side: Side) -> ModelRef | Missing:
    name, lineage = side.variant.generation, observed.test.spec.lineage
    if name is None:
        service = side.variant.service
        uri = side.variant.model or (f"http://{service.name}:{service.port}" if service else "")
        return ModelRef(uri=uri, digest="")
    field = f"spec.{side.arm.value}.generation"
    generation = observed.generations.get(name)
    if generation is None:
        return Missing(GENERATION_NOT_FOUND, f"waits for the Generation {name} ({field}) to be created")
    unfit = _unfit(generation, field, observed.test)
    if unfit is not None:
        return unfit
    candidate = generation.status.candidate
    if candidate is None:
        phase = generation.status.phase.value
        return Missing(
            GENERATION_NOT_READY, f"waits for the candidate of the Generation {name} ({field}); it is {phase}"
        )
    serving = observed.production.record.serving if observed.production else None
    if side.arm is Arm.CONTROL and (serving is None or serving.generation != name):
        now = f"{serving.generation} does" if serving else "nothing does"
        said = f"waits for the Generation {name} ({field}) to serve the lineage {lineage}; {now} at the moment"
        return Missing(CONTROL_NOT_SERVING, said)
    if side.arm is Arm.TREATMENT and generation.status.phase is Phase.ABORTED:
        return Missing(GENERATION_NOT_READY, f"the Generation {name} ({field}) was aborted")
    return candidate


def _unfit(generation: Generation, field: str, test: ABTest) -> Missing | None:
    """Why what a Generation's users do could never be seen by the test."""
    said = f"the Generation {generation.metadata.name} ({field})"
    own, wanted = generation.spec, test.spec
    if own.lineage != wanted.lineage:
        return Missing(GENERATION_NOT_FOUND, f"{said} is of the lineage {own.lineage}, not {wanted.lineage}")
    if own.serving.gateway.mode == "Disabled":
        return Missing(
            GENERATION_NOT_READY, f"{said} has no gateway (spec.serving.gateway.mode): nothing would be logged"
        )
    if traffic_uri(own.artifacts.uri, own.lineage) != traffic_uri(wanted.artifacts.uri, own.lineage):
        return Missing(
            ARTIFACTS_DIFFER,
            f"{said} has its log below {own.artifacts.uri}, and the test reads what lies below {wanted.artifacts.uri}: "
            "models that are compared need the same spec.artifacts.uri",
        )
    return None


def apply_arms(draft: Draft[Any], observed: ObservedABTest) -> None:
    """Asks for the Services of both arms, and for the servers of those that are no Generations."""
    if observed.test.status.phase is not ABTestPhase.RUNNING:
        draft.create.append(key_secret(observed.test.spec.lineage, _metadata(observed, GATEWAY)))
    for side in sides(observed):
        draft.apply.append(_service(observed, side))
        if side.variant.generation is None:
            _apply_server(draft, observed, side)


def not_ready(observed: ObservedABTest) -> str:
    """Why the arms cannot be talked to yet; empty: they can."""
    for side in sides(observed):
        name = side.variant.generation
        if name is not None:
            server = observed.servers.get(name)
            if server is None or server.ready_replicas < 1 or not server.up_to_date:
                why = f": {server.message}" if server and server.message else ""
                return f"the model server of {name} ({side.arm.value}) is not ready{why}"
            continue
        view = observed.deployments.get(server_name(observed, side.arm))
        if view is None or not view.ready:
            why = f": {view.message}" if view and view.message else ""
            return f"the server of the {side.arm.value} arm is not ready{why}"
    return ""


def remove_arm(draft: Draft[Any], observed: ObservedABTest, arm: Arm) -> None:
    """Removes what the test itself started for an arm."""
    if server_name(observed, arm) in observed.deployments:
        draft.delete.append(Ref("apps/v1", "Deployment", server_name(observed, arm)))


def remove_services(draft: Draft[Any], observed: ObservedABTest) -> None:
    """Removes the Services of the arms. A test that got no further than its first pass may have found their names
    taken."""
    if observed.test.status.start_time is not None:
        draft.delete.extend(Ref("v1", "Service", service_name(observed, arm)) for arm in Arm)


def _apply_server(draft: Draft[Any], observed: ObservedABTest, side: Side) -> None:
    test, spec = observed.test, observed.test.spec
    name = server_name(observed, side.arm)
    # What is measured stays what it was at the start: the resolved spec holds the prompts themselves.
    characters = resolve_characters((draft.status.resolved or spec).characters, observed)
    if isinstance(characters, Missing):
        return  # a test from before prompts were written down: its server stays as it is
    service, model = side.variant.service, side.variant.model
    beside = gateway(
        image=observed.settings.gateway_image,
        spec=spec.serving.gateway.model_copy(update={"mode": "Enabled"}),
        serves=name,
        lineage=spec.lineage,
        artifacts=spec.artifacts.uri,
        characters=characters,
        upstream=f"http://{service.name}:{service.port}" if service else None,
    )
    metadata = _metadata(observed, f"{side.arm.value}-{SERVER}")
    owned = {**metadata, "ownerReferences": [owner_reference("ABTest", test.metadata)]}
    draft.create.append(config_map(name, beside, owned))
    common: dict[str, Any] = {
        "name": name,
        "metadata": metadata,
        "serves": name,
        "runtime": spec.runtime,
        "replicas": spec.serving.replicas,
        "pull_secrets": observed.settings.image_pull_secrets,
        "beside": beside,
    }
    if model is None:
        draft.apply.append(gateway_server(**common))
        return
    image = test.spec.runtime.image or observed.settings.trainer_image
    reference = ModelRef(uri=model, digest="")
    draft.apply.append(model_server(**common, model=reference, spec=spec.serving, image=image))


def _service(observed: ObservedABTest, side: Side) -> Manifest:
    name = side.variant.generation
    selector = (
        {LABEL_OWNER_KIND: "Generation", LABEL_OWNER: name, LABEL_COMPONENT: SERVER}
        if name is not None
        else {
            LABEL_OWNER_KIND: "ABTest",
            LABEL_OWNER: observed.test.metadata.name,
            LABEL_COMPONENT: f"{side.arm.value}-{SERVER}",
        }
    )
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**_metadata(observed, side.arm.value), "name": service_name(observed, side.arm)},
        "spec": {
            "selector": selector,
            "ports": [{"name": "http", "port": ARM_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _metadata(observed: ObservedABTest, component: str) -> Manifest:
    """Without an owner: a foreground deletion must not take away what users are sent to. See `leave`."""
    metadata = observed.test.metadata
    return {
        "namespace": metadata.namespace,
        "labels": labels("ABTest", metadata.name, component, observed.test.spec.lineage),
    }
