import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from matplotlib import image
from rich.console import Console

from e2e.demo import chat, plots, results, tables
from e2e.demo.board import Board
from e2e.demo.objects import Turn
from e2e.demo.results import Results

Load = Callable[[str], Turn]


class FakeClaim:
    """Text files by their place."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files

    def text(self, path: str) -> str | None:
        return self.files.get(path)


def found(recorded: Load) -> Results:
    turns = [recorded("promoted"), recorded("gated")]
    judge = recorded("ready_reward_model")
    shown = Board(datetime.now(UTC), [], {t.name: t for t in (judge, *turns)}, ("human-reply", "luna-1", "luna-2"))
    answers = {"base": "Hello [there].", "luna-1": "Hey!", "luna-2": "Hi!"}
    return Results(shown, judge, turns, answers, [Path("loss.png")], "The rule.")


def test_the_table_holds_both_generations_with_gates_and_rates(recorded: Load) -> None:
    grid = tables.generations([recorded("promoted"), recorded("gated")])
    rows = {row[0]: row[1:] for row in grid.rows}
    assert grid.columns == ["", "luna-1", "luna-2"]
    assert rows["verdict"] == ["Promoted", "Gated"]
    assert rows["win rate, User prompts"][0] == "0.590 [0.520, 0.660] n=100"
    assert rows["gate win-rate >= 0.5 at its low end"] == ["✓ 0.580 [0.530, 0.630] n=190"] * 2
    assert rows["gate win-rate-ceiling-user <= 0.65"] == ["", "✗ 0.710 [0.640, 0.780] n=100"]


def test_a_gated_generation_says_why_with_the_numbers(recorded: Load) -> None:
    assert "winRateUser 0.71 [0.64, 0.78], n=100: is not <= 0.65" in tables.why_gated(recorded("gated"))
    assert tables.why_gated(recorded("promoted")) == "luna-1 was promoted: all 1 gates passed."


def test_the_judge_stands_beside_its_controls(recorded: Load) -> None:
    rows = dict(tables.reward_model(recorded("ready_reward_model")).rows)
    assert rows["accuracy on held-out pairs"] == "0.712 [0.650, 0.770] n=140"
    assert rows["baseline: length alone"].startswith("0.500")
    assert rows["control: shuffled labels"].startswith("0.498")


def test_everything_is_printed_and_left_in_the_folder(recorded: Load, tmp_path: Path) -> None:
    out = io.StringIO()
    everything = found(recorded)
    everything.show(Console(file=out, width=160, color_system=None))
    assert "Hello [there]." in out.getvalue(), "square brackets are no markup"
    assert "The rule." in out.getvalue()
    report = everything.write(tmp_path).read_text(encoding="utf-8")
    assert "| verdict | Promoted | Gated |" in report
    assert "![loss](loss.png)" in report
    assert json.loads((tmp_path / "luna-2.status.json").read_text())["verdict"]["result"] == "Gated"


def test_metrics_become_plots(recorded: Load, tmp_path: Path) -> None:
    turn = recorded("ready_reward_model")
    lines = "".join(json.dumps({"step": i, "loss": 1 / i, "reward": 0.1 * i}) + "\n" for i in range(1, 30))
    place = "runs/luna/luna-1/reward-model/0123456789abcdef/logs/metrics.jsonl"
    files = results.collect(FakeClaim({place: lines + '{"step": 31, "lo'}), [turn], tmp_path)  # type: ignore[arg-type]
    assert [file.name for file in files] == ["loss.png", "reward.png"]
    picture = image.imread(files[0])
    assert picture.shape[0] > 200
    assert picture.min() < picture.max(), "it is not blank"
    assert (tmp_path / "human-reply.reward-model.metrics.jsonl").exists()


def test_a_value_that_no_stage_has_makes_no_plot(tmp_path: Path) -> None:
    assert not plots.draw({"sft": [{"step": 1, "loss": 1.0}]}, "reward", "Reward", tmp_path / "reward.png")
    assert not list(tmp_path.iterdir())


def test_smoothing_starts_at_the_first_value() -> None:
    assert plots.smoothed([2.0, 2.0, 2.0]) == [2.0, 2.0, 2.0]
    assert plots.smoothed([]) == []


def test_who_serves_is_asked_by_its_service(recorded: Load) -> None:
    speakers = results.speakers("pvc://flywheel/models/base", [recorded("promoted"), recorded("gated")], "luna")
    assert [(s.name, s.service) for s in speakers] == [("base", None), ("luna-1", "luna"), ("luna-2", None)]


def test_the_same_prompt_goes_to_all(recorded: Load) -> None:
    class Answering(FakeClaim):
        asked: ClassVar[list[Any]] = []

        def python(self, program: str, job: object) -> str:
            self.asked.append(job)
            return "Hey!\n" if program == chat.ASK else 'Loading\n\n{"base": "Hm.", "luna-2": "Hi."}\n'

    speakers = results.speakers("pvc://flywheel/models/base", [recorded("promoted"), recorded("gated")], "luna")
    messages = [{"role": "user", "content": "Hello"}]
    found = chat.answers(Answering({}), speakers, messages)  # type: ignore[arg-type]
    assert list(found.items()) == [("base", "Hm."), ("luna-1", "Hey!"), ("luna-2", "Hi.")]
    service, hidden = Answering.asked
    assert service["url"] == "http://luna/v1/chat/completions"
    assert service["body"]["messages"] == hidden["messages"] == messages
    assert hidden["models"]["base"] == "/mnt/claim/models/base"
