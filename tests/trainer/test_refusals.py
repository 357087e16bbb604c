"""What a stage refuses: each mistake has its exit code and a sentence that names the thing and the fix."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from e2e import tiny_data
from flywheel_contract.stage_result import Reason
from flywheel_trainer.models import load_tokenizer, read_scorer
from tests.trainer.workshop import Json, Workshop

pytestmark = pytest.mark.training


@pytest.fixture
def traffic(workshop: Workshop) -> Json:
    return workshop.input("prompts", workshop.add_data("traffic", tiny_data.traffic(40)))


@pytest.fixture
def policy(workshop: Workshop, tiny: Path) -> Json:
    return workshop.input("policy", workshop.add_model(tiny, "base"))


def test_broken_weights_end_with_the_step(workshop: Workshop, policy: Json, traffic: Json) -> None:
    file = workshop.path(policy["uri"]) / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][:] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    code, result = workshop.run("sft", [workshop.input("policy", policy["uri"]), traffic], maxSteps=4)
    assert (code, result.reason) == (70, Reason.NOT_FINITE)
    assert "step 0" in result.message


def test_a_reward_that_is_nan_ends_with_the_step(workshop: Workshop, policy: Json, traffic: Json) -> None:
    base = workshop.path(policy["uri"])
    model = read_scorer(base, torch.float32)
    torch.nn.init.constant_(model.score.weight, torch.nan)
    folder = workshop.claim / "models" / "reward"
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    reward = workshop.input("reward", "pvc://lab/models/reward")
    code, result = workshop.run(
        "rl", [policy, traffic, reward], batchSize=4, numGenerations=2, maxNewTokens=4, maxSteps=2
    )
    assert (code, result.reason) == (70, Reason.NOT_FINITE)
    assert result.message == "reward model reward gave a reward that is no finite number, at step 1"


def test_pickle_weights_are_refused(workshop: Workshop, policy: Json, traffic: Json) -> None:
    folder = workshop.path(policy["uri"])
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    code, result = workshop.run("sft", [workshop.input("policy", policy["uri"]), traffic])
    assert (code, result.reason) == (66, Reason.INVALID_MODEL)
    assert "pytorch_model.bin" in result.message
    assert "save_pretrained" in result.message


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(workshop: Workshop, policy: Json, traffic: Json, name: str) -> None:
    file = workshop.path(policy["uri"]) / name
    config = json.loads(file.read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    file.write_text(json.dumps(config))
    code, result = workshop.run("sft", [workshop.input("policy", policy["uri"]), traffic])
    assert (code, result.reason) == (66, Reason.INVALID_MODEL)
    assert "auto_map" in result.message


def test_missing_weights_are_refused_and_not_drawn_at_random(workshop: Workshop, policy: Json, traffic: Json) -> None:
    file = workshop.path(policy["uri"]) / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    code, result = workshop.run("sft", [workshop.input("policy", policy["uri"]), traffic])
    assert (code, result.reason) == (66, Reason.INVALID_MODEL)
    assert "model.norm.weight" in result.message


def test_a_language_model_is_no_reward_model(workshop: Workshop, policy: Json, traffic: Json) -> None:
    reward = workshop.input("reward", policy["uri"])
    code, result = workshop.run("rl", [policy, traffic, reward], numGenerations=4, maxNewTokens=8)
    assert (code, result.reason) == (66, Reason.INVALID_MODEL)


def test_data_that_changed_is_refused(workshop: Workshop, policy: Json, traffic: Json) -> None:
    tiny_data.write(workshop.path(traffic["uri"]) / "data.jsonl", tiny_data.traffic(41))
    code, result = workshop.run("sft", [policy, traffic])
    assert (code, result.reason) == (65, Reason.INVALID_DATA)
    assert "changed since it was resolved" in result.message


def test_data_that_is_missing_is_refused(workshop: Workshop, policy: Json, traffic: Json) -> None:
    (workshop.path(traffic["uri"]) / "data.jsonl").unlink()
    workshop.path(traffic["uri"]).rmdir()
    code, result = workshop.run("sft", [policy, traffic])
    assert (code, result.reason) == (65, Reason.INVALID_DATA)
    assert "does not exist" in result.message


@pytest.mark.parametrize(
    ("stage", "roles", "params", "says"),
    [
        ("sft", ("prompts",), {}, "exactly one input of role policy"),
        ("sft", ("policy",), {}, "nothing to imitate"),
        ("dpo", ("policy",), {}, "pairs or preferences"),
        ("rl", ("policy", "prompts"), {"numGenerations": 3}, "numGenerations 3"),
        ("rl", ("policy", "prompts"), {"numGenerations": 4, "maxNewTokens": 8}, "needs a reward model"),
        ("rl", ("policy", "prompts"), {"maxNewTokens": 96}, "leaves no room"),
        ("rl", ("policy", "prompts"), {"algorithm": "OnlineDPO", "beta": 0, "maxNewTokens": 8}, "a beta above 0"),
        ("rl", ("policy", "prompts"), {"engine": "VLLM", "maxNewTokens": 8}, "engine VLLM needs a GPU"),
        ("sft", ("policy", "prompts"), {"acceptedWeight": {"internal": 0, "user": 0}}, "every source has weight 0"),
        ("sft", ("policy", "prompts"), {"lora": {"quantization": "NF4"}}, "needs a GPU: set runtime.gpus"),
        ("sft", ("policy", "prompts"), {"deepspeed": {}, "deepspeedConfig": "{}"}, "both set"),
        ("sft", ("policy", "prompts"), {"deepspeedConfig": "{"}, "no JSON"),
        ("sft", ("policy", "prompts"), {"deepspeedConfig": '{"zero_optimization": {"stage": 3}}'}, "gather"),
    ],
)
def test_what_cannot_work_is_a_mistake_in_the_configuration(
    workshop: Workshop, policy: Json, traffic: Json, stage: str, roles: tuple[str, ...], params: Json, says: str
) -> None:
    inputs = [each for each in (policy, traffic) if each["role"] in roles]
    code, result = workshop.run(stage, inputs, **params)
    assert (code, result.reason) == (78, Reason.INVALID_CONFIG)
    assert says in result.message


def test_rows_that_are_all_too_long_are_said(workshop: Workshop, policy: Json) -> None:
    pairs = workshop.input("preferences", workshop.add_data("pairs", tiny_data.preferences(10)))
    code, result = workshop.run("dpo", [policy, pairs], maxLength=8)
    assert (code, result.reason) == (65, Reason.INVALID_DATA)
    assert "no row is left" in result.message
