"""Small builders of what the pure rooms take: objects, results, views."""

from datetime import UTC, datetime
from typing import Any

from flywheel_contract.base import Digest, digest_of
from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_result import Reason, StageResult
from flywheel_contract.stage_spec import StageSpec
from flywheel_contract.stages import OUTPUTS, Stage
from flywheel_operator.model.objects import Generation, RewardModel
from flywheel_operator.model.observed import JobState, JobView, Settings
from flywheel_operator.model.production import ProductionRecord, Served
from flywheel_operator.plan.pipeline import manifest_uri

Raw = dict[str, Any]

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings(
    trainer_image="trainer:1",
    gateway_image="gateway:1",
    router_image="router:1",
    analysis_image="analysis:1",
    image_pull_secrets=("pull",),
)

HEALTHY: dict[Metric, Measurement] = {
    Metric.WIN_RATE: Measurement(value=0.59, low=0.55, high=0.63, n=600),
    Metric.WIN_RATE_USER: Measurement(value=0.60, low=0.55, high=0.65, n=300),
    Metric.WIN_RATE_INTERNAL: Measurement(value=0.58, low=0.53, high=0.63, n=300),
    Metric.WIN_RATE_GAP: Measurement(value=0.02, low=0.0, high=0.08, n=600),
    Metric.PERPLEXITY_RATIO: Measurement(value=1.01, low=0.99, high=1.03, n=400),
    Metric.REPLY_LENGTH_RATIO: Measurement(value=1.1, low=1.0, high=1.2, n=600),
    Metric.LIST_RATE_INCREASE: Measurement(value=0.01, low=-0.01, high=0.03, n=600),
    Metric.EMOJI_RATE_INCREASE: Measurement(value=0.02, low=0.0, high=0.04, n=600),
    Metric.STOCK_PHRASE_RATE_INCREASE: Measurement(value=0.0, low=-0.02, high=0.02, n=600),
    Metric.STYLE_JUMPS: Measurement(value=0, n=600),
    Metric.KL_WITHOUT_REWARD: Measurement(value=0, n=120),
}
"""A healthy launch of the paper: 60 % on user prompts, 58 % on internal ones."""

HEALTHY_REWARD: dict[Metric, Measurement] = {
    Metric.REWARD_ACCURACY: Measurement(value=0.7, low=0.6, high=0.8, n=200),
    Metric.ACCURACY_OVER_SURFACE: Measurement(value=0.15, low=0.05, high=0.25, n=200),
    Metric.SHUFFLED_LABEL_ACCURACY: Measurement(value=0.501, low=0.49, high=0.51, n=200),
    Metric.REWARD_MEAN: Measurement(value=0.25, n=400),
    Metric.REWARD_STD: Measurement(value=2.0, n=400),
}
HEALTHY_SIGNAL: dict[Metric, Measurement] = {
    Metric.SIGNAL_AUC: Measurement(value=0.67, low=0.63, high=0.71, n=300),
    Metric.SIGNAL_AUC_LOWEST_SLICE: Measurement(value=0.62, low=0.55, high=0.69, n=90),
    Metric.SIGNAL_DRIFT: Measurement(value=0.04, n=90),
    Metric.CALIBRATION_ERROR: Measurement(value=0.03, low=0.02, high=0.05, n=300),
    Metric.SHUFFLED_LABEL_AUC: Measurement(value=0.499, n=300),
    Metric.REWARD_MEAN: Measurement(value=-1.5, n=300),
    Metric.REWARD_STD: Measurement(value=0.8, n=300),
}

OVERFITTED = HEALTHY | {
    Metric.WIN_RATE_USER: Measurement(value=0.707, low=0.66, high=0.75, n=300),
    Metric.WIN_RATE_INTERNAL: Measurement(value=0.437, low=0.39, high=0.48, n=300),
    Metric.WIN_RATE_GAP: Measurement(value=0.27, low=0.2, high=0.34, n=600),
}
"""The launch of the paper that lost online."""


def digest(text: str) -> Digest:
    return digest_of(text)


def generation_spec(**changes: Any) -> Raw:  # noqa: ANN401 -- JSON
    return {
        "lineage": "luna",
        "parent": {"model": "hf://owner/base"},
        "artifacts": {"uri": "pvc://artifacts/runs"},
        "data": {"traffic": [{"name": "chats", "origin": "User", "uri": "pvc://data/chats"}]},
        "recipe": {"sft": {}},
        **changes,
    }


def reward_model_spec(**changes: Any) -> Raw:  # noqa: ANN401 -- JSON
    return {
        "baseModel": "hf://owner/base",
        "artifacts": {"uri": "pvc://artifacts/runs"},
        "preferences": [{"name": "pairs", "origin": "Internal", "uri": "pvc://data/pairs"}],
        **changes,
    }


def raw_object(kind: str, name: str, spec: Raw, **metadata: Any) -> Raw:  # noqa: ANN401 -- JSON
    return {
        "apiVersion": "characterflywheel.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "lab", "uid": f"uid-{name}", "generation": 1, **metadata},
        "spec": spec,
    }


def generation(name: str = "gen-1", spec: Raw | None = None, **metadata: Any) -> Generation:  # noqa: ANN401 -- JSON
    return Generation.model_validate(raw_object("Generation", name, spec or generation_spec(), **metadata))


def reward_model(name: str = "rm-1", spec: Raw | None = None, **metadata: Any) -> RewardModel:  # noqa: ANN401 -- JSON
    return RewardModel.model_validate(raw_object("RewardModel", name, spec or reward_model_spec(), **metadata))


def result_of(spec: StageSpec, metrics: dict[Metric, Measurement] | None = None, reused: bool = False) -> StageResult:
    """What a stage answers that went well."""
    resolving = spec.stage is Stage.RESOLVE
    names = [i.name for i in spec.inputs] if resolving else OUTPUTS[spec.stage]
    if metrics is None:
        metrics = {
            Stage.EVALUATE: HEALTHY,
            Stage.REWARD_MODEL: HEALTHY_REWARD,
        }.get(spec.stage, {})
    return StageResult(
        stage=spec.stage,
        reason=Reason.SUCCEEDED,
        message="done",
        manifest_uri=None if resolving else manifest_uri(spec),
        outputs={name: digest(f"{spec.owner}/{spec.stage}/{name}") for name in names},
        metrics=metrics,
        reused=reused,
    )


def job(name: str, state: JobState, **fields: Any) -> dict[str, JobView]:  # noqa: ANN401 -- fields of JobView
    return {name: JobView(name=name, state=state, **fields)}


def served(name: str, **fields: Any) -> Served:  # noqa: ANN401 -- fields of Served
    return Served(**{"generation": name, "uri": f"pvc://models/{name}", "digest": digest(name), "since": T0, **fields})


def record(serving: str | None, *history: Served) -> ProductionRecord:
    return ProductionRecord(serving=None if serving is None else served(serving), history=list(history))
