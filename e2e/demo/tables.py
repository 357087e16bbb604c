"""The numbers at the end: both generations side by side, the reward model beside its controls, where the time went."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table

from e2e.demo.board import Board, duration
from e2e.demo.manifests import parent_of
from e2e.demo.objects import Turn, seconds
from e2e.demo.view import measured
from e2e.demo.watch import now
from flywheel_contract.metric_names import Metric
from flywheel_contract.stages import Stage
from flywheel_operator.model.phases import Verdict
from flywheel_operator.model.status import GenerationStatus

RATES: tuple[tuple[str, Stage, Metric], ...] = (
    ("win rate", Stage.EVALUATE, Metric.WIN_RATE),
    ("win rate, Internal prompts", Stage.EVALUATE, Metric.WIN_RATE_INTERNAL),
    ("win rate, User prompts", Stage.EVALUATE, Metric.WIN_RATE_USER),
    ("gap between the origins", Stage.EVALUATE, Metric.WIN_RATE_GAP),
    ("perplexity, candidate : baseline", Stage.EVALUATE, Metric.PERPLEXITY_RATIO),
    ("reply length, words", Stage.EVALUATE, Metric.REPLY_LENGTH),
    ("reply length, candidate : baseline", Stage.EVALUATE, Metric.REPLY_LENGTH_RATIO),
    ("replies with a list", Stage.EVALUATE, Metric.LIST_RATE),
    ("replies with an emoji", Stage.EVALUATE, Metric.EMOJI_RATE),
    ("replies with a stock phrase", Stage.EVALUATE, Metric.STOCK_PHRASE_RATE),
    ("reward of accepted samples", Stage.REJECTION_SAMPLE, Metric.ACCEPTED_REWARD),
    ("reward of rejected samples", Stage.REJECTION_SAMPLE, Metric.REJECTED_REWARD),
    ("reward at the start of RL", Stage.RL, Metric.RL_REWARD_FIRST),
    ("reward at the end of RL", Stage.RL, Metric.RL_REWARD_LAST),
    ("KL from the model before RL", Stage.RL, Metric.KL_TO_POLICY),
)

JUDGE: tuple[tuple[str, Metric], ...] = (
    ("accuracy on held-out pairs", Metric.REWARD_ACCURACY),
    ("  Internal", Metric.REWARD_ACCURACY_INTERNAL),
    ("  User", Metric.REWARD_ACCURACY_USER),
    ("baseline: length alone", Metric.LENGTH_ONLY_ACCURACY),
    ("control: shuffled labels", Metric.SHUFFLED_LABEL_ACCURACY),
    ("rank correlation with length", Metric.LENGTH_CORRELATION),
)

MARKS = {"Passed": "✓", "Failed": "✗", "NotMeasured": "?"}


@dataclass
class Grid:
    """A table of text; rich and Markdown are made from it."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left", caption=self.note or None, caption_justify="left")
        for column in self.columns:
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a file."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|").strip() for cell in line) + " |" for line in lines)
        return f"## {self.title}\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")


def generations(turns: Sequence[Turn]) -> Grid:
    """Both generations: verdict, gates, win rates and style."""
    grid = Grid("Generations", ["", *(turn.name for turn in turns)])
    grid.rows.append(["trained from", *(parent_of(turn) for turn in turns)])
    grid.rows.append(["judged against", *(_baseline(turn) for turn in turns)])
    grid.rows.append(["verdict", *(turn.outcome for turn in turns)])
    for label, stage, metric in RATES:
        found = [turn.metrics(stage).get(metric.value) for turn in turns]
        if any(found):
            grid.rows.append([label, *(measured(m) if m is not None else "not measured" for m in found)])
    names = list(dict.fromkeys(gate.name for turn in turns for gate in turn.gates))
    for name in names:
        gates = [next((g for g in turn.gates if g.name == name), None) for turn in turns]
        bound = next(g.bound for g in gates if g is not None)
        grid.rows.append(
            [f"gate {name} {bound}", *(f"{MARKS[g.verdict]} {measured(g)}" if g is not None else "" for g in gates)]
        )
    grid.note = "✓ passed  ✗ failed  ? not measured, which is no pass; 95 % intervals, n = users"
    return grid


def reward_model(turn: Turn) -> Grid:
    """The judge beside a rule that knows the length only, and beside labels thrown by a coin."""
    metrics = turn.metrics(Stage.REWARD_MODEL)
    grid = Grid(f"Reward model {turn.name}", ["", "value"])
    grid.rows = [[label, measured(metrics[m.value])] for label, m in JUDGE if m.value in metrics]
    grid.note = "Pairs of held-out users. With shuffled labels nothing can be learned: that must be 0.5."
    return grid


def times(board: Board) -> Grid:
    """How long every step and stage took."""
    grid = Grid("Where the time went", ["step", "time"])
    moment = now()
    grid.rows += [[step.title, duration(step.seconds(moment))] for step in board.steps]
    for name in board.planned:
        turn = board.turns.get(name)
        for stage in turn.stages if turn is not None else ():
            took = seconds(stage, moment)
            reused = " (taken from the artefact store)" if stage.reused else ""
            grid.rows.append([f"{name} {stage.name.value}", (duration(took) if took is not None else "") + reused])
        if turn is not None and turn.status.start_time is not None and turn.status.completion_time is not None:
            whole = turn.status.completion_time - turn.status.start_time
            grid.rows.append([f"{name} from start to end", duration(whole.total_seconds())])
    grid.rows.append(["all", duration((moment - board.began).total_seconds())])
    return grid


def why_gated(turn: Turn) -> str:
    """For a generation that is not promoted: a sentence with the numbers for each gate that it did not pass."""
    status = turn.status
    if not isinstance(status, GenerationStatus) or status.verdict is None:
        return ""
    if status.verdict.result is Verdict.PROMOTED:
        return f"{turn.name} was promoted: all {len(turn.gates)} gates passed."
    failed = [f"  {gate.name}: {gate.message}" for gate in turn.gates if gate.verdict != "Passed"]
    return "\n".join([f"{turn.name} was not promoted ({turn.outcome}):", *(failed or [f"  {status.verdict.message}"])])


def _baseline(turn: Turn) -> str:
    status = turn.status
    if not isinstance(status, GenerationStatus) or status.baseline is None:
        return ""
    return status.baseline.generation or status.baseline.uri
