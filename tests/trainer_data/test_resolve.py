"""Stage resolve: what is accepted, and its digest."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from e2e import tiny_data
from flywheel_contract.stage_result import Reason
from flywheel_contract.stage_spec import Character
from flywheel_trainer import counting
from flywheel_trainer.artifacts import digest_folder
from flywheel_trainer.data.rows import Conversation
from flywheel_trainer.errors import ModelError
from flywheel_trainer.models import load_tokenizer, read_policy
from flywheel_trainer.prompts import render, token_ids, with_character
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


def sizes(bench: Workbench, *inputs: dict[str, Any], **params: int) -> tuple[int, Any]:
    code, result = bench.run("resolve", list(inputs), count=True, **params)
    return code, result.sizes or result.message


def test_a_dry_run_counts_rows_tokens_and_parameters_in_the_order_of_the_inputs(model_bench: Workbench) -> None:
    rows = tiny_data.traffic(30)
    traffic = unresolved(model_bench, "traffic", model_bench.data("counted", rows), "traffic-a")
    pairs = unresolved(model_bench, "preferences", model_bench.data("pairs", tiny_data.preferences(20)), "pairs")
    general = unresolved(
        model_bench,
        "general",
        model_bench.data("general", [{"messages": row["messages"]} for row in rows[:3]]),
        "general",
    )
    parent = unresolved(model_bench, "policy", "pvc://lab/models/one", "parent")
    code, found = sizes(model_bench, traffic, pairs, general, parent, maxTokens=4096)
    assert code == 0, found
    tokenizer = load_tokenizer(model_bench.claim / "models" / "one")
    written = [
        Conversation.model_validate({"origin": "User", **json.loads(line)}).messages
        for line in (model_bench.claim / "data" / "counted" / "data.jsonl").read_text().splitlines()
    ]
    character = Character(name=tiny_data.CHARACTER, system_prompt=tiny_data.SYSTEM_PROMPT)
    told = [with_character(messages, tiny_data.CHARACTER, [character]) for messages in written]
    assert found[0] == (30, sum(len(token_ids(tokenizer, render(tokenizer, messages))) for messages in told))
    assert found[1][0] == 20
    assert found[2][0] == 3
    model = read_policy(model_bench.claim / "models" / "one", torch.float32)
    assert found[3] == (0, sum(p.numel() for p in model.parameters()))
    _, cut = sizes(model_bench, traffic, parent, maxTokens=8)
    assert cut[0] == (30, 8 * 30), "a row counts for no more than a stage would take"


def test_of_many_rows_a_sample_counts_for_the_whole(model_bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "SAMPLE", 10)
    traffic = unresolved(model_bench, "traffic", model_bench.data("many", tiny_data.traffic(40)), "traffic-a")
    parent = unresolved(model_bench, "policy", "pvc://lab/models/one", "parent")
    _, found = sizes(model_bench, traffic, parent, maxTokens=8)
    assert found[0] == (40, 320)


def test_a_dry_run_refuses_rows_that_a_stage_would_refuse_later(model_bench: Workbench) -> None:
    model_bench.data("broken", tiny_data.traffic(2))
    file = model_bench.claim / "data" / "broken" / "data.jsonl"
    file.write_text(file.read_text() + '{"messages": 7}\n')
    traffic = unresolved(model_bench, "traffic", "pvc://lab/data/broken", "traffic-a")
    parent = unresolved(model_bench, "policy", "pvc://lab/models/one", "parent")
    code, said = sizes(model_bench, traffic, parent)
    assert code == 65
    assert f"{file}, line 3" in said


def test_a_dry_run_without_a_parent_cannot_count(model_bench: Workbench) -> None:
    traffic = unresolved(model_bench, "traffic", model_bench.data("alone", tiny_data.traffic(2)), "traffic-a")
    assert sizes(model_bench, traffic) == (
        78,
        "a dry run counts with the parent's tokenizer, and no parent was given to resolve",
    )


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]"])
def test_weights_that_are_cut_short_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="is no safetensors file, or was cut short: copy it whole"):
        counting.parameters(tmp_path)


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
