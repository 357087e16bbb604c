"""What our SFT stage adds to a step of the bare TRL script: both train the same rows, in turn, in this process.

Prints one line of JSON. `ratio` is the time between the ends of two steps, ours over bare, at the first decile of all
steps: what else the machine does makes steps slower, never faster, so the fast ones tell what the work itself takes.
`ratioOfMedians` means something on a machine that does nothing else. Checkpoints, the progress endpoint, the history
and the NaN guard are on, and the stage logs every step (the bare script every tenth, TRL's default).
Run it: python -m benchmarks.trainer_overhead
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from datasets import Dataset, disable_progress_bars
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from e2e import tiny_data, tiny_model
from flywheel_contract.stages import Stage
from flywheel_trainer.artifacts import digest_folder
from flywheel_trainer.models import load_tokenizer
from flywheel_trainer.runner import run_stage

ROWS, BATCH, MAX_LENGTH = 400, 8, 96
WARM_UP = 10
"""Steps at the start of each run that do not count."""


class StepEnds(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Notes the time."""
        self.times.append(time.perf_counter())


def bare(root: Path, steps: int, seed: int) -> list[float]:
    """The step times of TRL's own script."""
    ends = StepEnds()
    rows = tiny_data.traffic(ROWS)
    arguments = SFTConfig(
        output_dir=str(root / "bare"), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=1e-3,
        max_length=MAX_LENGTH, bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none",
        save_strategy="no", seed=seed, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=str(root / "lab" / "model"),
        args=arguments,
        train_dataset=Dataset.from_list([{"messages": row["messages"]} for row in rows]),
        processing_class=load_tokenizer(root / "lab" / "model"),
        callbacks=[ends],
    )
    trainer.train()
    return between(ends.times)


def ours(root: Path, steps: int, seed: int) -> list[float]:
    """The step times of our stage."""
    lab = root / "lab"
    inputs = [
        {"name": role, "role": role, "kind": kind, "uri": f"pvc://lab/{name}", "digest": digest_folder(lab / name)}
        for role, kind, name in (("policy", "Model", "model"), ("prompts", "Data", "data"))
    ]
    spec = {
        "stage": "sft", "owner": "benchmark", "group": "benchmark", "artifacts": "pvc://lab/artifacts",
        "inputs": inputs, "seed": seed,
        "params": {"maxSteps": steps, "batchSize": BATCH, "learningRate": 1e-3, "maxLength": MAX_LENGTH},
    }  # fmt: skip
    file = root / "spec.json"
    file.write_text(json.dumps(spec), encoding="utf-8")
    if run_stage(Stage.SFT, file) != 0:
        raise SystemExit((root / "termination-log").read_text(encoding="utf-8"))
    uri = json.loads((root / "termination-log").read_text(encoding="utf-8"))["manifestUri"]
    lines = (root / uri.removeprefix("pvc://")).parent / "logs" / "metrics.jsonl"
    return between([json.loads(line)["elapsed"] for line in lines.read_text(encoding="utf-8").splitlines()])


def between(ends: list[float]) -> list[float]:
    """Seconds from each step's end to the next one's, without the warm-up."""
    return [after - before for before, after in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False)]


def main() -> None:
    """Runs both in turn and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    disable_progress_bars()
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        root = Path(folder)
        os.environ |= {
            "FLYWHEEL_CLAIMS_ROOT": str(root), "FLYWHEEL_STATUS_PORT": "0",
            "FLYWHEEL_TERMINATION_LOG": str(root / "termination-log"),
        }  # fmt: skip
        tiny_model.build(root / "lab" / "model")
        tiny_data.write(root / "lab" / "data" / "data.jsonl", tiny_data.traffic(ROWS))
        for number in range(options.rounds):
            times["ours"] += ours(root, options.steps, number)
            times["bare"] += bare(root, options.steps, number)
    fast = {name: statistics.quantiles(found, n=10)[0] for name, found in times.items()}
    middle = {name: statistics.median(found) for name, found in times.items()}
    answer = {
        "ratio": round(fast["ours"] / fast["bare"], 4),
        "ratioOfMedians": round(middle["ours"] / middle["bare"], 4),
        "millisecondsOurs": round(1000 * fast["ours"], 2),
        "millisecondsBare": round(1000 * fast["bare"], 2),
        "steps": len(times["ours"]),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
