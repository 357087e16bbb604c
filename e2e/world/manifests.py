"""The RewardModels and Generations of the cluster tests: real stages on the tiny model, few steps each."""

from typing import Any, Final

from e2e.kubectl import Manifest

API_VERSION: Final = "characterflywheel.dev/v1alpha1"
CLAIM: Final = "artifacts"
ROOT: Final = f"pvc://{CLAIM}"
POD_RUNTIME: Final[Manifest] = {
    # Two cores carry the whole cluster: one thread per process is quicker than two that fight.
    "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
    "terminationGracePeriodSeconds": 60,
}
RUNTIME: Final[Manifest] = {**POD_RUNTIME, "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}}
RETRY: Final[Manifest] = {"maxRetries": 3, "backoffSeconds": 1}
SOURCES: Final = [
    {"name": "annotators", "origin": "Internal", "uri": f"{ROOT}/data/traffic-internal.jsonl"},
    {"name": "chats", "origin": "User", "uri": f"{ROOT}/data/traffic-user.jsonl"},
]
FULL_RECIPE: Final[Manifest] = {
    "rejectionSampling": {"maxPrompts": 24, "samplesPerPrompt": 2, "maxNewTokens": 16, "batchSize": 24},
    "sft": {"maxSteps": 12, "batchSize": 8, "maxLength": 128, "learningRate": 0.003, "saveSteps": 4},
    "dpo": {"maxSteps": 6, "batchSize": 4, "maxLength": 128, "learningRate": 0.0003, "saveSteps": 2},
    "rl": {"maxSteps": 4, "batchSize": 8, "numGenerations": 4, "maxNewTokens": 12, "maxPrompts": 16, "saveSteps": 1},
}
SHORT_RECIPE: Final[Manifest] = {"sft": {"maxSteps": 6, "batchSize": 8, "maxLength": 128, "learningRate": 0.003}}
EVALUATION: Final[Manifest] = {
    "maxPromptsPerOrigin": 16,
    "maxNewTokens": 12,
    "batchSize": 32,
    "bootstrapSamples": 200,
}
LENIENT: Final[Manifest] = {
    # A dozen steps make the tiny model no better: these tests are about what follows from a verdict.
    "defaults": "Disabled",
    "rules": [{"name": "measured", "metric": "winRate", "min": 0.0, "minSamples": 10}],
}
IMPOSSIBLE: Final[Manifest] = {
    "defaults": "Disabled",
    "rules": [{"name": "all-won", "metric": "winRate", "min": 0.999}],
}


def reward_model(name: str, **spec: Any) -> Manifest:  # noqa: ANN401 -- fields of the spec
    """A RewardModel on the tiny preferences."""
    return {
        "apiVersion": API_VERSION,
        "kind": "RewardModel",
        "metadata": {"name": name},
        "spec": {
            "baseModel": f"{ROOT}/model",
            "artifacts": {"uri": f"{ROOT}/runs"},
            "preferences": [
                {"name": "internal", "origin": "Internal", "uri": f"{ROOT}/data/preferences-internal.jsonl"},
                {"name": "user", "origin": "User", "uri": f"{ROOT}/data/preferences-user.jsonl"},
            ],
            "training": {"maxSteps": 30, "batchSize": 16, "learningRate": 0.0005, "maxLength": 128},
            "gates": {"rules": [{"name": "accuracy", "metric": "rewardAccuracy", "min": 0.5, "minSamples": 20}]},
            "runtime": RUNTIME,
            "retryPolicy": RETRY,
            **spec,
        },
    }


def generation(name: str, lineage: str, **spec: Any) -> Manifest:  # noqa: ANN401 -- fields of the spec
    """A Generation on the tiny traffic; by default the short recipe with gates that anything measured passes."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Generation",
        "metadata": {"name": name},
        "spec": {
            "lineage": lineage,
            "parent": {"model": f"{ROOT}/model"},
            "artifacts": {"uri": f"{ROOT}/runs"},
            "data": {"traffic": SOURCES},
            "rewards": [{"rewardModel": "tiny"}],
            "recipe": SHORT_RECIPE,
            "evaluation": EVALUATION,
            "gates": LENIENT,
            "serving": {"drainSeconds": 10, "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}}},
            "runtime": RUNTIME,
            "retryPolicy": RETRY,
            **spec,
        },
    }
