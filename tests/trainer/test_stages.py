"""Every training stage, run for real on the tiny model: it learns, starts at its predecessor, leaves a whole model."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from e2e import tiny_data
from flywheel_contract.metric_names import REPORTED_BY, REWARD_METRICS, Metric
from flywheel_contract.stage_result import StageResult
from flywheel_contract.stages import RewardModelType, Stage
from flywheel_trainer.models import load_policy, load_reward, load_tokenizer
from flywheel_trainer.rewards import Scorer
from tests.trainer.workshop import Json, Workshop

pytestmark = pytest.mark.training

LORA = {"r": 8, "alpha": 16}
RL = {"batchSize": 16, "numGenerations": 8, "maxNewTokens": 24, "maxLength": 120, "maxSteps": 24, "learningRate": 1e-3}


@dataclass(frozen=True)
class Wheel:
    """One turn of the training stages, each from its predecessor."""

    lab: Workshop
    base: Json
    traffic: Json
    preferences: Json
    reward: StageResult
    sft: StageResult
    dpo: StageResult
    rl: StageResult

    def policy(self, result: StageResult) -> Json:
        """A stage's model as the next one's policy."""
        return self.lab.input("policy", self.lab.model(result))


@pytest.fixture(scope="module")
def wheel(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    lab = Workshop(tmp_path_factory.mktemp("claims"))
    base = lab.input("policy", lab.add_model(tiny, "base"))
    traffic = lab.input("prompts", lab.add_data("traffic", tiny_data.traffic(200)))
    pairs = lab.input("preferences", lab.add_data("preferences", tiny_data.preferences(240)))
    reward = lab.succeed("reward-model", [base, pairs], maxSteps=50, learningRate=5e-4)
    sft = lab.succeed("sft", [base, traffic], maxSteps=60, learningRate=3e-3)
    policy = lab.input("policy", lab.model(sft))
    dpo = lab.succeed("dpo", [policy, pairs], maxSteps=24, learningRate=1e-4)
    parent = {**base, "name": "parent", "role": "parent"}
    rl = lab.succeed("rl", [policy, parent, traffic, lab.input("reward", lab.model(reward))], **RL)
    return Wheel(lab, base, traffic, pairs, reward, sft, dpo, rl)


def value(result: StageResult, metric: Metric) -> float:
    return result.metrics[metric].value


@pytest.mark.parametrize("stage", [Stage.REWARD_MODEL, Stage.SFT, Stage.DPO, Stage.RL])
def test_every_promised_metric_is_reported(wheel: Wheel, stage: Stage) -> None:
    results = {r.stage: r for r in (wheel.reward, wheel.sft, wheel.dpo, wheel.rl)}
    promised = REWARD_METRICS[RewardModelType.POINTWISE] if stage is Stage.REWARD_MODEL else REPORTED_BY[stage]
    # In fp32 the learner samples itself: there is no gap to correct, and status says so. Nobody reviewed the pairs.
    inapplicable = {Metric.IMPORTANCE_WEIGHT} if stage is Stage.RL else {Metric.ANNOTATOR_AGREEMENT}
    assert set(results[stage].metrics) == set(promised) - inapplicable


def test_reward_model_tells_warm_from_cold_and_no_control_does(wheel: Wheel) -> None:
    assert value(wheel.reward, Metric.REWARD_ACCURACY) > 0.9
    assert value(wheel.reward, Metric.TRAIN_LOSS_LAST) < value(wheel.reward, Metric.TRAIN_LOSS_FIRST)
    assert 0.2 < value(wheel.reward, Metric.LENGTH_ONLY_ACCURACY) < 0.8
    assert value(wheel.reward, Metric.SHUFFLED_LABEL_ACCURACY) == pytest.approx(0.5, abs=0.05)
    counts = wheel.lab.manifest(wheel.reward).counts
    assert counts["train-pairs"] + counts["held-out-pairs"] == counts["rows"] == 240
    assert counts["probe-accuracy-permille"] > 800, "the probe can learn, so that its failing on coins means something"


def test_reward_is_the_one_that_was_saved(wheel: Wheel) -> None:
    folder = wheel.lab.path(wheel.lab.model(wheel.reward))
    scorer = Scorer("reward", load_reward(folder), load_tokenizer(folder))
    asked = {"role": "user", "content": "Do you like paper maps?"}
    warm = [asked, {"role": "assistant", "content": "Oh, I love paper maps! It makes me smile every day."}]
    cold = [asked, {"role": "assistant", "content": "No. I have nothing to say about paper maps."}]
    assert scorer.score([warm])[0] > scorer.score([cold])[0]
    alone, among = scorer.score([warm])[0], scorer.score([cold, warm, [*warm, *cold]])[1]
    assert alone == pytest.approx(among, abs=1e-4), "padding must not change a reward"


def test_sft_learns_the_replies(wheel: Wheel) -> None:
    assert value(wheel.sft, Metric.TRAIN_LOSS_LAST) < 0.6 * value(wheel.sft, Metric.TRAIN_LOSS_FIRST)


def test_dpo_prefers_the_chosen(wheel: Wheel) -> None:
    first = wheel.lab.history(wheel.dpo)[0]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-3), "policy and reference are the same at the start"
    assert value(wheel.dpo, Metric.TRAIN_LOSS_LAST) < first["loss"]
    assert value(wheel.dpo, Metric.PREFERENCE_ACCURACY) > 0.7
    assert value(wheel.dpo, Metric.PREFERENCE_MARGIN) > 0


def test_rl_raises_the_reward_and_leaves_its_start(wheel: Wheel) -> None:
    assert value(wheel.rl, Metric.RL_REWARD_LAST) > value(wheel.rl, Metric.RL_REWARD_FIRST) + 0.2
    assert value(wheel.rl, Metric.KL_TO_POLICY) > 0


def test_every_hand_over_starts_at_the_predecessor(wheel: Wheel) -> None:
    for result in (wheel.sft, wheel.dpo, wheel.rl):
        assert value(result, Metric.KL_AT_START) == 0
        assert result.metrics[Metric.KL_AT_START].n == 8
    assert wheel.lab.history(wheel.rl)[0]["kl"] == pytest.approx(0, abs=1e-6), "nor does TRL's own reference differ"


def test_what_is_left_is_complete_and_holds_no_pickle(wheel: Wheel) -> None:
    for result in (wheel.reward, wheel.sft, wheel.dpo, wheel.rl):
        names = {p.name for p in wheel.lab.path(wheel.lab.model(result)).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        assert not (wheel.lab.folder(result) / ".work").exists()


def test_a_second_run_finds_the_manifest(wheel: Wheel) -> None:
    again = wheel.lab.succeed("sft", [wheel.base, wheel.traffic], maxSteps=60, learningRate=3e-3)
    assert again.reused
    assert (again.metrics, again.outputs, again.manifest_digest) == (
        wheel.sft.metrics,
        wheel.sft.outputs,
        wheel.sft.manifest_digest,
    )


@pytest.mark.parametrize("stage", ["reward-model", "sft", "dpo", "rl"])
def test_adapters_are_merged_and_kept_beside(wheel: Wheel, stage: str) -> None:
    policy = wheel.policy(wheel.sft)
    reward = wheel.lab.input("reward", wheel.lab.model(wheel.reward))
    inputs = {
        "reward-model": [policy, wheel.preferences],
        "sft": [policy, wheel.traffic],
        "dpo": [policy, wheel.preferences],
        "rl": [policy, wheel.traffic, reward],
    }[stage]
    params = {**RL, "maxSteps": 2} if stage == "rl" else {"maxSteps": 4, "learningRate": 1e-2}
    result = wheel.lab.succeed(stage, inputs, lora=LORA, **params)
    if stage != "reward-model":
        assert value(result, Metric.KL_AT_START) == 0
        load_policy(wheel.lab.path(wheel.lab.model(result)))
    assert {p.name for p in (wheel.lab.folder(result) / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_rl_says_what_it_did_not_correct_and_how_far_it_went(wheel: Wheel) -> None:
    assert "importance sampling NotApplicable: the learner itself samples, in fp32" in wheel.rl.message
    # The start of rl is what SFT left, the parent what SFT began with.
    assert value(wheel.rl, Metric.KL_TO_PARENT) > value(wheel.rl, Metric.KL_TO_POLICY)


def test_dpo_tells_what_was_learned_from_which_origin_and_source(wheel: Wheel) -> None:
    report = json.loads((wheel.lab.folder(wheel.dpo) / "logs/preferences.json").read_text())["sources"]
    assert set(report) == {"preferences"}
    assert set(report["preferences"]) == {"Internal", "User"}
    for origin, accuracy, margin in (
        ("Internal", Metric.PREFERENCE_ACCURACY_INTERNAL, Metric.PREFERENCE_MARGIN_INTERNAL),
        ("User", Metric.PREFERENCE_ACCURACY_USER, Metric.PREFERENCE_MARGIN_USER),
    ):
        assert value(wheel.dpo, accuracy) > 0.7
        assert value(wheel.dpo, margin) > 0
        assert report["preferences"][origin]["pairs"] == 64
        assert report["preferences"][origin]["margin"]["value"] == pytest.approx(value(wheel.dpo, margin), rel=1e-4)


def test_a_precomputed_reference_gives_the_same_steps(wheel: Wheel) -> None:
    inputs = [wheel.policy(wheel.sft), wheel.preferences]
    kept, precomputed = (
        wheel.lab.history(
            wheel.lab.succeed("dpo", inputs, maxSteps=3, learningRate=1e-4, measuredPairs=0, reference=reference)
        )
        for reference in ("Model", "Precomputed")
    )
    assert [step["loss"] for step in precomputed] == pytest.approx([step["loss"] for step in kept], abs=1e-4)


def rl_inputs(wheel: Wheel) -> list[Json]:
    return [wheel.policy(wheel.sft), wheel.traffic, wheel.lab.input("reward", wheel.lab.model(wheel.reward))]


def test_online_dpo_raises_the_reward(wheel: Wheel) -> None:
    params = {**RL, "algorithm": "OnlineDPO", "beta": 0.1, "maxSteps": 24, "learningRate": 1e-3}
    result = wheel.lab.succeed("rl", rl_inputs(wheel), **params)
    assert value(result, Metric.RL_REWARD_LAST) > value(result, Metric.RL_REWARD_FIRST) + 0.2
    assert value(result, Metric.KL_AT_START) == 0
    assert value(result, Metric.KL_TO_POLICY) > 0
    assert wheel.lab.history(result)[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert "NotApplicable: OnlineDPO learns from pairs" in result.message


def test_the_correction_changes_nothing_where_sampler_and_learner_agree(wheel: Wheel) -> None:
    params = {**RL, "maxSteps": 3, "importanceSampling": "TokenTruncate"}
    result = wheel.lab.succeed("rl", rl_inputs(wheel), **params)
    assert value(result, Metric.IMPORTANCE_WEIGHT) == pytest.approx(1, abs=1e-3), "same weights, same arithmetic"
    assert "NotApplicable" not in result.message
    assert wheel.lab.history(result)[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_bf16_with_adapters_is_corrected_by_default(wheel: Wheel) -> None:
    result = wheel.lab.succeed("rl", rl_inputs(wheel), **{**RL, "maxSteps": 2, "precision": "BF16", "lora": LORA})
    assert value(result, Metric.IMPORTANCE_WEIGHT) == pytest.approx(1, abs=0.05)
    assert value(result, Metric.KL_AT_START) == 0


def test_rl_chooses_its_prompts(wheel: Wheel) -> None:
    selection = {"by": "LowReward", "samples": 2, "keepFraction": 0.5, "nearPolicyFraction": 0.75, "maxRounds": 2}
    params = {**RL, "maxSteps": 2, "maxPrompts": 16, "promptSelection": selection}
    result = wheel.lab.succeed("rl", rl_inputs(wheel), **params)
    counts = wheel.lab.manifest(result).counts
    assert counts["prompts"] == counts["selection.chosen"] == 12, "two rounds of 12 near ones, half of them kept"
    assert counts["selection.rounds"] == 2
    assert counts["selection.candidates"] == 32
    assert counts["selection.far"] == 8
    assert counts["selection.sampled"] == 24 == counts["selection.passedOver"] + counts["selection.flat"] + 12
    assert "12 prompts chosen of 32 candidates by LowReward in 2 rounds" in result.message


def test_sft_mixes_named_sources_packs_them_and_tells_the_shares(wheel: Wheel) -> None:
    lab = wheel.lab
    accepted = lab.input("accepted", lab.add_data("accepted", tiny_data.traffic(40)))
    uri = lab.add_data("fixes", tiny_data.traffic(10, seed=1, origin="Internal"))
    fixes = {**lab.input("sft-data", uri, weight=2.0), "name": "sft-fixes"}
    params = {"acceptedWeight": {"internal": 0.5}, "maxSteps": 6, "learningRate": 1e-3, "batchSize": 2}
    result = lab.succeed("sft", [wheel.base, accepted, fixes], packing=True, maxLength=256, **params)
    mixture = json.loads((lab.folder(result) / "logs/mixture.json").read_text())["sources"]
    assert {name: part["rows"] for name, part in mixture.items()} == {
        "accepted-Internal": 10, "accepted-User": 20, "fixes": 20,
    }  # fmt: skip
    assert mixture["fixes"]["shareOfRows"] == 0.4
    assert sum(part["shareOfReplyTokens"] for part in mixture.values()) == pytest.approx(1)
    assert "mixture: accepted-Internal 20.0%, accepted-User 40.0%, fixes 40.0%" in result.message
    history = lab.history(result)
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["epoch"] > 0.5, "unpacked, twelve rows of fifty would be a quarter"


def test_memory_is_saved_without_changing_the_loss(wheel: Wheel) -> None:
    inputs = [wheel.base, wheel.traffic]
    plain, checkpointed, bf16 = (
        wheel.lab.history(wheel.lab.succeed("sft", inputs, maxSteps=3, learningRate=1e-3, **more))
        for more in ({}, {"gradientCheckpointing": True}, {"precision": "BF16"})
    )
    assert [step["loss"] for step in checkpointed] == pytest.approx([step["loss"] for step in plain], rel=1e-4)
    assert [step["loss"] for step in bf16] == pytest.approx([step["loss"] for step in plain], rel=0.02)
