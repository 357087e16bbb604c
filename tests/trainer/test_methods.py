"""The parts of the methods, without a training: importance weights, choosing prompts, packing, presets, trackers."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState, TrainingArguments

from flywheel_contract.params import (
    Engine,
    ImportanceSampling,
    LoraParams,
    PromptSelectionParams,
    RlParams,
    TrainingParams,
)
from flywheel_contract.paths import REPORT_TO
from flywheel_contract.stage_spec import RlSpec
from flywheel_contract.stages import Origin
from flywheel_trainer import deepspeed_presets, engines, importance, models, packing, preferred, rl_trainers, tracking
from flywheel_trainer import prompt_selection as selection
from flywheel_trainer.artifacts import Store
from flywheel_trainer.context import StageContext
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.training import prepare


def context(root: Path) -> StageContext:
    """An rl stage that has its folder in a claim below `root`."""
    (root / "lab").mkdir(exist_ok=True)
    spec = RlSpec.model_validate({"owner": "gen-1", "group": "captain", "artifacts": "pvc://lab/out"})
    return StageContext(spec, Store(root))


# Importance sampling


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (ImportanceSampling.TOKEN_TRUNCATE, [[1.5, 0.5, 1.0]]),
        (ImportanceSampling.TOKEN_MASK, [[0.0, 0.5, 1.0]]),
        (ImportanceSampling.SEQUENCE_TRUNCATE, [[1.0]]),
        (ImportanceSampling.SEQUENCE_MASK, [[1.0]]),
    ],
)
def test_weights_are_ratios_up_to_the_bound(mode: ImportanceSampling, expected: list[list[float]]) -> None:
    learner, sampler = torch.tensor([[0.5, 0.25, 0.9]]).log(), torch.tensor([[0.25, 0.5, 0.1]]).log()
    mask = torch.tensor([[1, 1, 0]])
    assert importance.weights(learner, sampler, mask, mode, 1.5) == pytest.approx(np.array(expected))


def test_a_sequence_beyond_the_bound_is_cut_or_left_out() -> None:
    learner, sampler, mask = torch.zeros(1, 4), torch.full((1, 4), -1.0), torch.ones(1, 4)
    cut = importance.weights(learner, sampler, mask, ImportanceSampling.SEQUENCE_TRUNCATE, 3.0)
    left_out = importance.weights(learner, sampler, mask, ImportanceSampling.SEQUENCE_MASK, 3.0)
    assert (cut.item(), left_out.item()) == (3.0, 0.0)


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=8), st.sampled_from(sorted(importance.TRL_MODES)))
def test_equal_probabilities_weigh_one(logps: list[float], mode: ImportanceSampling) -> None:
    same = torch.tensor([logps])
    assert torch.equal(importance.weights(same, same, torch.ones_like(same), mode, 2.0).unique(), torch.ones(1))


def test_the_recorder_notes_what_each_token_was_sampled_with() -> None:
    recorder = importance.Recorder(temperature=2.0)
    first, second = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 4.0]])
    assert recorder(torch.tensor([[9]]), first) is first
    recorder(torch.tensor([[9, 1]]), second)
    found = recorder.log_probabilities(torch.tensor([[9, 1, 0]]))
    expected = [torch.log_softmax(first / 2, -1)[0, 1], torch.log_softmax(second / 2, -1)[0, 0]]
    assert found[0].tolist() == pytest.approx([e.item() for e in expected])


@pytest.mark.parametrize(
    ("params", "mode", "note"),
    [
        ({}, ImportanceSampling.NONE, "importance sampling NotApplicable: the learner itself samples, in fp32"),
        ({"precision": "BF16"}, ImportanceSampling.TOKEN_TRUNCATE, None),
        ({"importanceSampling": "SequenceMask"}, ImportanceSampling.SEQUENCE_MASK, None),
        ({"importanceSampling": "None"}, ImportanceSampling.NONE, "importance sampling is switched off"),
        (
            {"algorithm": "OnlineDPO", "importanceSampling": "TokenMask"},
            ImportanceSampling.NONE,
            "importance sampling NotApplicable: OnlineDPO learns from pairs, not from ratios",
        ),
    ],
)
def test_what_is_not_corrected_is_said(
    tmp_path: Path, params: dict[str, Any], mode: ImportanceSampling, note: str | None
) -> None:
    ctx = context(tmp_path)
    assert rl_trainers.correction(ctx, RlParams.model_validate(params)) is mode
    assert ctx.notes == ([] if note is None else [note])


def test_vllm_has_a_correction_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "use_vllm", lambda engine: engine is Engine.VLLM)
    params = RlParams.model_validate({"engine": "VLLM"})
    assert rl_trainers.correction(context(tmp_path), params) is ImportanceSampling.SEQUENCE_MASK


def test_vllm_is_refused_where_it_cannot_run() -> None:
    assert not engines.use_vllm(Engine.AUTO)
    assert not engines.use_vllm(Engine.TRANSFORMERS)
    with pytest.raises(ConfigError, match="engine VLLM needs a GPU; ask for Auto"):
        engines.use_vllm(Engine.VLLM)


# Prompts


def choose(rewards: list[list[float]], wanted: int, **params: Any) -> selection.Chosen:  # noqa: ANN401 -- JSON
    table = np.array(rewards, dtype=float)

    def near(members: Sequence[int]) -> NDArray[np.float64]:
        return -np.array(members, dtype=float)

    given = PromptSelectionParams.model_validate(params)
    return selection.choose(len(rewards), wanted, given, near, lambda members: table[list(members)])


def test_low_reward_and_high_variance_choose_differently() -> None:
    rewards = [[5.0, 6.0], [-3.0, -2.9], [0.0, 4.0], [9.0, 9.5]]
    assert choose(rewards, 4, by="LowReward", keepFraction=0.5).indexes == [1, 2]
    assert choose(rewards, 4, by="HighVariance", keepFraction=0.5).indexes == [2, 0]


def test_prompts_whose_replies_all_score_the_same_are_never_chosen() -> None:
    found = choose([[1.0, 1.0], [0.0, 1.0], [-9.0, -9.0]], 3, by="LowReward", keepFraction=1.0)
    assert (found.indexes, found.flat, found.passed_over) == ([1], 2, 0)


def test_what_is_missing_is_refilled_until_there_is_no_more() -> None:
    rewards = [[0.0, float(i)] for i in range(10)]
    full = choose(rewards, 3, keepFraction=0.34)
    assert (full.indexes, full.rounds, full.candidates) == ([2, 1, 5], 2, 6)
    ended = choose(rewards, 3, keepFraction=0.01, maxRounds=2)
    assert (ended.indexes, ended.rounds) == ([2, 5], 2)
    assert choose(rewards, 100, keepFraction=1.0).rounds == 1


def test_far_prompts_are_not_sampled() -> None:
    found = choose([[0.0, 1.0]] * 4, 4, nearPolicyFraction=0.5, keepFraction=1.0)
    assert (sorted(found.indexes), found.far, found.sampled) == ([0, 1], 2, 2)
    assert found.counts() == {
        "selection.rounds": 1, "selection.candidates": 4, "selection.far": 2, "selection.sampled": 2,
        "selection.flat": 0, "selection.passedOver": 0, "selection.chosen": 2,
    }  # fmt: skip


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=40),
    st.integers(1, 12),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(1, 5),
)
def test_every_candidate_is_accounted_for(
    rewards: list[list[float]], wanted: int, keep: float, near: float, rounds: int
) -> None:
    found = choose(rewards, wanted, keepFraction=keep, nearPolicyFraction=near, maxRounds=rounds)
    assert len(set(found.indexes)) == len(found.indexes) <= wanted
    assert found.candidates == found.far + found.sampled <= len(rewards)
    assert found.sampled == found.flat + found.passed_over + len(found.indexes)


# Packing


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_do_not_see_each_other(tiny: Path, attention: str) -> None:
    model = models.read_policy(tiny, torch.float32, attn_implementation=attention).train()
    packing.check(model, range(10, 60), range(100, 160))
    assert model.training


def test_packing_is_refused_where_they_do(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.read_policy(tiny, torch.float32)
    forward = model.forward

    def leaky(*arguments: Any, position_ids: Any, **options: Any) -> Any:  # noqa: ANN401 -- transformers'
        return forward(*arguments, **options)

    monkeypatch.setattr(model, "forward", leaky)
    with pytest.raises(ConfigError, match="LlamaForCausalLM and attention sdpa packed rows see each other"):
        packing.check(model, range(10, 60), range(100, 160))


# Presets


@pytest.mark.parametrize(
    ("params", "zero"),
    [
        ({"stage": 2}, {"stage": 2}),
        ({"stage": 2, "offload": "Optimizer"}, {"stage": 2, "offload_optimizer": "cpu"}),
        ({"stage": 3}, {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}),
        (
            {"stage": 3, "offload": "OptimizerAndParameters"},
            {
                "stage": 3,
                "offload_optimizer": "cpu",
                "offload_param": "cpu",
                "stage3_gather_16bit_weights_on_model_save": True,
            },
        ),
    ],
)
def test_the_preset_writes_deepspeeds_json(params: dict[str, Any], zero: dict[str, Any]) -> None:
    text = deepspeed_presets.configuration(TrainingParams.model_validate({"deepspeed": params}), on_gpu=True)
    assert text is not None
    config = json.loads(text)
    found = {k: v["device"] if isinstance(v, dict) else v for k, v in config["zero_optimization"].items()}
    assert {k: v for k, v in found.items() if k not in ("overlap_comm", "contiguous_gradients")} == zero
    assert ("optimizer" in config) == ("offload" in params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"deepspeed": {"stage": 2, "offload": "OptimizerAndParameters"}}, "needs stage 3"),
        ({"deepspeed": {}, "deepspeedConfig": "{}"}, "both set"),
    ],
)
def test_presets_that_contradict_themselves_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deepspeed_presets.configuration(TrainingParams.model_validate(params), on_gpu=False)


def test_quantised_weights_need_a_gpu(tmp_path: Path, tiny: Path) -> None:
    lora = LoraParams.model_validate({"quantization": "NF4"})
    with pytest.raises(ConfigError, match=r"lora.quantization NF4 \(QLoRA\) needs a GPU: set runtime.gpus"):
        prepare(context(tmp_path), TrainingParams(lora=lora), tiny, models.read_policy)


def test_quantised_weights_need_bitsandbytes(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    lora = LoraParams.model_validate({"quantization": "NF4"})
    with pytest.raises(ConfigError, match="build the trainer's image with the extra `qlora`"):
        prepare(context(tmp_path), TrainingParams(lora=lora, precision="FP32"), tiny, models.read_policy)


# Preferences by origin


def test_margins_are_told_by_source_and_origin(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "?"}]
    pairs = [
        preferred.Pair(source, origin, f"u{i}", asked, asked, asked)  # type: ignore[arg-type]
        for source, origin, count in (
            ("pairs", Origin.USER, 5),
            ("notes", Origin.USER, 1),
            ("notes", Origin.INTERNAL, 2),
        )
        for i in range(count)
    ]
    chosen = preferred.sampled(pairs, 2, seed=3)
    assert [(p.source, p.origin.value) for p in chosen] == [("pairs", "User")] * 2 + [("notes", "User")] + [
        ("notes", "Internal")
    ] * 2
    values = np.array([1.0, -1.0, 4.0, 2.0, 0.0])
    metrics, report = preferred.measure(context(tmp_path), chosen, values)
    assert metrics[preferred.Metric.PREFERENCE_MARGIN_USER].value == pytest.approx(4 / 3)
    assert metrics[preferred.Metric.PREFERENCE_ACCURACY_INTERNAL].value == 0.75, "a tie counts half"
    assert report["notes"]["User"]["margin"]["value"] == 4
    assert report["pairs"]["User"]["pairs"] == 2


# Trackers


class Broken:
    """A tracker that fails when it is told something."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError(f"step {step} was refused\nby the server")

    def close(self) -> None:
        raise AssertionError("a broken tracker is not closed")


def test_a_tracker_that_breaks_is_given_up() -> None:
    line = tracking.Line("WandB", Broken)
    line.log(1, {"loss": 1.0})
    line.end()
    line.wait(60)
    assert line.trouble == "ConnectionError: step 1 was refused"
    line.log(2, {"loss": 1.0})


def test_a_tracker_that_hangs_is_left_behind() -> None:
    until = threading.Event()

    class Slow(Broken):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            until.wait()

    line = tracking.Line("MLflow", Slow)
    line.log(1, {"loss": 1.0})
    line.end()
    line.wait(0.05)
    assert line.trouble == "it was still sending when the stage had to go on"
    until.set()


def run_callback(ctx: StageContext, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """Three logged steps with the trackers `names`."""
    monkeypatch.setenv(REPORT_TO, names)
    callback = tracking.callback(ctx)
    assert callback is not None
    arguments = TrainingArguments(output_dir=str(ctx.work), use_cpu=True, report_to="none")
    callback.on_train_begin()
    for step in (1, 2, 3):
        callback.on_log(arguments, TrainerState(global_step=step), TrainerControl(), {"loss": 1.0 / step, "note": "x"})
    callback.on_train_end()


def test_tensorboard_writes_events_beside_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context(tmp_path)
    run_callback(ctx, monkeypatch, "TensorBoard")
    assert ctx.notes == []
    events = EventAccumulator(str(tracking.folder(ctx) / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]


@pytest.mark.filterwarnings("ignore")  # mlflow's own
def test_mlflow_without_a_server_writes_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ctx = context(tmp_path)
    run_callback(ctx, monkeypatch, "MLflow")
    assert ctx.notes == []
    (metric,) = (tracking.folder(ctx) / "mlruns").rglob("metrics/loss")
    assert [line.split()[1] for line in metric.read_text().splitlines()] == ["1.0", "0.5", "0.3333333333333333"]


@pytest.mark.filterwarnings("ignore")
def test_trackers_that_are_away_cost_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ctx = context(tmp_path)
    run_callback(ctx, monkeypatch, "MLflow")
    (note,) = ctx.notes
    assert note.startswith("tracker MLflow was given up (")


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_leaves_a_run_to_be_synchronised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    ctx = context(tmp_path)
    run_callback(ctx, monkeypatch, "WandB")
    assert ctx.notes == []
    assert list((tracking.folder(ctx) / "wandb").glob("offline-run-*/*.wandb"))


def test_an_unknown_tracker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REPORT_TO, "Comet")
    with pytest.raises(ConfigError, match="Comet is unknown; choose from WandB, MLflow, TensorBoard"):
        tracking.callback(context(tmp_path))
    monkeypatch.delenv(REPORT_TO)
    assert tracking.callback(context(tmp_path)) is None
