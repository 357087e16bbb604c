"""Bad nights of an online test: harm, a log that lost an arm, pods that die, operator and database away."""

import json
from typing import Final

import pytest

from e2e import tiny_model
from e2e.installation import CLAIM_FOLDER
from e2e.population.job import Population
from e2e.population.settings import Settings
from e2e.population.tally import Tally
from e2e.world.online import DAYS, abtest, claim_path, ended, in_phase, nobody_lost, people, put_voices, trying
from e2e.world.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.full]

OPERATOR: Final = "deployment/flywheel-operator"
LOSE_TREATMENT: Final = """
import json, pathlib, sys
kept = lost = 0
for file in pathlib.Path(sys.argv[1]).rglob("*.jsonl"):
    lines = file.read_text().splitlines()
    rows = [line for line in lines if json.loads(line)["arm"] != "treatment" or json.loads(line)["user_id"][-1] < "2"]
    lost, kept = lost + len(lines) - len(rows), kept + len(rows)
    file.write_text("".join(f"{row}\\n" for row in rows))
print(kept, lost)
"""
"""Most of the treatment's exposures, as if its gateways had not been able to write."""


@pytest.fixture(scope="module", autouse=True)
def voices(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The small models that these tests serve."""
    scratch = tmp_path_factory.mktemp("voices")
    tiny_model.build(scratch / "base")
    put_voices(world, scratch / "base", scratch / "taught", "asking", "plain", "rude")


def test_a_model_that_breaks_the_rules_is_stopped_before_the_end(world: World) -> None:
    test = abtest("rude", "rude", control="plain", treatment="rude")
    with trying(world, test) as name, people(world, "rude") as crowd:
        status = ended(world, name)
        tally = crowd.tally()
    assert status["verdict"]["result"] == "GuardrailBroken", status
    assert status["verdict"]["reason"] == "HarmAtDailyLook"
    assert "safetyViolationsPerMessage" in status["verdict"]["message"]
    assert int(status["day"].partition("/")[0]) < DAYS
    assert tally.filtered > 0
    assert tally.lost == 0, tally.to_json()


def test_a_log_that_lost_users_of_one_arm_decides_nothing(world: World) -> None:
    test = abtest("uneven", "uneven", control="plain", treatment="asking", analysis={"settle": "20s"})
    with trying(world, test) as name, people(world, "uneven"):
        in_phase(world, name, ("Analyzing",), 240)
        folder = f"{CLAIM_FOLDER}/runs/uneven/traffic/exposures"
        kept, lost = map(int, world.loader.run("python", "-c", LOSE_TREATMENT, folder).split())
        assert kept > 0
        assert lost > 0
        status = ended(world, name)
    assert (status["verdict"]["result"], status["verdict"]["reason"]) == ("Inconclusive", "SampleRatioMismatch"), status
    assert status["users"]["sampleRatioPValue"] < 0.001


def test_a_router_that_dies_loses_nothing_and_production_takes_over_from_a_treatment_that_dies(world: World) -> None:
    test = abtest("bumpy", "bumpy", control="plain", treatment="asking", router={"replicas": 2, "drainSeconds": 10})
    with trying(world, test) as name, people(world, "bumpy") as crowd:
        _kill(world, "bumpy-router", 1)
        assert _answers_more(crowd).lost == 0
        _kill(world, "bumpy-treatment-server", None)
        status = ended(world, name)
        tally = crowd.tally()
    assert status["phase"] == "Completed", status
    assert status["users"]["fallback"] > 0, status["users"]
    assert status["users"].get("inBothArms", 0) == 0
    assert tally.switched == 0, tally.to_json()
    # What a killed pod was working on is gone: a chat is never sent twice. Production lost nothing.
    assert tally.lost <= Settings.at_once, tally.to_json()
    errors = next(m for m in status["metrics"] if m["name"] == "errorsPerRequest")
    assert errors["control"] == 0, status["metrics"]


def test_an_operator_that_is_away_when_the_window_ends_decides_later_by_the_same_numbers(world: World) -> None:
    with trying(world, abtest("alone", "alone", control="plain", treatment="asking")) as name:
        window = in_phase(world, name, ("Running",), 10)
        with people(world, "alone") as crowd:
            try:
                world.kubectl("scale", OPERATOR, "--replicas=0")
                last = crowd.ended(300)
            finally:
                world.kubectl("scale", OPERATOR, "--replicas=1")
            status = ended(world, name)
        report = json.loads(world.loader.run("cat", claim_path(status["runs"][-1]["reportUri"])))
    nobody_lost(last)
    assert status["verdict"]["result"] == "TreatmentWins", status
    assert (status["windowStart"], status["windowEnd"]) == (window["windowStart"], window["windowEnd"])
    assert (report["window"]["start"], report["window"]["end"]) == (window["windowStart"], window["windowEnd"])


def test_a_database_that_is_away_never_promotes(world: World) -> None:
    database = "postgresql://nobody@127.0.0.1:1/none"
    away = {"settle": "1s", "exposures": f"{database}?table=exposures", "events": f"{database}?table=events"}
    test = abtest("away", "away", control="plain", treatment="asking", duration="20s", analysis=away)
    with trying(world, test) as name:
        status = ended(world, name)
    assert (status["verdict"]["result"], status["verdict"]["reason"]) == ("Inconclusive", "AnalysisFailed"), status
    final = next(run for run in status["runs"] if run["name"] == "final")
    assert (final["state"], final["attempts"]) == ("Failed", 2)
    assert "127.0.0.1" in final["message"]


def test_a_paused_treatment_is_served_by_production_and_keeps_its_users(world: World) -> None:
    test = abtest("paused", "paused", control="plain", treatment="rude", pauseTreatment=True)
    with trying(world, test) as name, people(world, "paused") as crowd:
        status = ended(world, name)
        tally = crowd.tally()
    nobody_lost(tally)
    assert tally.filtered == 0  # nobody heard the rude one
    assert status["paused"] is True
    assert status["users"]["treatment"] > 10
    assert status["users"]["fallback"] == status["users"]["treatment"]
    assert status["verdict"]["result"] == "Inconclusive", status


def _kill(world: World, deployment: str, count: int | None) -> None:
    """Kills pods of a Deployment without grace."""
    found = world.kubectl.get("deployment", deployment)
    assert found is not None, deployment
    labels = found["spec"]["selector"]["matchLabels"]
    pods = world.kubectl.list("pods", ",".join(f"{k}={v}" for k, v in labels.items()))
    names = [pod["metadata"]["name"] for pod in pods][:count]
    assert names
    world.kubectl("delete", "pod", *names, "--grace-period=0", "--force")


def _answers_more(crowd: Population) -> Tally:
    before = crowd.tally().answered
    return crowd.until(lambda tally: tally.answered > before + 20 or tally.done, 60)
