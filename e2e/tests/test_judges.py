"""Judges of all three types on a real cluster: two make up the reward, one reads both replies; and one's own data."""

import json
from typing import Any

import pytest

from e2e import tiny_data
from e2e.kubectl import Manifest
from e2e.world.manifests import LENIENT, ROOT, SHORT_RECIPE, SOURCES, generation, reward_model
from e2e.world.world import World, message, stage

pytestmark = [pytest.mark.cluster, pytest.mark.full]

CANARY = "rebecca.canary@example.org"
SIGNAL: Manifest = {
    "type": "UserSignal",
    "signal": {"name": "continues"},
    "preferences": [],
    "traffic": SOURCES,
    # The tiny users go on at random, so there is nothing to learn: these gates only want both to be measured.
    "gates": {
        "defaults": "Disabled",
        "rules": [
            {"name": "measured-over-time", "metric": "signalAucLowestSlice", "min": 0.0, "minSamples": 2},
            {
                "name": "drift-measured",
                "metric": "signalDrift",
                "max": 100.0,
                "compare": "Estimate",
                "minSamples": 2,
            },
        ],
    },
}
PAIRWISE: Manifest = {
    "type": "Pairwise",
    # Its default gates, on fewer users than they ask for.
    "gates": {
        "rules": [
            {"name": "accuracy", "metric": "rewardAccuracy", "min": 0.5, "minSamples": 20},
            {"name": "calibration", "metric": "calibrationError", "max": 0.2, "compare": "Estimate", "minSamples": 20},
        ]
    },
}


@pytest.fixture(scope="module")
def judges(world: World) -> World:
    """`tiny` for the taste, `goes-on` for the signal, `duel` for pairs."""
    wanted = {"tiny": {}, "goes-on": SIGNAL, "duel": PAIRWISE}
    for name, spec in wanted.items():
        if world.kubectl.get("rm", name) is None:
            world.kubectl.apply(reward_model(name, **spec))
    for name in wanted:
        world.kubectl.wait("rm", name, lambda o: o.get("status", {}).get("phase") == "Ready", 600)
    return world


@pytest.fixture(scope="module")
def judged(judges: World) -> Manifest:
    """The status of a Generation that all of them judge, with fixes of which some hold an identifier."""
    fixes: list[dict[str, Any]] = tiny_data.traffic(20, seed=9)
    for row in fixes[:4]:
        row["messages"][-1]["content"] += f" Write to {CANARY}."
    lines = "".join(json.dumps(row) + "\n" for row in fixes)
    judges.loader.run("sh", "-c", f"cat > /mnt/claim/data/fixes.jsonl <<'X'\n{lines}X\n")
    judges.kubectl.apply(
        generation(
            "judged",
            "judged",
            data={"traffic": SOURCES, "sft": [{"name": "fixes", "uri": f"{ROOT}/data/fixes.jsonl"}]},
            rewards=[{"rewardModel": "tiny", "weight": 1}, {"rewardModel": "goes-on", "weight": 0.2}],
            recipe={"rejectionSampling": {"maxPrompts": 16, "samplesPerPrompt": 2, "maxNewTokens": 12}, **SHORT_RECIPE},
            evaluation={
                "maxPromptsPerOrigin": 16,
                "maxNewTokens": 12,
                "batchSize": 32,
                "bootstrapSamples": 200,
                "pairwise": {"rewardModel": "duel"},
            },
            gates={
                "defaults": "Disabled",
                "rules": [
                    *LENIENT["rules"],
                    {"name": "both-judges", "metric": "pairwiseDisagreement", "max": 1.0, "minSamples": 10},
                ],
            },
        )
    )
    return judges.ended("judged", 600)


def test_each_judge_measures_what_it_is_for(judged: Manifest) -> None:
    assert judged["verdict"]["result"] == "Promoted", judged
    gates = {gate["name"]: gate for gate in judged["gates"]}
    assert gates["both-judges"]["verdict"] == "Passed", gates
    assert 0 <= gates["both-judges"]["value"] <= 1
    assert gates["both-judges"]["n"] >= 10


def test_a_judge_of_pairs_is_no_reward(judges: World) -> None:
    judges.kubectl.apply(generation("crossed", "crossed", rewards=[{"rewardModel": "duel"}]))
    found = judges.kubectl.wait(
        "gen", "crossed", lambda o: "duel" in message(o.get("status", {}), "PrerequisitesMet"), 60
    )
    assert "Pairwise" in message(found["status"], "PrerequisitesMet")
    judges.kubectl.annotate("gen", "crossed", abort="crossed")
    judges.ended("crossed", 60)


def test_an_identifier_in_data_of_ones_own_is_not_trained_on(judges: World, judged: Manifest) -> None:
    assert "4 of 20 rows are left out: 4 held personal identifiers" in stage(judged, "sft")["message"]
    sft = stage(judged, "sft")
    manifest = json.loads(judges.loader.run("cat", "/mnt/claim/" + sft["manifestUri"].removeprefix(f"{ROOT}/")))
    assert manifest["counts"]["dropped-privacy.EMAIL_ADDRESS"] == 4
    assert manifest["counts"]["rows-fixes"] <= 16
