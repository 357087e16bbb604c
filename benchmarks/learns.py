"""Does the wheel learn? Two generations of the real small model on real conversations, and what came of each, measured.

Model, data and manifests are the demo's, with more steps, more prompts that judge, a pairwise judge beside the
pointwise reward, and a classifier of the partners' ratings. The operator's planner runs it, without a cluster
(`local_wheel`).
No package ships pairs that several people have reviewed: "preferred" is here what a person really replied, over what
the base model said in its place; ratings are one person's each.

Prints Markdown. Takes half an hour and more on two cores, and 6 GB.
Run it: python -m benchmarks.learns [--keep FOLDER] [--quick]
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.learns_report import Wheel, report
from benchmarks.local_wheel import LocalWheel
from e2e.demo import manifests, material
from flywheel_operator.model.objects import Generation, RewardModel
from flywheel_operator.model.phases import Phase, RewardModelPhase
from flywheel_operator.plan.actions import Manifest

CLAIM: Final = "flywheel"
PAIRWISE: Final = "human-reply-pairwise"
RATED: Final = "found-interesting"

TRAINING: Final = {"maxSteps": 80}
SIGNAL_TRAINING: Final = {"maxSteps": 80, "batchSize": 4}
RECIPE: Final = {
    "rejectionSampling": {"maxPrompts": 64},
    "sft": {"maxSteps": 32},
    "dpo": {"maxSteps": 20, "measuredPairs": 32},
    "rl": {"maxSteps": 8},
}
EVALUATION: Final = {"maxPromptsPerOrigin": 75, "checkpointPromptsPerOrigin": 30}
"""Where the benchmark goes beyond the demo, whose sizes are those of half an hour."""

QUICK_STEPS: Final = {"maxSteps": 2}
QUICK_RECIPE: Final = {"rejectionSampling": {"maxPrompts": 4}, **dict.fromkeys(("sft", "dpo", "rl"), QUICK_STEPS)}
QUICK_EVALUATION: Final = {"maxPromptsPerOrigin": 6, "checkpointPromptsPerOrigin": 4}
"""To see that all of it runs; its figures say nothing."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is trained, and how much judges."""

    reward: Manifest
    signal: Manifest
    recipe: Manifest
    evaluation: Manifest
    gates: Manifest


FULL: Final = Sizes(TRAINING, SIGNAL_TRAINING, RECIPE, EVALUATION, {})
QUICK: Final = Sizes(QUICK_STEPS, QUICK_STEPS, QUICK_RECIPE, QUICK_EVALUATION, {"defaults": "Disabled"})


def pointwise(sizes: Sizes) -> Manifest:
    """The demo's reward model: a person's reply over the base model's."""
    return _changed(manifests.load(manifests.REWARD_MODEL), training=sizes.reward, gates=sizes.gates)


def pairwise(sizes: Sizes) -> Manifest:
    """The same preferences, both replies read at once: it judges, and selects nothing."""
    made = pointwise(sizes)
    return {**made, "metadata": {"name": PAIRWISE}, "spec": {**made["spec"], "type": "Pairwise"}}


def rated(sizes: Sizes) -> Manifest:
    """Whether the partner found the conversation interesting. Both slices: the hold-out goes by user."""
    made = _changed(manifests.load(manifests.REWARD_MODEL), training=sizes.signal, gates=sizes.gates)
    spec = {key: value for key, value in made["spec"].items() if key != "preferences"}
    sources = [source for file in manifests.GENERATIONS for source in manifests.load(file)["spec"]["data"]["traffic"]]
    traffic = [{**source, "name": f"{source['name']}-{number}"} for number, source in enumerate(sources)]
    own = {"type": "UserSignal", "signal": {"name": "foundInteresting"}, "traffic": traffic}
    return {**made, "metadata": {"name": RATED}, "spec": {**spec, **own}}


def generation(file: str, sizes: Sizes, judge: RewardModel, before: Generation | None) -> Manifest:
    """A turn of the wheel; from the last one's candidate where that passed its gates, else from the base model."""
    made = _changed(manifests.load(file), evaluation=sizes.evaluation, gates=sizes.gates)
    spec = made["spec"]
    recipe = {stage: spec["recipe"][stage] | own for stage, own in sizes.recipe.items()}
    # One that is not Ready may judge nothing: a generation that names it would wait for ever.
    ready = judge.status.phase is RewardModelPhase.READY
    evaluation = spec["evaluation"] | ({"pairwise": {"rewardModel": judge.metadata.name}} if ready else {})
    # Nothing is served here, so what waits for approval stands for what is in production.
    passed = before is not None and before.status.phase is Phase.AWAITING_PROMOTION
    candidate = before.status.candidate if before is not None and passed else None
    parent = spec["parent"] if candidate is None else {"model": candidate.uri}
    changed = {"parent": parent, "recipe": recipe, "evaluation": evaluation, "rollout": {"promotion": "Manual"}}
    return {**made, "spec": {**spec, **changed}}


def turn(root: Path, sizes: Sizes) -> Wheel:
    """Trains the judges and both generations, on material below `root`.

    Raises:
        Stuck: the reward model did not pass its gates, so that no generation may use it.
    """
    made = material.prepare(lambda text: print(text, file=sys.stderr), root / "material.log")
    for place, folder in made.folders.items():
        shutil.copytree(folder, root / CLAIM / place)
    wheel = LocalWheel(root)
    judges = [wheel.reward_model(manifest(sizes)) for manifest in (pointwise, pairwise, rated)]
    turned: list[Generation] = []
    for file in manifests.GENERATIONS:
        manifest = generation(file, sizes, judges[1], turned[-1] if turned else None)
        turned.append(wheel.generation(manifest, judges))
    return Wheel(made.rule, judges, turned, [_report(wheel, each) for each in turned], wheel.runs)


def _changed(manifest: Manifest, **parts: Manifest) -> Manifest:
    """The manifest with fields of some parts of its spec changed."""
    spec = manifest["spec"]
    return {**manifest, "spec": {**spec, **{name: spec.get(name, {}) | own for name, own in parts.items()}}}


def _report(wheel: LocalWheel, made: Generation) -> dict[str, Any]:
    """What stage evaluate has left."""
    if made.status.report is None:
        raise RuntimeError(f"{made.metadata.name} was not evaluated: {made.status.conditions}")
    page = wheel.folder(made.status.report)
    found: dict[str, Any] = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Turns the wheel and prints what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learns", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, help="a folder that does not exist yet, for models, reports and logs")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    if options.keep is not None:
        options.keep.mkdir(parents=True)
        print(report(turn(options.keep.resolve(), sizes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(report(turn(Path(folder), sizes)))


if __name__ == "__main__":
    main()
