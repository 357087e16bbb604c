"""The demo's online test: simulated users at two really served models, followed day by day, and drawn at the end."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from e2e.demo import manifests
from e2e.demo.errors import DemoError
from e2e.demo.objects import Turn
from e2e.demo.storage import Claim
from e2e.kubectl import Kubectl
from e2e.population.job import start
from e2e.population.settings import Settings
from e2e.population.tally import Tally
from flywheel_contract.durations import seconds
from flywheel_contract.experiment import AnalysisReport, MetricResult
from flywheel_operator.model.objects import ABTest
from flywheel_operator.model.phases import ABTEST_TERMINAL, ABTestPhase
from flywheel_operator.model.status import GenerationStatus

Say = Callable[[str], None]

FILE = "abtest.yaml"
PEOPLE = 60
REPLY_TOKENS = 24
LONGEST_SECONDS = 900
POLL_SECONDS = 3.0
COLOURS = ("#2a6f97", "#bc6c25")


@dataclass(frozen=True, slots=True)
class Online:
    """What came out."""

    test: ABTest
    tally: Tally
    plot: Path | None

    def lines(self) -> list[str]:
        """The outcome in sentences."""
        status, tally = self.test.status, self.tally
        verdict = status.verdict
        said = f"{verdict.result.value}, {verdict.reason.value}: {verdict.message}" if verdict else status.phase.value
        powered = next((c.message for c in status.conditions if c.type == "Powered"), "")
        return [
            f"{self.test.metadata.name}: {said}",
            f"Exposed {status.exposed} (control/treatment); {tally.answered} replies to {tally.users} simulated users, "
            f"{sum(tally.failed.values())} requests failed, {tally.switched} users saw two arms.",
            f"What it could see: {powered}",
            "The users are simulated, and their taste (they like to be asked something) is made up: it shows that the "
            "test measures, not that people like one model better.",
        ]


def candidate_uri(generations: Sequence[Turn]) -> str | None:
    """The model that the last Generation made; None: it made none."""
    status = generations[-1].status
    found = status.candidate if isinstance(status, GenerationStatus) else None
    return found.uri if found is not None else None


def run(kubectl: Kubectl, claim: Claim, uri: str, image: str, folder: Path, say: Say) -> Online:
    """Runs the test, or takes the one that is there, to its verdict.

    Raises:
        DemoError: it failed, or takes too long.
    """
    manifest = manifests.load(FILE)
    manifest["spec"]["treatment"] = {"model": uri}
    name, spec = manifest["metadata"]["name"], manifest["spec"]
    old = kubectl.get("abtest", name)
    if old is not None and old["spec"]["treatment"] != manifest["spec"]["treatment"]:
        kubectl("delete", "abtest", name, "--wait=true")
    kubectl.apply(manifest)
    _until(kubectl, name, say, lambda test: test.status.phase not in (ABTestPhase.PENDING, ABTestPhase.PROVISIONING))
    day = seconds(spec["dayLength"])
    people = Settings(
        url=f"http://{spec['lineage']}",
        users=PEOPLE,
        days=seconds(spec["duration"]) // day,
        day_seconds=day,
        max_tokens=REPLY_TOKENS,
        at_once=8,
    )
    population = start(kubectl, f"{name}-people", image, people)
    test = _until(kubectl, name, say, lambda test: test.status.phase in ABTEST_TERMINAL)
    tally = population.stop()
    if test.status.verdict is None:
        said = next((c.message for c in test.status.conditions if c.type == "Progressing"), "")
        raise DemoError(f"ABTest {name} is {test.status.phase.value}: {said}")
    (folder / f"{name}.status.json").write_text(json.dumps(test.status.to_json(), indent=1) + "\n", encoding="utf-8")
    reports = _reports(claim, test)
    plot = folder / "abtest.png"
    return Online(test, tally, plot if draw(reports, test.spec.primaries, plot) else None)


def _until(kubectl: Kubectl, name: str, say: Say, reached: Callable[[ABTest], bool]) -> ABTest:
    deadline, before = time.monotonic() + LONGEST_SECONDS, ""
    while True:
        raw = kubectl.get("abtest", name)
        test = ABTest.model_validate(raw) if raw is not None else None
        if test is not None:
            status = test.status
            known = "  ".join(filter(None, (f"day {status.day}" if status.day else "", status.exposed, status.lift)))
            line = f"{name}: {status.phase.value}  {known}".rstrip()
            if line != before:
                say(line)
                before = line
            if reached(test):
                return test
        if time.monotonic() > deadline:
            raise DemoError(f"ABTest {name} took more than {LONGEST_SECONDS} s: {before}")
        time.sleep(POLL_SECONDS)


def _reports(claim: Claim, test: ABTest) -> dict[int, AnalysisReport]:
    """Day -> what was measured at its end; the last analysis counts as the last day."""
    found = {}
    status = test.status
    days = int((status.day or "0/0").split("/")[1].split(" ")[0])
    for run in status.runs:
        if run.report_uri is None or run.name == "baseline":
            continue
        text = claim.text(run.report_uri.partition("://")[2].partition("/")[2])
        if text is not None:
            day = int(run.name.rpartition("-")[2]) if run.name.startswith("day-") else days
            found[day] = AnalysisReport.model_validate_json(text)
    return dict(sorted(found.items()))


def draw(reports: Mapping[int, AnalysisReport], primaries: Sequence[str], file: Path) -> bool:
    """Lift and interval of each primary over the days, as PNG. Nothing is written where no day has one."""
    lifts = {name: _lifts(reports, name) for name in primaries}
    lifts = {name: points for name, points in lifts.items() if points}
    if not lifts:
        return False
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.axhline(0, color="black", linewidth=0.8)
    for number, (name, points) in enumerate(lifts.items()):
        days = [day + 0.06 * (number - (len(lifts) - 1) / 2) for day, _ in points]
        centre = [100 * (m.lift or 0) for _, m in points]
        below = [c - 100 * (m.low or 0) for c, (_, m) in zip(centre, points, strict=True)]
        above = [100 * (m.high or 0) - c for c, (_, m) in zip(centre, points, strict=True)]
        colour = COLOURS[number % len(COLOURS)]
        axis.errorbar(days, centre, [below, above], fmt="o-", capsize=4, color=colour, label=name, linewidth=1.6)
    axis.set_xlabel("day of the window")
    axis.set_ylabel("lift of the treatment, % (95 % interval)")
    axis.set_xticks(sorted({day for points in lifts.values() for day, _ in points}))
    axis.set_title("Online test: lift over time")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    return True


def _lifts(reports: Mapping[int, AnalysisReport], name: str) -> list[tuple[int, MetricResult]]:
    return [
        (day, metric)
        for day, report in reports.items()
        for metric in report.metrics
        if metric.name == name and metric.lift is not None and metric.low is not None and metric.high is not None
    ]
