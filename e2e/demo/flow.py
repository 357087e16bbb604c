"""The demo from the first step to the last: cluster, operator, reward model, two generations, online test, results."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from e2e import installation
from e2e.cluster import ClusterError
from e2e.demo import chat, manifests, material, online, reporters, results, storage
from e2e.demo.board import Board, Step
from e2e.demo.chitchat import CHARACTER, SYSTEM_PROMPT
from e2e.demo.diagnosis import diagnose
from e2e.demo.errors import DemoError
from e2e.demo.objects import KINDS, Turn
from e2e.demo.watch import TurnFailedError, follow, now, turns
from e2e.images import targets
from e2e.kubectl import Kubectl, KubectlError, Manifest
from flywheel_operator.model.names import COMMAND_RETIRE

NAMESPACE = "flywheel-demo"
DEFAULT_CLUSTER = "flywheel"
OUTPUT = installation.ROOT / ".demo"
EXPECTED = (DemoError, ClusterError, KubectlError)
INTERRUPTED = 130


class Demo:
    """One run of the demo. Whatever exists already is kept, so a second run goes on where the first one ended."""

    def __init__(self, console: Console, target: targets.Target, board: Board, reporter: reporters.Reporter) -> None:
        """Everything that it talks to."""
        self._console, self._target, self._board, self._reporter = console, target, board, reporter

    def run(self) -> results.Results:
        """All steps.

        Raises:
            DemoError, ClusterError, KubectlError: one of them failed.
        """
        files = (manifests.REWARD_MODEL, *manifests.GENERATIONS)
        self._board.planned = tuple(manifests.name_of(file) for file in files)
        with self.step(f"Kubernetes cluster {self._target.context}"):
            self._target.up()
        with self.step("Images"):
            images = self._target.images(installation.IMAGES)
        with self.step("Base model and data"):
            prepared = material.prepare(self._reporter.say, OUTPUT / "prepare.log")
        kubectl = self.kubectl()
        claim = storage.Claim(kubectl, images["trainer"])
        with self.step("Operator, by its Helm chart"):
            kubectl.apply(installation.namespace_manifest(NAMESPACE))
            self._install(images)
        with self.step("Base model and data on a claim of the cluster"):
            claim.open()
            claim.put(prepared.folders, self._reporter.say)
        judge = self._turn(kubectl, manifests.load(manifests.REWARD_MODEL))
        generations: list[Turn] = []
        for file in manifests.GENERATIONS:
            manifest = manifests.with_parent(manifests.load(file), generations[-1] if generations else None)
            generations.append(self._turn(kubectl, manifest))
        # What serves may have changed since the first one ended.
        latest = turns(kubectl)
        judge, generations = latest[judge.name], [latest[g.name] for g in generations]
        with self.step("Plots, and the same prompt to all models"):
            plots = results.collect(claim, [judge, *generations], OUTPUT)
            answers = self._answers(claim, generations)
        tested = None
        if (uri := online.candidate_uri(generations)) is not None:
            with self.step("Online test on simulated users"):
                tested = online.run(kubectl, claim, uri, images["operator"], OUTPUT, self._reporter.say)
        return results.Results(self._board, judge, generations, answers, plots, prepared.rule, tested)

    def kubectl(self) -> Kubectl:
        """kubectl in the demo's namespace."""
        return Kubectl(self._target.kubectl, self._target.kubeconfig, NAMESPACE)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Shows a step while it runs."""
        step = Step(title, now())
        self._board.steps.append(step)
        self._reporter.show()
        yield
        step.ended = now()
        self._reporter.show()

    def _install(self, images: dict[str, str]) -> None:
        try:
            installation.install(self._target, NAMESPACE, images)
        except subprocess.CalledProcessError as error:
            raise DemoError(f"helm ended with exit code {error.returncode}; it says why above") from error

    def _turn(self, kubectl: Kubectl, manifest: Manifest) -> Turn:
        """Apply an object, unless it is there, and follow it to its end. One that failed before is tried anew."""
        kind, name = KINDS[manifest["kind"]], manifest["metadata"]["name"]
        old = kubectl.get(kind, name)
        if old is not None and (turn := Turn.parse(old)).ended and not turn.came_to_an_answer:
            self._reporter.say(f"{name} was {turn.outcome}: created anew; finished stages are taken from the store")
            kubectl("delete", kind, name, "--wait=true")
            old = None
        if old is None:
            kubectl.apply(manifest)
        follow(kubectl, [name], self._board, self._reporter)
        return self._board.turns[name]

    def _answers(self, claim: storage.Claim, generations: Sequence[Turn]) -> dict[str, str]:
        first = manifests.load(manifests.GENERATIONS[0])["spec"]
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": chat.PROMPT}]
        speakers = results.speakers(first["parent"]["model"], generations, first["lineage"])
        return chat.answers(claim, speakers, messages)


def up(console: Console) -> int:
    """Run the demo and answer the exit code: 0 also where a generation was gated, for that is an answer."""
    board = Board(now())
    reporter = reporters.choose(console, board, now)
    target = targets.choose(_cluster_name(), os.environ, reporter.say)
    demo = Demo(console, target, board, reporter)
    try:
        with reporter:
            found = demo.run()
    except KeyboardInterrupt:
        console.print("\nInterrupted. The cluster goes on: `make demo` watches again, `make demo-down` removes it all.")
        return INTERRUPTED
    except EXPECTED as error:
        console.print(f"\n{error}\n", style="red", markup=False, highlight=False, soft_wrap=True)
        turn = error.turn if isinstance(error, TurnFailedError) else None
        if board.turns or not isinstance(error, ClusterError):
            console.print(diagnose(demo.kubectl(), turn), markup=False, highlight=False, soft_wrap=True)
        return error.exit_code if isinstance(error, ClusterError) else 1
    found.show(console)
    report = found.write(OUTPUT)
    console.print(_farewell(target, report, found), markup=False, highlight=False, soft_wrap=True)
    return 0


def down(console: Console) -> int:
    """Remove what the demo made. The results in .demo and the caches stay."""
    target = targets.choose(_cluster_name(), os.environ)
    try:
        if os.environ.get("CONTEXT"):
            target.up()
            _leave(target)
        target.down()
    except EXPECTED as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return error.exit_code if isinstance(error, ClusterError) else 1
    return 0


def _leave(target: targets.Target) -> None:
    """Take the demo out of a cluster that stays. The operator goes last, for it lets the serving Generation go."""
    kubectl = Kubectl(target.kubectl, target.kubeconfig, NAMESPACE)
    with contextlib.suppress(KubectlError):
        kubectl("annotate", "generations", "--all", "--overwrite", f"{COMMAND_RETIRE}=yes")
        kubectl("delete", "abtests", "--all", "--timeout=180s")
        kubectl("delete", f"{KINDS['Generation']},{KINDS['RewardModel']}", "--all", "--timeout=180s")
    installation.uninstall(target, NAMESPACE)
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=180s")


def _cluster_name() -> str:
    return os.environ.get("NAME") or DEFAULT_CLUSTER


def _farewell(target: targets.Target, report: Path, found: results.Results) -> str:
    lineage = manifests.load(manifests.GENERATIONS[0])["spec"]["lineage"]
    lines = [f"\nThe report: {report}", *(f"The plot:   {file}" for file in found.plots)]
    kubectl = f"{target.kubectl} --kubeconfig={target.kubeconfig} -n {NAMESPACE}"
    if any(turn.promoted for turn in found.generations):
        ask = f'{{"messages": [{{"role": "user", "content": "{chat.PROMPT}"}}]}}'
        lines += [
            f"\nChat with {CHARACTER} yourself:",
            f"  {kubectl} port-forward svc/{lineage} 8000:80 &",
            f"  curl -s localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{ask}'",
        ]
    lines += ["\nLook around:", f"  {kubectl} get flywheel", "Clean up:", "  make demo-down"]
    return "\n".join(lines)
