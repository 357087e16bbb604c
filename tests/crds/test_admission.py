"""What the API server refuses, and with which words: the path of the field and the fix."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from tests.crds import examples
from tests.kubernetes_fixtures import Kubectl, Object

pytestmark = pytest.mark.apiserver


@dataclass(frozen=True)
class Mistake:
    """A merge patch on the example, and what the refusal must say."""

    name: str
    path: str
    fix: str
    spec: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def on(self, example: Object) -> Object:
        return dict(examples.merged(example, {"spec": self.spec, "metadata": self.metadata}))


TRAFFIC = {"name": "staff", "origin": "Internal"}
LOG = {"name": "chats", "origin": "User", "uri": "pvc://claim/runs/luna/traffic/turns"}
SFT_ONLY = {"rejectionSampling": None, "dpo": None, "rl": None}

WITH_TOOLS = {"name": "luna", "systemPrompt": "You are Luna.", "tools": [{"name": "draw", "description": "Draws."}]}
TOOLS_ON_GPUS = {"serving": {"gpus": 1}, "characters": [WITH_TOOLS]}

GENERATION_MISTAKES = [
    Mistake("unknown field", "spec.recipe.ppo", "unknown field", {"recipe": {"ppo": {}}}),
    Mistake(
        "unknown field deep down", "spec.recipe.sft.learnRate", "unknown field", {"recipe": {"sft": {"learnRate": 1}}}
    ),
    Mistake(
        "weight zero", "spec.rewards[0].weight", "greater than 0", {"rewards": [{"rewardModel": "a", "weight": 0}]}
    ),
    Mistake(
        "weight too large",
        "spec.rewards[0].weight",
        "less than or equal to 100",
        {"rewards": [{"rewardModel": "a", "weight": 101}]},
    ),
    Mistake(
        "a reward twice", "spec.rewards[1]", "Duplicate", {"rewards": [{"rewardModel": "a"}, {"rewardModel": "a"}]}
    ),
    Mistake(
        "tools on GPUs without a parser",
        "spec.serving",
        "set serving.toolCallParser",
        TOOLS_ON_GPUS,
    ),
    Mistake(
        "two safety classifiers",
        "spec.curation.safety.model",
        "set one of model and endpoint",
        {"curation": {"safety": {"model": "hf://owner/guard", "endpoint": {"url": "https://example.com/v1"}}}},
    ),
    Mistake(
        "an endpoint that is no URL",
        "spec.serving.gateway.moderation.endpoint.url",
        "should match",
        {"serving": {"gateway": {"moderation": {"endpoint": {"url": "example.com"}}}}},
    ),
    Mistake(
        "days in the wrong order",
        "spec.data.traffic[0].dates.last",
        "must not be before dates.first",
        {"data": {"traffic": [LOG | {"dates": {"first": "2026-03-08", "last": "2026-03-02"}}]}},
    ),
    Mistake(
        "a day that no calendar has",
        "spec.data.traffic[0].dates.first",
        "must be of type date",
        {"data": {"traffic": [LOG | {"dates": {"first": "2026-02-30", "last": "2026-03-02"}}]}},
    ),
    Mistake(
        "feedback of no day",
        "spec.data.traffic[0].feedback",
        "name its folder <artifacts>/<lineage>/traffic/turns, and dates",
        {"data": {"traffic": [{"name": "log", "origin": "User", "uri": "pvc://a/traffic/turns", "feedback": True}]}},
    ),
    Mistake(
        "feedback beside what is no log",
        "spec.data.traffic[0].feedback",
        "name its folder <artifacts>/<lineage>/traffic/turns, and dates",
        {"data": {"traffic": [LOG | {"uri": "pvc://a/chats", "feedback": True}]}},
    ),
    Mistake("no recipe", "spec.recipe", "Required", {"recipe": None}),
    Mistake(
        "several nodes and a bucket",
        "spec.artifacts.uri",
        "name a pvc:// claim with ReadWriteMany",
        {"runtime": {"nodes": 2}, "artifacts": {"uri": "s3://bucket/runs"}},
    ),
    Mistake(
        "a stage on several nodes and a bucket",
        "spec.artifacts.uri",
        "name a pvc:// claim with ReadWriteMany",
        {"runtime": {"stages": [{"stage": "sft", "nodes": 2}]}, "artifacts": {"uri": "s3://bucket/runs"}},
    ),
    Mistake(
        "a stage that cannot share its work",
        "spec.runtime.stages[0].nodes",
        "only these stages share their work among nodes: reward-model, sft, dpo, rl",
        {"runtime": {"stages": [{"stage": "curate", "nodes": 2}]}},
    ),
    Mistake(
        "a volume over ours",
        "spec.runtime.podTemplate.volumes[0].mountPath",
        "mount it somewhere else",
        {"runtime": {"podTemplate": {"volumes": [{"name": "a", "mountPath": "/mnt/claims/a", "claim": "a"}]}}},
    ),
    Mistake(
        "a volume of two kinds",
        "spec.runtime.podTemplate.volumes[0]",
        "set exactly one of claim, configMap, secret and emptyDir",
        {"runtime": {"podTemplate": {"volumes": [{"name": "a", "mountPath": "/a", "claim": "a", "secret": "b"}]}}},
    ),
    Mistake(
        "a volume outside of any folder",
        "spec.runtime.podTemplate.volumes[0].mountPath",
        "should match",
        {"runtime": {"podTemplate": {"volumes": [{"name": "a", "mountPath": "a/../b", "claim": "a"}]}}},
    ),
    Mistake(
        "a utilization of nothing",
        "spec.dryRun.trainingUtilization",
        "greater than 0",
        {"dryRun": {"trainingUtilization": 0}},
    ),
    Mistake("empty recipe", "spec.recipe", "set at least one of sft, dpo and rl", {"recipe": SFT_ONLY | {"sft": None}}),
    Mistake(
        "recipe that only samples",
        "spec.recipe",
        "set at least one of sft, dpo and rl",
        {"recipe": {"sft": None, "dpo": None, "rl": None}},
    ),
    Mistake(
        "gate on a metric that no stage reports",
        "spec.gates.rules[0].metric",
        "supported values",
        {"gates": {"rules": [{"name": "happy", "metric": "happiness", "min": 1}]}},
    ),
    Mistake(
        "gate on a metric of another kind",
        "spec.gates.rules[0].metric",
        "supported values",
        {"gates": {"rules": [{"name": "judge", "metric": "rewardAccuracy", "min": 0.6}]}},
    ),
    Mistake(
        "gate on a metric of a stage outside the recipe",
        "spec.gates.rules",
        "only these stages report: rl; add one of them to spec.recipe or drop the gate",
        {"recipe": SFT_ONLY, "gates": {"rules": [{"name": "kl", "metric": "klToPolicy", "max": 1}]}},
    ),
    Mistake(
        "gate without a bound",
        "spec.gates.rules[0]",
        "min or max",
        {"gates": {"rules": [{"name": "w", "metric": "winRate"}]}},
    ),
    Mistake(
        "gate that nothing can pass",
        "spec.gates.rules[0]",
        "min must not be greater than max",
        {"gates": {"rules": [{"name": "w", "metric": "winRate", "min": 2, "max": 1}]}},
    ),
    Mistake(
        "itself as parent",
        "spec.parent.generation",
        "name another one",
        {"parent": {"model": None, "generation": "luna-1"}},
    ),
    Mistake("two parents", "spec.parent", "exactly one of generation and model", {"parent": {"generation": "luna-0"}}),
    Mistake("no parent", "spec.parent", "exactly one of generation and model", {"parent": {"model": None}}),
    Mistake(
        "dpo without pairs",
        "spec.recipe",
        "add recipe.rejectionSampling or data.preferences",
        {"recipe": {"rejectionSampling": None, "rl": None}},
    ),
    Mistake(
        "a group of replies that no batch holds",
        "spec.recipe.rl.numGenerations",
        "must be a multiple of numGenerations",
        {"recipe": {"rl": {"batchSize": 6, "numGenerations": 4}}},
    ),
    Mistake(
        "online DPO without a scale",
        "spec.recipe.rl.beta",
        "OnlineDPO needs a beta above 0",
        {"recipe": {"rl": {"algorithm": "OnlineDPO", "beta": 0}}},
    ),
    Mistake(
        "a policy of the pool that is nowhere",
        "spec.recipe.rejectionSampling.pool[0]",
        "set exactly one of model and endpoint",
        {"recipe": {"sft": {}, "rejectionSampling": {"pool": [{"name": "large"}]}}},
    ),
    Mistake("rl without rewards", "spec.rewards", "name at least one RewardModel", {"rewards": []}),
    Mistake(
        "outputs that climb out",
        "spec.artifacts.uri",
        "without '..'",
        {"artifacts": {"uri": "pvc://artifacts/../other"}},
    ),
    Mistake(
        "data that climbs out",
        "spec.data.traffic[0].uri",
        "without '..'",
        {"data": {"traffic": [TRAFFIC | {"uri": "pvc://artifacts/a/.."}]}},
    ),
    Mistake(
        "sft data that climbs out",
        "spec.data.sft[0].uri",
        "without '..'",
        {"data": {"sft": [{"name": "a", "uri": "s3://bucket/../other"}]}},
    ),
    Mistake(
        "parent that climbs out", "spec.parent.model", "without '..'", {"parent": {"model": "pvc://models/../other"}}
    ),
    Mistake(
        "general data that climbs out",
        "spec.evaluation.general",
        "without '..'",
        {"evaluation": {"general": "pvc://models/../other"}},
    ),
    Mistake("an empty part", "spec.artifacts.uri", "plain path", {"artifacts": {"uri": "pvc://artifacts/a//b"}}),
    Mistake("scheme that we do not know", "spec.artifacts.uri", "pvc://", {"artifacts": {"uri": "ftp://host/path"}}),
    Mistake("no traffic", "spec.data.traffic", "at least 1 items", {"data": {"traffic": []}}),
    Mistake("lineage that is taken", "spec.lineage", "reward-models is taken", {"lineage": "reward-models"}),
    Mistake("lineage that is no Service's name", "spec.lineage", "should match", {"lineage": "Luna.1"}),
    Mistake("lineage that is too long", "spec.lineage", "50", {"lineage": "l" * 51}),
    Mistake("name with dots", "metadata.name", "at most 50 characters and no dots", metadata={"name": "luna.1"}),
    Mistake("name that no Service can have", "metadata.name", "must begin with a letter", metadata={"name": "7b-luna"}),
    Mistake("name that is too long", "metadata.name", "at most 50 characters and no dots", metadata={"name": "l" * 51}),
    Mistake(
        "character with two prompts",
        "spec.characters[0]",
        "set one of systemPrompt and systemPromptFrom",
        {"characters": [{"name": "luna", "systemPrompt": "a", "systemPromptFrom": {"name": "a", "key": "b"}}]},
    ),
    Mistake(
        "character that says nothing",
        "spec.characters[0]",
        "or a description",
        {"characters": [{"name": "luna", "rules": ["Be kind."]}]},
    ),
    Mistake(
        "tool with a name that templates cannot write",
        "spec.characters[0].tools[0].name",
        "should match",
        {"characters": [{"name": "luna", "systemPrompt": "a", "tools": [{"name": "draw it", "description": ""}]}]},
    ),
    Mistake(
        "learning rate of the wrong type",
        "spec.recipe.sft.learningRate",
        "number",
        {"recipe": {"sft": {"learningRate": "high"}}},
    ),
]

REWARD_MODEL_MISTAKES = [
    Mistake("unknown field", "spec.model", "unknown field", {"model": "hf://a/b"}),
    Mistake("no pairs", "spec.preferences", "learn from preferences", {"preferences": []}),
    Mistake("signal of a judge of pairs", "spec.signal", "with that type", {"signal": {"name": "continued"}}),
    Mistake("traffic for a judge of pairs", "spec.signal", "with that type", {"type": "Pairwise", "traffic": [LOG]}),
    Mistake("signal without its name", "spec.signal", "with that type", {"type": "UserSignal", "traffic": [LOG]}),
    Mistake(
        "user signal from pairs",
        "spec.preferences",
        "UserSignal do not",
        {"type": "UserSignal", "traffic": [LOG], "signal": {"name": "continued"}},
    ),
    Mistake(
        "gate on a metric of another type",
        "spec.gates.rules",
        "no model of type Pointwise reports",
        {"gates": {"rules": [{"name": "auc", "metric": "signalAuc", "min": 0.5}]}},
    ),
    Mistake("unknown type", "spec.type", "supported values", {"type": "Listwise"}),
    Mistake(
        "gate on a metric of another kind",
        "spec.gates.rules[0].metric",
        "supported values",
        {"gates": {"rules": [{"name": "win", "metric": "winRate", "min": 0.5}]}},
    ),
    Mistake("base that climbs out", "spec.baseModel", "without '..'", {"baseModel": "pvc://models/../other"}),
    Mistake("name with dots", "metadata.name", "at most 50 characters and no dots", metadata={"name": "luna.likes"}),
]


BOTH = "set exactly one of generation, model and service"

ABTEST_MISTAKES = [
    Mistake("tools on GPUs without a parser", "spec.serving", "set serving.toolCallParser", TOOLS_ON_GPUS),
    Mistake(
        "half of the tables in a database",
        "spec.analysis",
        "set exposures and events together",
        {"analysis": {"exposures": "postgres://analyst@warehouse/chat?table=exposures"}},
    ),
    Mistake("an arm that is nothing", "spec.control", BOTH, {"control": {"generation": None}}),
    Mistake("an arm that is two things", "spec.control", BOTH, {"control": {"model": "pvc://models/a"}}),
    Mistake(
        "the same twice",
        "spec.treatment",
        "control and treatment are the same",
        {"treatment": {"model": None, "generation": "luna-1"}},
    ),
    Mistake("too many users", "spec.allocation.control", "less than or equal to 50", {"allocation": {"control": 60}}),
    Mistake("a share too fine", "spec.allocation", "at most two decimals", {"allocation": {"control": 3.333}}),
    Mistake("a duration of words", "spec.duration", "should match", {"duration": "a week"}),
    Mistake("half a day too much", "spec.duration", "whole number of dayLength", {"duration": "36h"}),
    Mistake("a day too long", "spec.dayLength", "24h, or shorter for a trial", {"dayLength": "48h", "duration": "96h"}),
    Mistake("shorter than a day", "spec.duration", "at least dayLength", {"duration": "12h"}),
    Mistake("an unknown primary", "spec.primaries", "neither a built-in metric", {"primaries": ["winRate"]}),
    Mistake("no primary", "spec.primaries", "at least 1", {"primaries": []}),
    Mistake(
        "an unknown guardrail",
        "spec.guardrails",
        "neither a built-in",
        {"guardrails": [{"metric": "x", "margin": 0.1}]},
    ),
    Mistake(
        "a guardrail without a margin",
        "spec.guardrails",
        "needs margin or absoluteMargin",
        {"guardrails": [{"metric": "latencyMean"}]},
    ),
    Mistake(
        "a metric of a built-in name",
        "spec.metrics",
        "the name of a built-in one",
        {"metrics": [{"name": "activeShare", "numerator": "count(*)"}]},
    ),
    Mistake(
        "a proxy that is no address",
        "spec.identity.trustedProxies[0]",
        "write an address or a CIDR",
        {"identity": {"trustedProxies": ["ingress"]}},
    ),
    Mistake(
        "a header with another meaning",
        "spec.identity.userHeader",
        "has another meaning",
        {"identity": {"userHeader": "X-Flywheel-User"}},
    ),
    Mistake("a salt with a quote", "spec.salt", "should match", {"salt": 'a"b'}),
]


@pytest.mark.parametrize("mistake", ABTEST_MISTAKES, ids=str)
def test_a_test_with_a_mistake_is_refused(cluster_kubectl: Kubectl, mistake: Mistake) -> None:
    refusal = cluster_kubectl.refusal(mistake.on(examples.ab_test(cluster_kubectl.namespace)))
    assert mistake.path in refusal
    assert mistake.fix in refusal


@pytest.mark.parametrize("mistake", GENERATION_MISTAKES, ids=str)
def test_a_generation_with_a_mistake_is_refused(cluster_kubectl: Kubectl, mistake: Mistake) -> None:
    refusal = cluster_kubectl.refusal(mistake.on(examples.generation(cluster_kubectl.namespace)))
    assert mistake.path in refusal
    assert mistake.fix in refusal


@pytest.mark.parametrize("mistake", REWARD_MODEL_MISTAKES, ids=str)
def test_a_reward_model_with_a_mistake_is_refused(cluster_kubectl: Kubectl, mistake: Mistake) -> None:
    refusal = cluster_kubectl.refusal(mistake.on(examples.reward_model(cluster_kubectl.namespace)))
    assert mistake.path in refusal
    assert mistake.fix in refusal


def test_server_side_apply_refuses_unknown_fields_too(cluster_kubectl: Kubectl) -> None:
    """Argo CD and Flux apply so; the path is the same, the words are the API server's."""
    wrong = examples.merged(examples.generation(cluster_kubectl.namespace), {"spec": {"recipe": {"ppo": {}}}})
    done = cluster_kubectl.run("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(wrong))
    assert done.returncode != 0
    assert ".spec.recipe.ppo: field not declared in schema" in done.stderr


@pytest.mark.parametrize("file", sorted(p.name for p in examples.EXAMPLES.glob("*.yaml")))
def test_every_example_is_accepted(kubectl: Kubectl, file: str) -> None:
    """In a namespace of its own: that of the examples may not be there."""
    text = (examples.EXAMPLES / file).read_text().replace("namespace: characters", f"namespace: {kubectl.namespace}")
    kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", stdin=text)


def test_tools_on_gpus_with_a_parser_are_accepted(cluster_kubectl: Kubectl) -> None:
    serving = {"gpus": 1, "toolCallParser": "hermes"}
    good = examples.merged(
        examples.generation(cluster_kubectl.namespace), {"spec": {**TOOLS_ON_GPUS, "serving": serving}}
    )
    cluster_kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", stdin=yaml.safe_dump(good))


def test_a_uri_may_have_dots_that_lead_nowhere(cluster_kubectl: Kubectl) -> None:
    uris = {"spec": {"artifacts": {"uri": "pvc://a.b/runs..old/v1.2/...x"}, "parent": {"model": "hf://o.p/n.m@v1.0"}}}
    good = examples.merged(examples.generation(cluster_kubectl.namespace), uris)
    cluster_kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", stdin=yaml.safe_dump(good))
