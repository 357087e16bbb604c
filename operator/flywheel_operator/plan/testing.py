"""The online test between a Generation's gates and its promotion."""

from dataclasses import dataclass
from typing import Final

from flywheel_operator.manifests.common import labels, owner_reference
from flywheel_operator.model.abtest import ABTestSpec, ABTestTemplate, Variant
from flywheel_operator.model.experiment import AbVerdict
from flywheel_operator.model.names import API_VERSION, test_name
from flywheel_operator.model.objects import ABTest
from flywheel_operator.model.observed import ObservedGeneration
from flywheel_operator.model.phases import ABTEST_TERMINAL, ABTestPhase, Phase, Verdict
from flywheel_operator.model.production import Served
from flywheel_operator.model.serving import IdentitySpec, LimitsSpec, ServingSpec
from flywheel_operator.model.status import GenerationStatus
from flywheel_operator.plan import reasons
from flywheel_operator.plan.actions import Manifest
from flywheel_operator.plan.draft import Draft

_USES_SERVERS: Final = frozenset({ABTestPhase.PROVISIONING, ABTestPhase.RUNNING, ABTestPhase.ANALYZING})
FOLLOW_SECONDS: Final = 30.0
_NEVER_DECIDED: Final = {ABTestPhase.FAILED: reasons.TEST_FAILED, ABTestPhase.ABORTED: reasons.TEST_ABORTED}


@dataclass(frozen=True, slots=True)
class Lost:
    """The test ended, and not with a win."""

    verdict: Verdict
    reason: str
    message: str


def under_test(observed: ObservedGeneration) -> ABTest | None:
    """The running test that one arm of which the Generation serves."""
    name = observed.generation.metadata.name
    return next(
        (t for t in observed.tests.values() if t.status.phase in _USES_SERVERS and name in _generations(t)), None
    )


def arm_of(test: ABTest, generation: str) -> str:
    """`control` or `treatment`."""
    return "treatment" if test.spec.treatment.generation == generation else "control"


def plan_test(
    draft: Draft[GenerationStatus],
    observed: ObservedGeneration,
    template: ABTestTemplate | None,
    serving: Served | None,
) -> bool | Lost:
    """Makes the test, follows it, and says whether it was won: True, False while it runs, or how it was lost."""
    if draft.status.ab_test_won:
        return True
    name = draft.status.ab_test
    if name is None:
        assert template is not None  # the caller promotes at once where no test is wanted,
        assert serving is not None  # or nothing serves
        name = test_name(draft.metadata.name)
        draft.create.append(_manifest(observed, name, template, serving))
        draft.set(ab_test=name, phase=Phase.TESTING, stage="test")
        said = f"the gates passed; {name} tries it against {serving.generation}"
        draft.event("Normal", reasons.TESTING, said)
        draft.condition(reasons.PROGRESSING, "True", reasons.TESTING, said)
        return False
    test = observed.tests.get(name)
    if test is None:
        return Lost(
            Verdict.INCONCLUSIVE, reasons.TEST_DELETED, f"the ABTest {name} was deleted before it had a verdict"
        )
    if test.status.phase in ABTEST_TERMINAL:
        outcome = _outcome(test)
        draft.set(ab_test_won=outcome is True)
        return outcome
    where = next((c.message for c in test.status.conditions if c.type == reasons.PROGRESSING), "")
    draft.set(phase=Phase.TESTING, stage="test")
    draft.look_again(FOLLOW_SECONDS)
    draft.condition(reasons.PROGRESSING, "True", reasons.TESTING, f"test {name}: {where or test.status.phase.value}")
    return False


def _outcome(test: ABTest) -> bool | Lost:
    verdict = test.status.verdict
    name = test.metadata.name
    if verdict is None:
        said = next((c.message for c in test.status.conditions if c.type == reasons.PROGRESSING), "no verdict")
        return Lost(Verdict.INCONCLUSIVE, _NEVER_DECIDED.get(test.status.phase, reasons.TEST_FAILED), f"{name}: {said}")
    if verdict.result is AbVerdict.TREATMENT_WINS:
        return True
    rejected = verdict.result is not AbVerdict.INCONCLUSIVE or test.spec.on_inconclusive == "Reject"
    result = Verdict.REJECTED if rejected else Verdict.INCONCLUSIVE
    return Lost(result, verdict.reason.value, f"{name}, {verdict.result.value}: {verdict.message}")


def _generations(test: ABTest) -> set[str | None]:
    return {test.spec.control.generation, test.spec.treatment.generation}


def _widest(observed: ObservedGeneration, serving: Served) -> LimitsSpec:
    """The Generation's limits; of what the router has to let through, the larger one of both arms."""
    own = observed.generation.spec.serving.gateway.limits
    control = observed.generations.get(serving.generation)
    if control is None:
        return own
    other = control.spec.serving.gateway.limits
    return own.model_copy(
        update={
            "body_bytes": max(own.body_bytes, other.body_bytes),
            "timeout_seconds": max(own.timeout_seconds, other.timeout_seconds),
        }
    )


def _manifest(observed: ObservedGeneration, name: str, template: ABTestTemplate, serving: Served) -> Manifest:
    generation = observed.generation
    gateway = generation.spec.serving.gateway
    given = {field: getattr(template, field) for field in ABTestTemplate.model_fields}
    if template.identity == IdentitySpec():
        # By value: the API server writes the defaults out, so nobody can tell what was left out.
        given["identity"] = gateway.identity
    spec = ABTestSpec(
        **given,
        # The router stands before the gateways, and must not be stricter than they are.
        serving=ServingSpec(gateway=gateway.model_copy(update={"limits": _widest(observed, serving)})),
        lineage=generation.spec.lineage,
        control=Variant(generation=serving.generation),
        treatment=Variant(generation=generation.metadata.name),
        artifacts=generation.spec.artifacts,
        runtime=generation.spec.runtime.of_pods,
    )
    return {
        "apiVersion": API_VERSION,
        "kind": "ABTest",
        "metadata": {
            "name": name,
            "namespace": generation.metadata.namespace,
            "labels": labels("Generation", generation.metadata.name, "test", generation.spec.lineage),
            "ownerReferences": [owner_reference("Generation", generation.metadata)],
        },
        "spec": spec.to_json(),
    }
