"""What is left when the wheel has turned: tables, plots and answers, on the screen and in the folder .demo."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.panel import Panel

from e2e.demo import chat, plots, tables
from e2e.demo.board import Board
from e2e.demo.objects import Turn, folder_on_claim
from e2e.demo.online import Online
from e2e.demo.storage import Claim
from flywheel_contract.stages import Stage
from flywheel_operator.model.status import GenerationStatus

TRAINING = (Stage.REWARD_MODEL, Stage.SFT, Stage.DPO, Stage.RL)
STEPS = "logs/metrics.jsonl"
REPORT = "report/report.json"
SAMPLES = "report/samples.jsonl"


@dataclass(frozen=True, slots=True)
class Results:
    """Everything to show."""

    board: Board
    reward_model: Turn
    generations: Sequence[Turn]
    answers: Mapping[str, str]
    plots: Sequence[Path]
    rule: str
    """How preferences and origins came about, in words."""
    online: Online | None = None
    """None: no Generation made a candidate."""

    def grids(self) -> list[tables.Grid]:
        """The tables."""
        return [tables.reward_model(self.reward_model), tables.generations(self.generations), tables.times(self.board)]

    def show(self, console: Console) -> None:
        """Print all of it."""
        judge, generations, times = self.grids()
        console.print("", judge.rich(), self.rule, "", generations.rich(), sep="\n")
        for turn in self.generations:
            console.print(tables.why_gated(turn), markup=False, highlight=False)
        console.print(f"\nThe same prompt to all: {chat.PROMPT}", highlight=False)
        for name, text in self.answers.items():
            console.print(Panel(text, title=name, title_align="left"), markup=False)
        for line in self.online.lines() if self.online else ():
            console.print(line, markup=False, highlight=False)
        console.print("", times.rich(), sep="\n")

    def write(self, folder: Path) -> Path:
        """Leave a report and the statuses in `folder`, and answer the report's path."""
        folder.mkdir(parents=True, exist_ok=True)
        judge, generations, times = self.grids()
        said = "\n\n".join(tables.why_gated(turn) for turn in self.generations)
        talk = "\n\n".join(f"**{name}**: {' '.join(text.split())}" for name, text in self.answers.items())
        pictures = "\n".join(f"![{file.stem}]({file.name})" for file in self.plots)
        parts = [
            "# Two turns of the wheel",
            judge.markdown(),
            self.rule,
            generations.markdown(),
            said,
            f"## The same prompt to all\n\n> {chat.PROMPT}\n\n{talk}",
            f"## Loss and reward\n\n{pictures}",
            self._tested(),
            times.markdown(),
        ]
        report = folder / "report.md"
        report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        for turn in (self.reward_model, *self.generations):
            status = json.dumps(turn.status.to_json(), indent=1) + "\n"
            (folder / f"{turn.name}.status.json").write_text(status, encoding="utf-8")
        return report

    def _tested(self) -> str:
        if self.online is None:
            return "## Online test\n\nThere was no candidate to test."
        plot = f"\n\n![lift]({self.online.plot.name})" if self.online.plot else ""
        return "## Online test\n\n" + "\n\n".join(self.online.lines()) + plot


def collect(claim: Claim, turns: Sequence[Turn], folder: Path) -> list[Path]:
    """Fetch what the stages logged, keep it in `folder`, and draw it. Answers the PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    curves: dict[str, plots.Steps] = {}
    for turn in turns:
        for stage in turn.stages:
            place = folder_on_claim(stage)
            if place is None:
                continue
            if stage.name in TRAINING and (text := claim.text(f"{place}/{STEPS}")):
                curves[f"{turn.name} {stage.name.value}"] = plots.read_steps(text)
                (folder / f"{turn.name}.{stage.name.value}.metrics.jsonl").write_text(text, encoding="utf-8")
            if stage.name is Stage.EVALUATE:
                for file in (REPORT, SAMPLES):
                    text = claim.text(f"{place}/{file}")
                    if text is not None:
                        (folder / f"{turn.name}.{Path(file).name}").write_text(text, encoding="utf-8")
    drawn = (("loss", "Training loss of every stage"), ("reward", "Reward during RL"))
    files = [(value, title, folder / f"{value}.png") for value, title in drawn]
    return [file for value, title, file in files if plots.draw(curves, value, title, file)]


def speakers(base: str, generations: Sequence[Turn], lineage: str) -> list[chat.Speaker]:
    """The base model and every generation that made a model; the one that serves stands behind the Service."""
    found = [chat.Speaker("base", base)]
    for turn in generations:
        status = turn.status
        if isinstance(status, GenerationStatus) and status.candidate is not None:
            serves = any(c.type == "Serving" and c.status == "True" for c in status.conditions)
            found.append(chat.Speaker(turn.name, status.candidate.uri, lineage if serves else None))
    return found
