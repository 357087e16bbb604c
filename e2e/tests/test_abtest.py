"""Online tests on a real cluster: served models, router, gateways, people who like one of them better, a verdict."""

import json
from contextlib import ExitStack

import pytest

from e2e import tiny_model
from e2e.population.tally import Tally
from e2e.world.client import chatting
from e2e.world.online import abtest, claim_path, ended, in_phase, nobody_lost, people, put_voices, running
from e2e.world.world import World, message

pytestmark = pytest.mark.cluster

LIKED, WORSE, SILENT, NEXT = "liked", "worse", "silent", "next-in-line"


@pytest.fixture(scope="module")
def tests(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three tests of three lineages at the same time, and one that waits in line."""
    scratch = tmp_path_factory.mktemp("voices")
    tiny_model.build(scratch / "base")
    put_voices(world, scratch / "base", scratch / "taught", "asking", "plain", "curt")
    world.kubectl.apply(
        abtest(LIKED, LIKED, control="plain", treatment="asking"),
        abtest(WORSE, WORSE, control="plain", treatment="curt"),
        abtest(SILENT, SILENT, control="plain", treatment="asking", duration="20s"),
    )
    in_phase(world, SILENT, ("Provisioning", "Running"), 60)
    world.kubectl.apply(abtest(NEXT, SILENT, control="plain", treatment="curt"))
    return world


@pytest.fixture(scope="module")
def crowd(tests: World) -> dict[str, Tally]:
    """What happened to the people of two lineages until their tests ended; nobody comes to the third."""
    with ExitStack() as stack:
        for name in (LIKED, WORSE):
            running(tests, name)
        found = {name: stack.enter_context(people(tests, name)) for name in (LIKED, WORSE)}
        for name in found:
            ended(tests, name)
        return {name: population.tally() for name, population in found.items()}


def test_one_test_of_a_lineage_at_a_time_and_the_next_says_that_it_waits(tests: World) -> None:
    waiting = in_phase(tests, NEXT, ("Pending",), 30)
    assert f"in line behind {SILENT}" in message(waiting, "Progressing")
    tests.kubectl.annotate("abt", NEXT, abort="changed-my-mind")
    assert ended(tests, NEXT, 30)["phase"] == "Aborted"
    assert tests.kubectl.get("deployment", f"{NEXT}-treatment") is None


def test_a_model_that_people_like_wins(tests: World, crowd: dict[str, Tally]) -> None:
    status = ended(tests, LIKED)
    assert status["verdict"]["result"] == "TreatmentWins", status
    assert status["verdict"]["reason"] == "PrimaryLifted"
    assert "messagesPerUser +" in status["verdict"]["message"]
    nobody_lost(crowd[LIKED])
    assert status["trial"] is True
    assert status["day"] == "5/5 (trial)"
    primary = status["metrics"][0]
    assert primary["outcome"] == "Above"
    assert 0 < primary["low"] < primary["lift"] < primary["high"]
    runs = {run["name"]: run["state"] for run in status["runs"]}
    assert set(runs) <= {"baseline", "day-1", "day-2", "day-3", "day-4", "final"}
    # On a busy machine a look may be overtaken by the next one.
    assert runs["baseline"] == runs["final"] == "Succeeded"
    assert any(runs.get(f"day-{day}") == "Succeeded" for day in range(1, 5)), runs


def test_a_model_that_people_like_less_loses(tests: World, crowd: dict[str, Tally]) -> None:
    status = ended(tests, WORSE)
    assert status["verdict"]["result"] == "ControlWins", status
    nobody_lost(crowd[WORSE])
    assert status["metrics"][0]["high"] < 0


def test_without_people_there_is_no_verdict(tests: World) -> None:
    status = ended(tests, SILENT)
    assert (status["verdict"]["result"], status["verdict"]["reason"]) == ("Inconclusive", "NoData")


def test_the_numbers_are_explained_and_kept(tests: World, crowd: dict[str, Tally]) -> None:
    assert crowd
    columns = tests.kubectl("get", "abt", LIKED).splitlines()
    assert columns[0].split() == ["NAME", "PHASE", "DAY", "EXPOSED", "LIFT", "VERDICT", "AGE"], columns
    status = ended(tests, LIKED)
    assert status["exposed"] in columns[1]
    assert "TreatmentWins" in columns[1]
    assert "what it can see is not known" in message(status, "Powered")
    assert any("TreatmentWins: messagesPerUser +" in e for e in tests.events(LIKED))
    final = status["runs"][-1]
    report = json.loads(tests.loader.run("cat", claim_path(final["reportUri"])))
    measured = next(m for m in report["metrics"] if m["name"] == "messagesPerUser")
    assert measured["lift"] == pytest.approx(status["metrics"][0]["lift"], rel=1e-4)
    assert f"{report['users']['control']}/{report['users']['treatment']}" == status["exposed"]


def test_what_the_treatment_used_is_gone_and_the_control_goes_on_until_the_test_is_deleted(
    tests: World, crowd: dict[str, Tally]
) -> None:
    assert crowd
    for name in (LIKED, WORSE, SILENT):
        tests.kubectl.wait("abt", name, lambda _, of=name: not _pods(tests, of, "treatment"), 120)
        assert _pods(tests, name, "control")
    with chatting(tests.kubectl, tests.images["trainer"], LIKED) as client:
        assert client.count().lost == []
    # Nodes are small: what serves on here would be missing for the next tests.
    tests.kubectl("delete", "abt", LIKED, WORSE, SILENT, NEXT, "--timeout=120s")
    tests.kubectl.wait("namespace", tests.kubectl.namespace, lambda _: not _pods(tests, LIKED, ""), 120)


def _pods(world: World, test: str, part: str) -> list[str]:
    """The running pods of a test whose names begin so; those of finished Jobs do not count."""
    names = (
        p["metadata"]["name"] for p in world.kubectl.list("pods") if p["status"]["phase"] in ("Pending", "Running")
    )
    return [name for name in names if name.startswith(f"{test}-{part}")]
