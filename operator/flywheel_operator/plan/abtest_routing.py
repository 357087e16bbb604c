"""How the users of a lineage reach an ABTest, and how they get away from it again."""

from typing import Any, Final

from flywheel_contract.experiment import Arm
from flywheel_operator.decide.production import route
from flywheel_operator.manifests import router
from flywheel_operator.manifests.common import labels, owner_reference
from flywheel_operator.manifests.router_config import RouterConfig, Timeouts, Upstream
from flywheel_operator.manifests.server import ROUTER, public_service
from flywheel_operator.model.names import child_name, lineage_key_name
from flywheel_operator.model.observed import ObservedABTest
from flywheel_operator.model.phases import ABTEST_TERMINAL
from flywheel_operator.model.production import ProductionRecord
from flywheel_operator.plan.abtest_arms import ARM_PORT, service_name
from flywheel_operator.plan.actions import Ref, SwitchProduction
from flywheel_operator.plan.draft import Draft

READ_MARGIN_SECONDS: Final = 30
"""The router waits for longer than the gateway may take, whose own answer says what went wrong."""


def router_name(observed: ObservedABTest) -> str:
    """The router's Deployment."""
    return child_name(observed.test.metadata.name, ROUTER)


def apply_router(draft: Draft[Any], observed: ObservedABTest, *, split: bool, paused: bool) -> str:
    """Asks for the router and answers the name of its configuration, another one for another behaviour.

    Without a split everyone gets the control.
    """
    test, spec = observed.test, observed.test.spec
    name = router_name(observed)
    config = _config(observed, split=split, paused=paused)
    metadata = {
        "namespace": test.metadata.namespace,
        "labels": labels("ABTest", test.metadata.name, ROUTER, spec.lineage),
    }
    # The Deployment has no owner: a foreground deletion must not take it away while users come through it. Pods that
    # run need neither of the others.
    owned = {**metadata, "ownerReferences": [owner_reference("ABTest", test.metadata)]}
    draft.create.append(router.config_map(test.metadata.name, config, owned))
    draft.apply.append(router.disruption_budget(name, owned))
    draft.apply.append(
        router.deployment(
            name=name,
            owner=test.metadata.name,
            metadata=metadata,
            config=config,
            spec=spec.router,
            runtime=spec.runtime,
            image=observed.settings.router_image,
            key=lineage_key_name(spec.lineage),
            pull_secrets=observed.settings.image_pull_secrets,
        )
    )
    return router.config_name(test.metadata.name, config)


def _config(observed: ObservedABTest, *, split: bool, paused: bool) -> RouterConfig:
    test, spec = observed.test, observed.test.spec
    limits = spec.serving.gateway.limits
    control = Upstream((f"{service_name(observed, Arm.CONTROL)}:{ARM_PORT}",))
    common: dict[str, Any] = {
        "lineage": spec.lineage,
        "production": control,
        "user_header": spec.identity.user_header,
        "trusted_proxies": tuple(spec.identity.trusted_proxies),
        "max_body_bytes": limits.body_bytes,
        "timeouts": Timeouts(read=max(Timeouts().read, limits.timeout_seconds + READ_MARGIN_SECONDS)),
    }
    if not split:
        return RouterConfig(**common)
    return RouterConfig(
        **common,
        test=test.metadata.name,
        salt=spec.salt or test.metadata.uid,
        control=control,
        treatment=Upstream((f"{service_name(observed, Arm.TREATMENT)}:{ARM_PORT}",)),
        control_percent=spec.allocation.control,
        treatment_percent=spec.allocation.treatment,
        treatment_paused=paused,
    )


def not_ready(observed: ObservedABTest, config: str) -> str:
    """Why users cannot be sent through the router yet; empty: they can."""
    view = observed.deployments.get(router_name(observed))
    if view is None or view.config != config or not view.ready:
        return "the router is not ready" + (f": {view.message}" if view and view.message else "")
    return ""


def point_here(draft: Draft[Any], observed: ObservedABTest) -> None:
    """The lineage's public Service points at the router, also where it was made anew meanwhile."""
    record = observed.production.record if observed.production else ProductionRecord()
    if record.router != observed.test.metadata.name:
        _switch(draft, observed, route(record, observed.test.metadata.name))


def point_away(draft: Draft[Any], observed: ObservedABTest) -> bool:
    """Users go straight to what serves; says whether they do. Where nothing serves, the router stays: it is all there
    is between them and the control."""
    record = observed.production.record if observed.production else ProductionRecord()
    if record.router != observed.test.metadata.name:
        return True
    if record.serving is None:
        if observed.test.status.phase in ABTEST_TERMINAL:
            apply_router(draft, observed, split=False, paused=False)
        else:
            draft.look_again(0.0)  # this pass, which ended it, has asked for the router already
        return True
    _switch(draft, observed, route(record, None))
    return False


def serves_alone(observed: ObservedABTest) -> bool:
    """Whether users have no other way than through this test's router."""
    record = observed.production.record if observed.production else ProductionRecord()
    return record.router == observed.test.metadata.name and record.serving is None


def retire(draft: Draft[Any], observed: ObservedABTest) -> bool:
    """The Service points at the router no more, whatever else there is; says whether that was so already."""
    record = observed.production.record if observed.production else ProductionRecord()
    if record.router != observed.test.metadata.name:
        return True
    _switch(draft, observed, route(record, None))
    return False


def drain_seconds(observed: ObservedABTest) -> int:
    """How long the router's pods, once removed, may still send requests to the arms."""
    return router.drain_seconds(_config(observed, split=True, paused=False))


def remove_router(draft: Draft[Any], observed: ObservedABTest) -> None:
    """Removes the router once nobody is sent to it."""
    if router_name(observed) in observed.deployments:
        draft.delete.append(Ref("apps/v1", "Deployment", router_name(observed)))


def _switch(draft: Draft[Any], observed: ObservedABTest, record: ProductionRecord) -> None:
    test = observed.test
    draft.switch = SwitchProduction(
        service=public_service(test.spec.lineage, test.metadata.namespace, record),
        record=record,
        resource_version=observed.production.resource_version if observed.production else None,
    )
    draft.look_again(0.0)
