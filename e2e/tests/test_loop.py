"""The loop: chats held with one generation are what the next one learns from, and users decide whether it serves."""

import json

import pytest

from e2e import tiny_model
from e2e.kubectl import Manifest
from e2e.world.manifests import ROOT, SOURCES, generation, reward_model
from e2e.world.online import (
    PEOPLE,
    SERVING,
    TEMPLATE,
    abtest,
    claim_path,
    ended,
    in_phase,
    nobody_lost,
    people,
    put_voices,
    running,
    voice_uri,
)
from e2e.world.world import World, serving, stage

pytestmark = [pytest.mark.cluster, pytest.mark.full]

GENTLE = {"sft": {"maxSteps": 1, "batchSize": 8, "maxLength": 128, "learningRate": 1e-9}}
"""The candidate is its parent: what is tried here is the loop, and whom the people like is known beforehand."""


@pytest.fixture(scope="module")
def first(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The first generation of a lineage, in production, and a day of chats with it in its log."""
    scratch = tmp_path_factory.mktemp("voices")
    tiny_model.build(scratch / "base")
    put_voices(world, scratch / "base", scratch / "taught", "asking", "plain")
    if world.kubectl.get("rm", "tiny") is None:
        world.kubectl.apply(reward_model("tiny"))
    world.kubectl.apply(
        generation("loop-1", "loop", parent={"model": voice_uri("plain")}, recipe=GENTLE, serving=SERVING)
    )
    status = world.ended("loop-1", 600)
    assert status["verdict"]["result"] == "Promoted", status
    world.serves("loop-1")
    with people(world, "loop", days=2) as crowd:
        nobody_lost(crowd.ended(240))
    return world


def test_the_next_generation_learns_from_the_chats_and_wins_its_users(first: World) -> None:
    chats = {"name": "chats", "origin": "User", "uri": f"{ROOT}/runs/loop/traffic/turns"}
    _until_closed(first, claim_path(chats["uri"]))
    said = _chatted(first, chats["uri"])
    first.kubectl.apply(
        generation(
            "loop-2",
            "loop",
            parent={"model": voice_uri("asking")},
            recipe=GENTLE,
            data={"traffic": [SOURCES[0], chats]},
            serving=SERVING,
            rollout={"abTest": TEMPLATE},
        )
    )
    first.phase("loop-2", "Testing", 600)
    test = first.status("loop-2")["abTest"]
    in_phase(first, test, ("Running",), 240)
    with people(first, "loop", seed=1) as crowd:
        verdict = ended(first, test)["verdict"]
        nobody_lost(crowd.tally())
    assert verdict["result"] == "TreatmentWins", verdict
    status = first.ended("loop-2", 120)
    assert status["verdict"]["result"] == "Promoted", status
    first.serves("loop-2")
    first.kubectl.wait("gen", "loop-1", lambda o: serving(o["status"]) == "Superseded", 60)

    curate = _manifest(first, status, "curate")
    assert chats["uri"] in {source["uri"] for source in curate["inputs"]}
    from_chats = {row["conversation"] for row in _rows(first, _output(status, "curate", "prompts"))} & said
    assert from_chats
    assert curate["counts"]["promptsUser"] == len(from_chats)
    trained_on = {source["digest"] for source in _manifest(first, status, "sft")["inputs"]}
    assert curate["outputs"]["prompts"] in trained_on


@pytest.mark.parametrize("how", ["background", "foreground"])
def test_a_running_test_that_is_deleted_cuts_nobody_off(first: World, how: str) -> None:
    """Whoever comes in while it goes is served, also on connections from before; Argo CD deletes in the foreground."""
    first.serves("loop-2")
    test = abtest(f"leaving-{how}", "loop", control="plain", treatment="plain")
    test["spec"]["control"] = {"generation": "loop-2"}
    first.kubectl.apply(test)
    name = test["metadata"]["name"]
    running(first, name)
    with people(first, "loop", seed=2) as crowd:
        first.kubectl.wait("abt", name, lambda _: crowd.tally().answered > 30, 60)
        first.kubectl("delete", "abt", name, f"--cascade={how}", "--timeout=180s")
        nobody_lost(crowd.ended(240))
    for kind in ("deployment", "service"):
        assert not [o for o in first.kubectl.list(kind) if o["metadata"]["name"].startswith(name)]


def _chatted(world: World, uri: str) -> set[str]:
    rows = _rows(world, claim_path(uri))
    assert len({row["user"] for row in rows}) > PEOPLE / 4
    assert {row["generation"] for row in rows} == {"loop-1"}
    return {row["conversation"] for row in rows}


def _until_closed(world: World, folder: str) -> None:
    """Until no file of the log is open: a digest is taken once, and what is read later must be the same."""
    world.kubectl.wait("pod", "claim-loader", lambda _: not world.loader.run("find", folder, "-name", "_*").strip(), 60)


def _manifest(world: World, status: Manifest, name: str) -> Manifest:
    return dict(json.loads(world.loader.run("cat", claim_path(stage(status, name)["manifestUri"]))))


def _output(status: Manifest, name: str, output: str) -> str:
    return claim_path(next(o["uri"] for o in stage(status, name)["outputs"] if o["name"] == output))


def _rows(world: World, folder: str) -> list[dict[str, str]]:
    script = f"find {folder} -name '*.jsonl' ! -name '_*' -exec cat {{}} +"
    return [json.loads(line) for line in world.loader.run("sh", "-c", script).splitlines()]
