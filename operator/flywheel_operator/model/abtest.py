"""The API of an ABTest: two arms of live users, and the rule that says what came out."""

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from flywheel_contract.base import Name, Record, list_map
from flywheel_contract.durations import Duration
from flywheel_contract.experiment import (
    BUILTIN_NAMES,
    MAX_GUARDRAILS,
    MAX_PRIMARIES,
    Allocation,
    Guardrail,
    MetricDefinition,
    MetricName,
)
from flywheel_operator.model.common import ArtifactsSpec, RetryPolicy, SafeUri
from flywheel_operator.model.experiment import DEFAULT_GUARDRAILS, DEFAULT_PRIMARIES, DEFAULT_TARGET_LIFT
from flywheel_operator.model.rules import cel, frozen_rules, unique_list, validations
from flywheel_operator.model.runtime import PodRuntime, Resources, ShortText
from flywheel_operator.model.serving import TOOLS_NEED_A_PARSER, CharacterSpec, IdentitySpec, ServingSpec

DimensionName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", max_length=40)]


class ServiceRef(Record):
    """An OpenAI-compatible server that runs already."""

    name: Name = Field(description="A Service in the same namespace.")
    port: int = Field(80, ge=1, le=65535, description="Its port.")


class Variant(Record):
    """What an arm is served by."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "[has(self.generation), has(self.model), has(self.service)].filter(x, x).size() == 1",
                "set exactly one of generation, model and service",
            )
        )
    )
    generation: Name | None = Field(None, description="A Generation of the lineage that has a candidate.")
    model: SafeUri | None = Field(None, description="A model by URI; the test starts a server for it.")
    service: ServiceRef | None = Field(None, description="A server that runs already; a gateway is put before it.")


class RouterSpec(Record):
    """The router that splits the users."""

    replicas: int = Field(2, ge=1, le=100, description="Pods of the router.")
    resources: Resources = Field(
        default_factory=lambda: Resources(requests={"cpu": "100m", "memory": "64Mi"}, limits={"memory": "256Mi"}),
        description="Resources of a pod.",
    )
    drain_seconds: int = Field(
        600, ge=1, le=86400, description="A stream that runs when the configuration changes may go on for this long."
    )


class AnalysisJobSpec(Record):
    """Where the analysis reads, and how its Jobs run."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "has(self.exposures) == has(self.events)",
                "set exposures and events together: all tables are files, or all are of one database",
            )
        )
    )
    exposures: ShortText | None = Field(
        None, description="File, folder or table URL of the exposures, instead of the gateways' log."
    )
    events: ShortText | None = Field(None, description="Likewise for the events.")
    covariates: ShortText | None = Field(None, description="Likewise for the covariates.")
    resources: Resources = Field(
        default_factory=lambda: Resources(requests={"cpu": "100m", "memory": "256Mi"}, limits={"memory": "2Gi"}),
        description="Resources of its pod.",
    )
    settle: Duration = Field(
        "3m", description="Wait after the end of a day, so that the gateways have closed what they wrote of it."
    )


class ABTestTemplate(Record):
    """What a test measures and how it decides; a Generation gives the arms."""

    allocation: Allocation = Field(
        default_factory=Allocation, description="Shares of the users that are enrolled; the others get production."
    )
    salt: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=63)] | None = Field(
        None, description="Draws the arms; left out, the object's uid, so that every test draws anew."
    )
    duration: Duration = Field("168h", description="Length of the test; a whole number of days.")
    day_length: Duration = Field(
        "24h",
        description="Length of a day: 24h means whole UTC days. Shorter only for trials, which status marks as such.",
    )
    metrics: list[MetricDefinition] = Field(
        default_factory=list, max_length=8, description="Metrics of your own.", json_schema_extra=unique_list("name")
    )
    primaries: list[MetricName] = Field(
        default_factory=lambda: list(DEFAULT_PRIMARIES),
        min_length=1,
        max_length=MAX_PRIMARIES,
        description="What must go up: one of them, with all guardrails passed, wins.",
    )
    guardrails: list[Guardrail] = Field(
        default_factory=lambda: list(DEFAULT_GUARDRAILS),
        max_length=MAX_GUARDRAILS,
        description="What must not get worse.",
        json_schema_extra=unique_list("metric"),
    )
    dimensions: list[DimensionName] = Field(
        default_factory=list, max_length=8, description="Columns to explore by; never part of the verdict."
    )
    min_users_per_arm: int = Field(100, ge=2, le=10**9, description="Fewer exposed users end Inconclusive.")
    target_lift: float = Field(
        DEFAULT_TARGET_LIFT,
        gt=0,
        le=10,
        description="The lift that it shall be able to see; a condition says whether it can.",
    )
    on_inconclusive: Literal["Keep", "Extend", "Reject"] = Field(
        "Keep",
        description="Keep: production stays, the Generation ends Inconclusive. Extend: once more the same duration, "
        "then Keep. Reject: the Generation ends Rejected.",
    )
    on_no_data: Literal["Inconclusive", "Fail"] = Field(
        "Inconclusive", description="What a test without data, or one that could not be analysed, ends as."
    )
    identity: IdentitySpec = Field(default_factory=IdentitySpec, description="Who says who a user is.")
    router: RouterSpec = Field(default_factory=RouterSpec, description="The router.")
    analysis: AnalysisJobSpec = Field(default_factory=AnalysisJobSpec, description="The analysis.")
    pause_treatment: bool = Field(
        False, description="Production serves the treatment's users for now; they stay in their arm."
    )


_TEMPLATE_RULES: Final = (
    cel(
        "[self.allocation.control, self.allocation.treatment]"
        ".all(p, p * 100.0 - double(int(p * 100.0 + 0.001)) < 0.001)",
        "shares have at most two decimals: the router splits by hundredths of a percent",
        ".allocation",
    ),
    cel(
        "duration(self.dayLength) > duration('0s') && duration(self.duration) >= duration(self.dayLength)",
        "duration must be at least dayLength, and both more than zero",
        ".duration",
    ),
    cel(
        "duration(self.dayLength) <= duration('24h')",
        "dayLength is 24h, or shorter for a trial",
        ".dayLength",
    ),
    cel(
        "duration(self.dayLength) <= duration('0s') || "
        "duration(self.duration).getSeconds() % duration(self.dayLength).getSeconds() == 0",
        "duration must be a whole number of dayLength",
        ".duration",
    ),
    cel(
        "duration(self.duration).getSeconds() <= 400 * duration(self.dayLength).getSeconds()",
        "a test has at most 400 days",
        ".duration",
    ),
    cel(
        "self.primaries.all(p, p in [{known}] || self.metrics.exists(m, m.name == p))".format(
            known=", ".join(f"'{n}'" for n in BUILTIN_NAMES)
        ),
        "a primary is neither a built-in metric nor one of spec.metrics",
        ".primaries",
    ),
    cel(
        "self.guardrails.all(g, g.metric in [{known}] || self.metrics.exists(m, m.name == g.metric))".format(
            known=", ".join(f"'{n}'" for n in BUILTIN_NAMES)
        ),
        "a guardrail's metric is neither a built-in one nor one of spec.metrics",
        ".guardrails",
    ),
    cel(
        "self.guardrails.all(g, has(g.margin) || has(g.absoluteMargin))",
        "a guardrail needs margin or absoluteMargin, or both",
        ".guardrails",
    ),
    cel(
        "self.metrics.all(m, !(m.name in [{known}]))".format(known=", ".join(f"'{n}'" for n in BUILTIN_NAMES)),
        "a metric of your own has the name of a built-in one: choose another",
        ".metrics",
    ),
)
ABTestTemplate.model_config["json_schema_extra"] = validations(*_TEMPLATE_RULES)


class ABTestSpec(ABTestTemplate):
    """A test of two arms on live users. Unchangeable once its window has begun, but for pauseTreatment."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            *_TEMPLATE_RULES,
            cel(
                "!(has(self.control.generation) && has(self.treatment.generation) && "
                "self.control.generation == self.treatment.generation) && "
                "!(has(self.control.model) && has(self.treatment.model) && self.control.model == self.treatment.model)"
                " && !(has(self.control.service) && has(self.treatment.service) && "
                "self.control.service.name == self.treatment.service.name && "
                "self.control.service.port == self.treatment.service.port)",
                "control and treatment are the same",
                ".treatment",
            ),
            TOOLS_NEED_A_PARSER,
        )
    )
    lineage: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=50)] = Field(
        description="The product line whose users take part; its public Service has this name."
    )
    control: Variant = Field(description="What the treatment is compared with: what is in production.")
    treatment: Variant = Field(description="What is tried.")
    artifacts: ArtifactsSpec = Field(description="Where the log of the users and the reports lie.")
    characters: list[CharacterSpec] = Field(
        default_factory=list,
        max_length=16,
        description="Characters, for arms that are no Generations.",
        json_schema_extra=list_map("name"),
    )
    serving: ServingSpec = Field(
        default_factory=ServingSpec, description="Model servers and gateways of arms that are no Generations."
    )
    runtime: PodRuntime = Field(default_factory=PodRuntime, description="How the pods run.")
    retry_policy: RetryPolicy = Field(default_factory=RetryPolicy, description="Retries of a broken analysis.")


FROZEN: Final[dict[str, bool]] = {
    name: field.is_required() or field.default_factory is not None or field.default is not None
    for name, field in ABTestSpec.model_fields.items()
    if name != "pause_treatment"
}
"""Spec fields that cannot change after the start -> whether they are always there (required or defaulted)."""

ROOT_RULES: Final = frozen_rules(FROZEN, "ABTest")
