"""One Generation with every part of the method on a real cluster: filters, mixture, online RL, judge, benchmarks."""

import json
from typing import Any

import pytest

from e2e import tiny_data
from e2e.kubectl import Manifest
from e2e.world.manifests import LENIENT, ROOT, RUNTIME, SOURCES, generation, reward_model
from e2e.world.world import World, stage

pytestmark = [pytest.mark.cluster, pytest.mark.full]

CANARY = "rebecca.canary@example.org"
TASK = """\
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: colours.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "What colour is {{thing}}?"
doc_to_choice: [red, green, blue, white]
doc_to_target: "{{colour}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
SHORT: Manifest = {"maxNewTokens": 12, "batchSize": 16}
TRAIN: Manifest = {"batchSize": 4, "maxLength": 128, "learningRate": 0.001}
WHOLE: Manifest = {
    "characters": [
        {
            "name": tiny_data.CHARACTER,
            "systemPrompt": tiny_data.SYSTEM_PROMPT,
            "rules": ["Never be rude."],
            "examples": [{"user": "Do you like tea?", "reply": "Oh, I love tea!"}],
        }
    ],
    "data": {
        "traffic": SOURCES,
        "preferences": [{"name": "people", "origin": "Internal", "uri": f"{ROOT}/data/preferences-internal.jsonl"}],
        "sft": [{"name": "written", "uri": f"{ROOT}/data/written.jsonl", "weight": 0.5}],
    },
    "curation": {
        "privacy": {"mode": "Redact"},
        "nearDuplicates": {"enabled": False},
        "diversity": {"similarity": 1.0, "keepFraction": 0.9},
        "constraints": {"dimensions": [{"name": "turns"}]},
    },
    "recipe": {
        "rejectionSampling": {
            **SHORT,
            "maxPrompts": 16,
            "samplesPerPrompt": 2,
            "pool": [{"name": "sibling", "model": f"{ROOT}/model", "samplesPerPrompt": 1}],
        },
        "sft": {**TRAIN, "maxSteps": 4, "packing": True},
        "dpo": {**TRAIN, "maxSteps": 2, "reference": "Precomputed", "pairFilter": {"maxLengthRatio": 8}},
        "rl": {
            "algorithm": "OnlineDPO",
            "batchSize": 4,
            "maxNewTokens": 12,
            "maxSteps": 2,
            "maxPrompts": 8,
            "promptSelection": {"by": "LowReward", "samples": 2},
        },
    },
    "evaluation": {
        **SHORT,
        "maxPromptsPerOrigin": 12,
        "bootstrapSamples": 200,
        "judge": {"questions": ["Preachy", "InstructionFollowing"]},
        "judgeModel": f"{ROOT}/model",
        "benchmarks": {"tasks": ["colours"], "limit": 8},
        "benchmarkTasks": f"{ROOT}/tasks",
    },
    "style": {"patterns": [{"name": "sea", "pattern": "sea"}]},
    "runtime": {**RUNTIME, "reportTo": ["TensorBoard"]},
}


@pytest.fixture(scope="module")
def whole(world: World) -> Manifest:
    """The status of the Generation, once it has ended."""
    if world.kubectl.get("rm", "tiny") is None:
        world.kubectl.apply(reward_model("tiny"))
    written: list[dict[str, Any]] = tiny_data.traffic(20, seed=9)
    for row in written[:4]:
        row["messages"][-1]["content"] += f" Write to {CANARY}."
    documents = [{"thing": f"thing {number}", "colour": number % 4} for number in range(8)]
    put(world, "data/written.jsonl", lines(written))
    put(world, "tasks/colours.yaml", TASK)
    put(world, "tasks/colours.jsonl", lines(documents))
    world.kubectl.apply(generation("whole", "whole", gates=LENIENT, **WHOLE))
    return world.ended("whole", 900)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def put(world: World, name: str, text: str) -> None:
    """Writes a file onto the claim."""
    folder = f"/mnt/claim/{name}".rsplit("/", 1)[0]
    world.loader.run("sh", "-c", f"mkdir -p {folder} && cat > /mnt/claim/{name} <<'X'\n{text}X\n")


def left(world: World, status: Manifest, name: str, file: str = "manifest.json") -> Any:  # noqa: ANN401 -- JSON
    """A JSON file that a stage left."""
    folder = stage(status, name)["manifestUri"].removeprefix(f"{ROOT}/").removesuffix("manifest.json")
    return json.loads(world.loader.run("cat", f"/mnt/claim/{folder}{file}"))


def test_it_goes_through_to_its_verdict(whole: Manifest) -> None:
    assert whole["verdict"]["result"] == "Promoted", whole
    assert whole["report"].endswith("report.html")


def test_curation_filters_by_meaning_and_matches_shares(world: World, whole: Manifest) -> None:
    counts = left(world, whole, "curate")["counts"]
    assert counts["diversityClustersUser"] > 1
    assert counts["droppedDiversity"] > 0
    assert counts["constraintsWanted"] > 0
    assert "constraints" in left(world, whole, "curate", "prompts/_report.json")


def test_replies_come_from_the_pool_and_the_mixture_says_its_shares(world: World, whole: Manifest) -> None:
    assert "sibling" in json.dumps(left(world, whole, "rejection-sample"))
    sft = left(world, whole, "sft")["counts"]
    assert sft["redacted-privacy"] == 4
    assert 0 < sft["rows-written"] <= 10
    assert "mixture: " in stage(whole, "sft")["message"]
    script = f"grep -rlF {CANARY} /mnt/claim/runs/whole; test $? = 1"
    assert world.loader.run("sh", "-c", script) == ""


def test_online_dpo_says_what_became_of_the_importance_sampling(whole: Manifest) -> None:
    assert "NotApplicable" in stage(whole, "rl")["message"], stage(whole, "rl")


def test_judge_benchmarks_and_own_style_stand_in_the_report(world: World, whole: Manifest) -> None:
    report = left(world, whole, "evaluate", "report/report.json")
    assert [task["task"] for task in report["benchmarks"]] == ["colours"]
    assert set(report["judge"]["questions"]) == {"Preachy", "InstructionFollowing"}
    assert "sea" in report["artefacts"]
    assert set(report["byOrigin"]) == {"Internal", "User"}
    assert report["models"]["checkpoints"] == ["sft", "dpo"]


def test_trackers_leave_their_files(world: World, whole: Manifest) -> None:
    for name in ("sft", "dpo", "rl"):
        folder = stage(whole, name)["manifestUri"].removeprefix(f"{ROOT}/").removesuffix("manifest.json")
        found = world.loader.run("sh", "-c", f"find /mnt/claim/{folder} -name 'events.out.tfevents*'")
        assert found.strip(), name
