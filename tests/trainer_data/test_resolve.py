"""Stage resolve: what is accepted, and its digest."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from e2e import tiny_data
from flywheel_contract.stage_result import Reason
from flywheel_trainer.artifacts import digest_folder
from tests.trainer_data.workbench import Workbench


def unresolved(bench: Workbench, role: str, uri: str, name: str = "it") -> dict[str, Any]:
    path = bench.root / uri.removeprefix("pvc://")
    path.mkdir(parents=True, exist_ok=True)
    return {key: value for key, value in bench.input(role, uri, name=name).items() if key != "digest"}


def model_folder(bench: Workbench, config: dict[str, Any], *files: str) -> str:
    folder = bench.claim / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in files:
        (folder / name).write_bytes(b"x")
    return "pvc://lab/models/m"


def refusal(bench: Workbench, *inputs: dict[str, Any]) -> tuple[int, str]:
    code, result = bench.run("resolve", list(inputs))
    assert result.reason in (Reason.INVALID_DATA, Reason.INVALID_MODEL)
    return code, result.message


def test_digests_of_data_and_models_are_answered_by_name(bench: Workbench) -> None:
    data = bench.data("traffic", tiny_data.traffic(3))
    model = model_folder(bench, {"architectures": ["LlamaForCausalLM"]}, "model.safetensors", "tokenizer.json")
    code, result = bench.run(
        "resolve", [unresolved(bench, "traffic", data, "t"), unresolved(bench, "policy", model, "p")]
    )
    assert (code, result.message) == (0, "resolved 2 inputs")
    assert result.outputs == {
        "t": digest_folder(bench.claim / "data/traffic"),
        "p": digest_folder(bench.claim / "models/m"),
    }


def test_an_output_of_ours_has_the_digest_of_its_manifest(bench: Workbench) -> None:
    traffic = bench.input("traffic", bench.data("traffic", tiny_data.traffic(60)))
    _, curated = bench.run("curate", [traffic], privacy={"enabled": False}, safety={"enabled": False})
    _, result = bench.run("resolve", [unresolved(bench, "prompts", bench.output(curated.manifest_uri, "prompts"))])
    assert result.outputs["it"] == curated.outputs["prompts"]


def test_missing_and_empty_data_are_refused(bench: Workbench) -> None:
    missing = {"name": "it", "role": "traffic", "kind": "Data", "uri": "pvc://lab/nowhere"}
    assert refusal(bench, missing) == (65, "input it: pvc://lab/nowhere does not exist")
    folder = bench.claim / "data" / "empty"
    source = unresolved(bench, "traffic", "pvc://lab/data/empty")
    assert refusal(bench, source) == (
        65,
        f"the folder {folder} holds no data file: write one of .jsonl, .json, .jsonl.gz, .parquet into it",
    )
    (folder / "a.jsonl").touch()
    assert refusal(bench, source) == (
        65,
        f"{folder}/a.jsonl is empty: write at least one row into it, or take the source away",
    )


@pytest.mark.parametrize(
    ("config", "files", "said"),
    [
        ({}, ("pytorch_model.bin", "tokenizer.json"), "has pickle weights only (pytorch_model.bin)"),
        (
            {"auto_map": {"AutoModelForCausalLM": "modeling.X"}},
            ("model.safetensors", "tokenizer.json"),
            "needs code of its own (auto_map), which is never run",
        ),
        ({}, ("model.safetensors",), "has no tokenizer"),
        ({}, ("tokenizer.json",), "holds no *.safetensors"),
    ],
)
def test_models_that_could_run_code_or_are_not_complete_are_refused(
    bench: Workbench, config: dict[str, Any], files: tuple[str, ...], said: str
) -> None:
    code, message = refusal(bench, unresolved(bench, "policy", model_folder(bench, config, *files)))
    assert code == 66
    assert said in message


def test_the_kind_of_model_must_fit_its_role(bench: Workbench) -> None:
    model = model_folder(bench, {"architectures": ["LlamaForCausalLM"]}, "model.safetensors", "tokenizer.json")
    assert refusal(bench, unresolved(bench, "reward", model)) == (
        66,
        "input it: pvc://lab/models/m is no reward model; name one that gives a score",
    )
    (bench.claim / "models/m/config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    assert refusal(bench, unresolved(bench, "baseline", model)) == (
        66,
        "input it: pvc://lab/models/m gives scores; name a language model",
    )
    assert bench.run("resolve", [unresolved(bench, "reward", model)])[0] == 0


def test_another_digest_than_the_expected_is_refused(bench: Workbench) -> None:
    source = bench.input("traffic", bench.data("traffic", tiny_data.traffic(3)))
    was = source["digest"]
    bench.data("traffic", tiny_data.traffic(4))
    now = digest_folder(bench.claim / "data/traffic")
    assert refusal(bench, source) == (
        65,
        f"input traffic: pvc://lab/data/traffic is {now}, not {was}; correct the URI or the digest",
    )


def test_resolving_needs_no_torch() -> None:
    code = "import sys, flywheel_trainer.runner, flywheel_trainer.stages.resolve; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert found.stdout.strip() == "False"


def test_a_folder_that_makes_no_embeddings_is_refused_at_once(bench: Workbench) -> None:
    model = model_folder(bench, {"architectures": ["BertModel"]}, "model.safetensors", "tokenizer.json")
    item = unresolved(bench, "embedder", model, "embedder")
    code, message = refusal(bench, item)
    assert code == 66
    assert message.endswith("/models/m has no modules.json; name a model that sentence-transformers saved")
    modules = bench.claim / "models" / "m" / "modules.json"
    modules.write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')
    code, result = bench.run("resolve", [item])
    assert (code, result.outputs) == (0, {"embedder": digest_folder(bench.claim / "models/m")})
