"""Online tests on the cluster: served small models of different manner, and a population that talks to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from e2e.installation import CLAIM_FOLDER
from e2e.kubectl import Manifest
from e2e.population.job import Population, living
from e2e.population.settings import Settings
from e2e.population.tally import Tally
from e2e.world.manifests import API_VERSION, POD_RUNTIME, ROOT
from e2e.world.voices import VOICES, teach
from e2e.world.world import World

ENDED: Final = ("Completed", "Failed", "Aborted")
DAYS: Final = 5
DAY_SECONDS: Final = 20
PEOPLE: Final = 80
"""Enough to see the difference between two voices: `e2e.population.rehearsal` says what a test of a size would see."""

GATEWAY: Final[Manifest] = {
    "capture": {"rotateSeconds": 2},
    "identity": {"secureCookie": False},
    "limits": {"requestsPerSecond": 50, "burst": 200},
    "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
}
SERVING: Final[Manifest] = {
    "drainSeconds": 5,
    "gateway": GATEWAY,
    "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
}
GUARDRAILS: Final[list[Manifest]] = [
    # A thousand messages cannot show the margins that a week of real users can.
    {"metric": "safetyViolationsPerMessage", "absoluteMargin": 0.05},
    {"metric": "errorsPerRequest", "absoluteMargin": 0.2},
]
TEMPLATE: Final[Manifest] = {
    "allocation": {"control": 50, "treatment": 50},
    "dayLength": f"{DAY_SECONDS}s",
    "duration": f"{DAYS * DAY_SECONDS}s",
    "minUsersPerArm": 10,
    "primaries": ["messagesPerUser"],
    "guardrails": GUARDRAILS,
    "analysis": {"settle": "6s"},
    # A namespace that goes waits half the longest grace of its pods before it looks again.
    "router": {"replicas": 1, "drainSeconds": 10},
}


def voice_uri(name: str) -> str:
    """Where the model of a voice lies."""
    return f"{ROOT}/voices/{name}"


def put_voices(world: World, base: Path, scratch: Path, *names: str) -> None:
    """Teaches the tiny model in `base` these voices and puts them on the claim."""
    for name in names:
        teach(base, scratch / name, VOICES[name])
    world.loader.put(scratch, "voices")


def abtest(name: str, lineage: str, control: str, treatment: str, **spec: Any) -> Manifest:  # noqa: ANN401 -- of the spec
    """An ABTest between two voices, on all users of the lineage."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ABTest",
        "metadata": {"name": name},
        "spec": {
            "lineage": lineage,
            "control": {"model": voice_uri(control)},
            "treatment": {"model": voice_uri(treatment)},
            "artifacts": {"uri": f"{ROOT}/runs"},
            "serving": SERVING,
            "runtime": POD_RUNTIME,
            "retryPolicy": {"maxRetries": 1, "backoffSeconds": 1},
            **TEMPLATE,
            **spec,
        },
    }


@contextmanager
def trying(world: World, test: Manifest) -> Iterator[str]:
    """Makes a test, enters once its users are split, answers its name, and deletes it: its control would serve on.

    It takes its time to go, which nobody waits for.
    """
    name = test["metadata"]["name"]
    world.kubectl.apply(test)
    try:
        running(world, name)
        yield name
    finally:
        world.kubectl("delete", "abt", name, "--wait=false")


def running(world: World, name: str, seconds: float = 240) -> Manifest:
    """Waits until the users of a test are split, and answers its status."""
    return in_phase(world, name, ("Running",), seconds)


def ended(world: World, name: str, seconds: float = 300) -> Manifest:
    """Waits until a test has ended and answers its status."""
    return in_phase(world, name, ENDED, seconds)


def in_phase(world: World, name: str, wanted: tuple[str, ...], seconds: float) -> Manifest:
    """Waits until a test is in one of these phases and answers its status."""
    found = world.kubectl.wait("abt", name, lambda o: o.get("status", {}).get("phase") in wanted, seconds)
    return dict(found["status"])


@contextmanager
def people(world: World, lineage: str, **settings: Any) -> Iterator[Population]:  # noqa: ANN401 -- fields of Settings
    """A population that talks to a lineage while the block runs."""
    chosen = {"users": PEOPLE, "days": DAYS, "day_seconds": DAY_SECONDS, **settings}
    with living(
        world.kubectl, f"people-{lineage}", world.images["gateway"], Settings(url=f"http://{lineage}", **chosen)
    ) as found:
        yield found


def nobody_lost(tally: Tally) -> None:
    """Every request got an answer, and nobody saw two arms."""
    assert tally.answered > 100, tally.to_json()
    assert tally.lost == 0, tally.to_json()
    assert tally.switched == 0, tally.to_json()


def claim_path(uri: str) -> str:
    """A `pvc://` URI as the loader sees it."""
    return str(Path(CLAIM_FOLDER, *uri.partition("://")[2].split("/")[1:]))
