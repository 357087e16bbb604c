"""The CRDs in a real API server: accepted, defaults filled in, spec frozen after the start, columns, explain."""

import json
import re
from typing import Any

import pytest
import yaml

from flywheel_operator.model.abtest import ABTestSpec
from flywheel_operator.model.generation import FROZEN, GenerationSpec
from flywheel_operator.model.reward_model import RewardModelSpec
from tests.crds import examples
from tests.crds.schema import fields, schemas
from tests.kubernetes_fixtures import GROUP, Kubectl, Object

pytestmark = pytest.mark.apiserver

STARTED = {"phase": "Running", "observedGeneration": 1, "startTime": "2026-01-01T00:00:00Z"}

CHANGES: dict[str, dict[str, Any]] = {
    "lineage": {"lineage": "sol"},
    "parent": {"parent": {"model": "pvc://models/other"}},
    "characters": {"characters": [{"name": "luna", "systemPrompt": "You are Luna."}]},
    "artifacts": {"artifacts": {"uri": "pvc://artifacts/elsewhere"}},
    "data": {"data": {"sft": [{"name": "more", "uri": "pvc://artifacts/more.jsonl"}]}},
    "curation": {"curation": {"holdoutFraction": 0.3}},
    "rewards": {"rewards": [{"rewardModel": "luna-likes", "weight": 2}]},
    "recipe": {"recipe": {"rl": None}},
    "evaluation": {"evaluation": {"temperature": 1}},
    "dryRun": {"dryRun": {}},
    "style": {"style": {"patterns": [{"name": "sigh", "pattern": "sigh"}]}},
    "gates": {"gates": {"defaults": "Disabled"}},
    "serving": {"serving": {"replicas": 2}},
    "runtime": {"runtime": {"gpus": 1}},
    "seed": {"seed": 1},
    "retryPolicy": {"retryPolicy": {"maxRetries": 9}},
    "activeDeadlineSeconds": {"activeDeadlineSeconds": 60},
}
"""A change of every frozen field of the example."""


@pytest.mark.parametrize("plural", ["abtests", "generations", "rewardmodels"])
def test_the_crd_is_established_and_structural(cluster_kubectl: Kubectl, plural: str) -> None:
    crd = cluster_kubectl.json("get", "crd", f"{plural}.{GROUP}")
    conditions = {c["type"]: c["status"] for c in crd["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    (version,) = crd["spec"]["versions"]
    stored = {path for path, _ in fields(version["schema"]["openAPIV3Schema"])}
    assert stored == {path for path, _ in fields(schemas()[f"{GROUP}_{plural}.yaml"])}


def test_defaults_are_filled_in_and_are_those_of_the_models(kubectl: Kubectl) -> None:
    kubectl("create", "--validate=strict", "--filename=-", stdin=yaml.safe_dump(examples.generation(kubectl.namespace)))
    stored = kubectl.json("get", "generation", "luna-1")["spec"]
    short = GenerationSpec.model_validate(examples.generation()["spec"])
    assert GenerationSpec.model_validate(stored) == short
    assert stored == short.to_json()


def test_so_are_those_of_a_test(kubectl: Kubectl) -> None:
    kubectl("create", "--validate=strict", "--filename=-", stdin=yaml.safe_dump(examples.ab_test(kubectl.namespace)))
    stored = kubectl.json("get", "abtest", "luna-handmade")["spec"]
    short = ABTestSpec.model_validate(examples.ab_test()["spec"])
    assert ABTestSpec.model_validate(stored) == short
    assert stored == short.to_json()


def test_a_generation_may_ask_for_a_test_in_two_words(kubectl: Kubectl) -> None:
    example = examples.merged(examples.generation(kubectl.namespace), {"spec": {"rollout": {"abTest": {}}}})
    kubectl("create", "--validate=strict", "--filename=-", stdin=yaml.safe_dump(example))
    stored = kubectl.json("get", "generation", "luna-1")["spec"]
    assert GenerationSpec.model_validate(stored) == GenerationSpec.model_validate(example["spec"])
    assert stored["rollout"]["abTest"]["duration"] == "168h"


def test_a_test_that_runs_cannot_be_changed_but_paused(kubectl: Kubectl) -> None:
    kubectl("create", "--filename=-", stdin=yaml.safe_dump(examples.ab_test(kubectl.namespace)))
    status = {"status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z"}}
    kubectl("patch", "abt", "luna-handmade", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    longer = json.dumps({"spec": {"duration": "336h"}})
    done = kubectl.run("patch", "abt", "luna-handmade", "--type=merge", "-p", longer)
    assert "spec.duration cannot change once the ABTest has started" in done.stderr
    kubectl("patch", "abt", "luna-handmade", "--type=merge", "-p", json.dumps({"spec": {"pauseTreatment": True}}))


def test_so_are_those_of_a_reward_model_and_null_keeps_its_meaning(kubectl: Kubectl) -> None:
    example = examples.reward_model(kubectl.namespace)
    example["spec"]["training"] = {"pairFilter": {"maxLengthRatio": None}}
    kubectl("create", "--validate=strict", "--filename=-", stdin=yaml.safe_dump(example))
    stored = kubectl.json("get", "rewardmodel", "luna-likes")["spec"]
    assert RewardModelSpec.model_validate(stored) == RewardModelSpec.model_validate(example["spec"])
    assert stored["training"]["pairFilter"]["maxLengthRatio"] is None


def test_the_changes_below_are_of_every_frozen_field() -> None:
    assert set(CHANGES) == {GenerationSpec.model_fields[name].alias for name in FROZEN}


def test_once_started_the_spec_is_frozen_but_for_suspend_rollout_and_ttl(kubectl: Kubectl) -> None:
    example = examples.generation(kubectl.namespace)
    kubectl.apply(example)
    for patch in CHANGES.values():
        _patch(kubectl, patch)
    kubectl.set_status("generation", "luna-1", STARTED)

    for name, patch in CHANGES.items():
        done = kubectl.run("patch", "generation", "luna-1", "--type=merge", "--dry-run=server", "-p", _spec(patch))
        assert done.returncode != 0, f"{name} was changed"
        assert f"spec.{name} cannot change once the Generation has started: create a new Generation" in done.stderr
        assert f"spec.{name}: Invalid value" in done.stderr

    for patch in (
        {"suspend": True},
        {"suspend": False},
        {"rollout": {"promotion": "Manual"}},
        {"ttlSecondsAfterFinished": 60},
        {"ttlSecondsAfterFinished": None},
    ):
        _patch(kubectl, patch)
    kubectl("annotate", "generation", "luna-1", f"{GROUP}/abort=now")
    kubectl.set_status("generation", "luna-1", {"phase": "Aborted"})


def test_git_may_apply_the_short_manifest_again_after_the_start(kubectl: Kubectl) -> None:
    """What the server filled in is no change of the user's."""
    example = examples.merged(examples.generation(kubectl.namespace), {"spec": {"rollout": {"abTest": {}}}})
    kubectl.apply(example)
    kubectl.set_status("generation", "luna-1", STARTED)
    before = kubectl.json("get", "generation", "luna-1")["metadata"]
    kubectl.apply(example)
    after = kubectl.json("get", "generation", "luna-1")["metadata"]
    assert after["generation"] == before["generation"]


def test_a_started_reward_model_is_frozen_but_for_suspend_and_ttl(kubectl: Kubectl) -> None:
    kubectl.apply(examples.reward_model(kubectl.namespace))
    kubectl.set_status("rewardmodel", "luna-likes", STARTED)
    done = kubectl.run("patch", "rewardmodel", "luna-likes", "--type=merge", "-p", _spec({"seed": 1}))
    assert "spec.seed cannot change once the RewardModel has started: create a new RewardModel" in done.stderr
    kubectl("patch", "rewardmodel", "luna-likes", "--type=merge", "-p", _spec({"suspend": True}))


def test_columns_of_a_generation(kubectl: Kubectl) -> None:
    kubectl.apply(examples.generation(kubectl.namespace))
    kubectl.set_status(
        "generation",
        "luna-1",
        STARTED
        | {
            "stage": "dpo",
            "progress": "40% (3/6)",
            "winRate": "0.57",
            "verdict": {"result": "Promoted", "reason": "AllGatesPassed", "message": "All 9 gates passed."},
            "conditions": [
                _condition("Progressing", "True", "StageRunning", "dpo at step 40 of 100"),
                _condition("Serving", "True", "Production", "It serves."),
            ],
        },
    )
    assert _table(kubectl, "gen") == {
        "NAME": "luna-1",
        "PHASE": "Running",
        "STAGE": "dpo",
        "PROGRESS": "40% (3/6)",
        "WIN-RATE": "0.57",
        "VERDICT": "Promoted",
        "SERVING": "Production",
    }
    wide = _table(kubectl, "gen", "--output=wide")
    assert (wide["LINEAGE"], wide["REASON"]) == ("luna", "dpo at step 40 of 100")


def test_columns_of_a_reward_model(kubectl: Kubectl) -> None:
    kubectl.apply(examples.reward_model(kubectl.namespace))
    kubectl.set_status(
        "rewardmodel", "luna-likes", STARTED | {"stage": "reward-model", "progress": "10%", "accuracy": "0.63"}
    )
    assert _table(kubectl, "rm") == {
        "NAME": "luna-likes",
        "PHASE": "Running",
        "STAGE": "reward-model",
        "PROGRESS": "10%",
        "ACCURACY": "0.63",
        "AUC": "",
        "TYPE": "Pointwise",
    }


def test_both_kinds_are_found_by_their_category(kubectl: Kubectl) -> None:
    kubectl.apply(examples.generation(kubectl.namespace), examples.reward_model(kubectl.namespace))
    names = kubectl("get", "flywheel", "--output=name").split()
    assert names == [f"generation.{GROUP}/luna-1", f"rewardmodel.{GROUP}/luna-likes"]


def test_explain_reads_like_documentation(cluster_kubectl: Kubectl) -> None:
    text = " ".join(cluster_kubectl("explain", "generation.spec.recipe").split())
    assert "The training stages." in text
    assert "Supervised fine-tuning on accepted replies and data.sft." in text
    text = " ".join(cluster_kubectl("explain", "generation.spec.recipe.dpo.beta").split())
    assert "Strength of the pull to the reference (KL)." in text


def _condition(kind: str, status: str, reason: str, message: str) -> Object:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def _spec(patch: dict[str, Any]) -> str:
    return json.dumps({"spec": patch})


def _patch(kubectl: Kubectl, patch: dict[str, Any]) -> None:
    kubectl("patch", "generation", "luna-1", "--type=merge", "--dry-run=server", "-p", _spec(patch))


def _table(kubectl: Kubectl, kind: str, *arguments: str) -> dict[str, str]:
    """The only row of `kubectl get`, cut where the headers begin; without the age, which changes."""
    header, row = kubectl("get", kind, *arguments).rstrip("\n").split("\n")
    heads = list(re.finditer(r"\S+", header))
    ends = [head.start() for head in heads[1:]] + [len(row)]
    cells = {head[0]: row[head.start() : end].strip() for head, end in zip(heads, ends, strict=True)}
    cells.pop("AGE")
    return cells
