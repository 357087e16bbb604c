"""Stages rejection-sample and evaluate with tiny models, and the parts that they are made of."""

import json
import math
from typing import Any

import numpy as np
import pytest

from e2e import tiny_data, tiny_model
from flywheel_contract.metric_names import REPORTED_BY, Metric
from flywheel_contract.params import SamplingParams
from flywheel_contract.stage_result import Reason, StageResult
from flywheel_contract.stages import Stage
from flywheel_trainer import rewards, sampling
from flywheel_trainer.data.rows import Conversation, read_preferences, read_traffic
from flywheel_trainer.models import load_policy, load_tokenizer
from flywheel_trainer.perplexity import reply_likelihoods
from flywheel_trainer.stages import rejection_sample
from flywheel_trainer.stages.rejection_sample import Reply
from tests.trainer_data.endpoint import Answers, endpoint
from tests.trainer_data.workbench import Workbench

SHORT = {"maxNewTokens": 12, "batchSize": 8}
ON_REQUEST = {
    m for m in Metric if m.name.startswith(("PAIRWISE", "FALSE_REFUSAL", "PREACHY", "COOPERATION", "INSTRUCTION",
                                            "TEMPLATED", "JUDGE", "BENCHMARK"))
}  # fmt: skip
"""What needs a judge, a pairwise model or benchmarks."""
ASKED = [{"role": "user", "content": "Do you like the sea?"}]


def models(bench: Workbench, policy: str = "one") -> list[dict[str, Any]]:
    return [
        bench.input("policy", f"pvc://lab/models/{policy}"),
        bench.input("reward", "pvc://lab/models/judge", weight=2.0),
    ]


def lines(bench: Workbench, result: StageResult, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (bench.folder(result) / file).read_text().splitlines()]


@pytest.fixture(scope="module")
def sampled(model_bench: Workbench) -> StageResult:
    prompts = model_bench.input("prompts", model_bench.data("prompts", tiny_data.traffic(30)))
    code, result = model_bench.run(
        "rejection-sample", [prompts, *models(model_bench)], **SHORT, samplesPerPrompt=3, maxPrompts=20
    )
    assert code == 0, result.message
    return result


@pytest.mark.training
def test_best_and_worst_of_the_samples_are_kept(model_bench: Workbench, sampled: StageResult) -> None:
    accepted = read_traffic(model_bench.folder(sampled) / "accepted")
    raw = lines(model_bench, sampled, "accepted/data.jsonl")
    pairs = read_preferences(model_bench.folder(sampled) / "pairs")
    assert len(accepted) == 20
    assert 0 < len(pairs) <= 20
    assert all(math.isfinite(row["reward"]) for row in raw)
    best = {row.conversation: row for row in accepted}
    for pair in pairs:
        assert [*pair.prompt, *pair.chosen] == best[pair.conversation].messages
        assert pair.chosen != pair.rejected
    metrics = sampled.metrics
    assert metrics[Metric.SAMPLES_DRAWN].value == 60
    assert metrics[Metric.ACCEPTED_REWARD].value > metrics[Metric.REJECTED_REWARD].value
    assert metrics[Metric.ACCEPTED_REWARD].value == pytest.approx(np.mean([row["reward"] for row in raw]), rel=1e-4)
    style = json.loads((model_bench.folder(sampled) / "style/style.json").read_text())
    assert style["rows"] == 20
    assert set(style["artefacts"]["length"]) == {"accepted", "rejected", "increase", "rewardCorrelation"}


@pytest.mark.training
def test_the_same_seed_draws_the_same_replies(model_bench: Workbench, sampled: StageResult) -> None:
    manifest = model_bench.manifest(sampled)
    (model_bench.folder(sampled) / "manifest.json").unlink()
    prompts = model_bench.input("prompts", "pvc://lab/data/prompts")
    _, again = model_bench.run(
        "rejection-sample", [prompts, *models(model_bench)], **SHORT, samplesPerPrompt=3, maxPrompts=20
    )
    assert (again.reused, again.outputs) == (False, manifest.outputs)


@pytest.mark.training
def test_a_reward_that_is_no_number_fails_the_stage(model_bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "_forward", lambda _model, _pad, rows: np.full(len(rows), np.nan))
    prompts = model_bench.input("prompts", model_bench.data("few", tiny_data.traffic(4)))
    code, result = model_bench.run("rejection-sample", [prompts, *models(model_bench)], **SHORT, samplesPerPrompt=2)
    assert (code, result.reason) == (70, Reason.NOT_FINITE)
    assert result.message == "reward model reward gave a reward that is no finite number"


def test_stages_without_a_reward_model_or_prompts_are_refused(model_bench: Workbench) -> None:
    policy, reward = models(model_bench)
    code, result = model_bench.run("rejection-sample", [policy, reward])
    assert (code, result.message) == (78, "stage rejection-sample has no prompts; stage curate leaves them")
    code, result = model_bench.run("evaluate", [policy, reward])
    assert (code, result.message) == (78, "stage evaluate has no evaluation prompts; stage curate leaves them")


def conversation(**more: Any) -> Conversation:  # noqa: ANN401 -- JSON
    messages = [*ASKED, {"role": "assistant", "content": "said once"}]
    return Conversation.model_validate(
        {"conversation": "c", "user": "u", "origin": "User", "messages": messages, **more}
    )


def test_equal_or_empty_replies_make_no_pair() -> None:
    rows = [conversation()] * 3
    replies = [[Reply("current", text) for text in texts] for texts in (["a", "a"], ["", ""], ["", "b"])]
    found = rejection_sample.select(rows, replies, [[1.0, 1.0], [1.0, 2.0], [5.0, 1.0]])
    assert [row["messages"][-1]["content"] for row in found.accepted] == ["a", "b"]
    assert found.pairs == []
    assert found.counts == {"emptyReplies": 3, "promptsWithoutReply": 1, "promptsWithoutPair": 2}


def test_an_accepted_row_says_nothing_about_the_reply_that_it_replaced() -> None:
    row = conversation(signals={"thumbsUp": True}, consent={"training": True}, character="luna")
    found = rejection_sample.select([row], [[Reply("current", "a"), Reply("large", "b")]], [[1.0, 2.0]])
    assert set(found.accepted[0]) == {"conversation", "user", "character", "origin", "messages", "reward", "policy"}
    assert found.pairs[0]["chosen"] == [{"role": "assistant", "content": "b"}]
    assert (found.pairs[0]["chosenPolicy"], found.pairs[0]["rejectedPolicy"]) == ("large", "current")


@pytest.mark.training
def test_a_pool_is_drawn_from_and_each_policys_acceptance_told(
    model_bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOL_KEY", "sk-planted-key")
    prompts = model_bench.input("prompts", model_bench.data("pooled", tiny_data.traffic(8)))
    sibling = {**model_bench.input("pool", "pvc://lab/models/other"), "name": "pool-sibling"}
    with endpoint(Answers("Oh, I love the sea!")) as served:
        pool = [
            {"name": "sibling", "samplesPerPrompt": 1},
            {"name": "hosted", "endpoint": {"url": served.url, "model": "big", "apiKeyEnv": "POOL_KEY"}},
        ]
        code, result = model_bench.run(
            "rejection-sample", [prompts, sibling, *models(model_bench)], **SHORT, samplesPerPrompt=2, pool=pool
        )
    assert code == 0, result.message
    folder = model_bench.folder(result)
    report = json.loads((folder / "accepted/_report.json").read_text())["policies"]
    assert {name: part["drawn"] for name, part in report.items()} == {"hosted": 16, "current": 16, "sibling": 8}
    assert sum(part["accepted"] for part in report.values()) == 8
    for part in report.values():
        assert part["acceptanceRate"] == part["accepted"] / part["drawn"]
        assert sum(each["drawn"] for each in part["byOrigin"].values()) == part["drawn"]
    assert {row["policy"] for row in lines(model_bench, result, "accepted/data.jsonl")} <= set(report)
    assert "accepted by policy: hosted" in result.message
    assert model_bench.manifest(result).counts["drawn.sibling"] == 8
    assert len(served.requests) == 16
    assert {request["model"] for request in served.requests} == {"big"}
    assert served.keys == {"Bearer sk-planted-key"}
    written = [path.read_text() for path in folder.rglob("*.json*")]
    assert not any("sk-planted-key" in text for text in written)


def test_a_pool_without_its_model_is_refused(model_bench: Workbench) -> None:
    prompts = model_bench.input("prompts", model_bench.data("lone", tiny_data.traffic(2)))
    code, result = model_bench.run("rejection-sample", [prompts, *models(model_bench)], pool=[{"name": "sibling"}])
    assert (code, result.reason) == (78, Reason.INVALID_CONFIG)
    assert result.message == "rejection-sample: the pool has neither endpoint nor model for pool-sibling"


@pytest.mark.training
def test_replies_are_drawn_for_each_prompt_whatever_the_batch(model_bench: Workbench) -> None:
    folder = model_bench.claim / "models/one"
    policy, tokenizer = load_policy(folder), load_tokenizer(folder)
    prompts = [[{"role": "user", "content": "word " * n}] for n in (1, 40, 3)]
    shares: list[float] = []
    params = SamplingParams(max_new_tokens=4, batch_size=2, max_prompt_tokens=16)
    replies = sampling.sample_replies(policy, tokenizer, prompts, params, count=5, report=shares.append)
    assert [len(texts) for texts in replies] == [5, 5, 5]
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


@pytest.mark.training
def test_likelihoods_do_not_depend_on_the_batch(model_bench: Workbench) -> None:
    folder = model_bench.claim / "models/one"
    policy, tokenizer = load_policy(folder), load_tokenizer(folder)
    rows = [row["messages"] for row in tiny_data.traffic(6)]
    alone, together = (
        reply_likelihoods(policy, tokenizer, rows, max_prompt_tokens=64, max_reply_tokens=64, batch_size=size)
        for size in (1, 6)
    )
    assert together.nats == pytest.approx(alone.nats, rel=1e-3)
    # A model that knows nothing is as unsure as the vocabulary is large.
    assert math.exp(alone.nats.sum() / alone.tokens.sum()) == pytest.approx(len(tokenizer), rel=0.5)


@pytest.fixture(scope="module")
def evaluated(model_bench: Workbench) -> StageResult:
    rows = model_bench.input("evaluation", model_bench.data("evaluation", tiny_data.traffic(24)))
    baseline = model_bench.input("baseline", "pvc://lab/models/other")
    code, result = model_bench.run("evaluate", [rows, *models(model_bench), baseline], **SHORT, bootstrapSamples=200)
    assert code == 0, result.message
    return result


@pytest.mark.training
def test_all_metrics_come_with_intervals_and_the_number_of_users(
    model_bench: Workbench, evaluated: StageResult
) -> None:
    metrics = evaluated.metrics
    asked_for = {m for m in REPORTED_BY[Stage.EVALUATE] if m not in ON_REQUEST}
    assert set(metrics) == asked_for
    for name, m in metrics.items():
        assert m.n > 0, name
        if name not in (Metric.STYLE_JUMPS, Metric.KL_WITHOUT_REWARD):
            assert m.low is not None, name
            assert m.low <= m.value <= m.high, name
    internal, user = metrics[Metric.WIN_RATE_INTERNAL], metrics[Metric.WIN_RATE_USER]
    assert metrics[Metric.WIN_RATE].value == pytest.approx((internal.value + user.value) / 2, rel=1e-4)
    assert metrics[Metric.WIN_RATE_GAP].value == pytest.approx(abs(internal.value - user.value), abs=1e-4)
    assert metrics[Metric.WIN_RATE].n == internal.n + user.n
    report = json.loads((model_bench.folder(evaluated) / "report/report.json").read_text())
    assert set(report) == {
        "metrics", "counts", "models", "againstParent", "rewardModels", "byOrigin", "baselineStyle", "way", "artefacts",
        "jumps", "sampling", "seed",
    }  # fmt: skip
    halves = [part[Metric.LIST_RATE.value] for part in report["byOrigin"].values()]
    assert metrics[Metric.LIST_RATE].value == pytest.approx(np.mean([half["value"] for half in halves]), abs=1e-4)
    assert sum(half["n"] for half in halves) == metrics[Metric.LIST_RATE].n
    assert metrics[Metric.WIN_RATE_PARENT] == metrics[Metric.WIN_RATE], "the baseline is the parent"
    assert [point["model"] for point in report["way"]] == ["baseline", "policy"]
    assert report["way"][0]["kl"]["value"] == report["way"][0]["rewardGain"]["value"] == 0
    assert metrics[Metric.HELD_OUT_KL].value == pytest.approx(report["way"][1]["kl"]["value"], rel=1e-4)
    assert metrics[Metric.HELD_OUT_KL].value > 0, "two models with other weights are apart"
    page = (model_bench.folder(evaluated) / "report/report.html").read_text()
    assert page.count("<article>") == 20
    assert report["counts"]["promptsInternal"] == 12
    samples = lines(model_bench, evaluated, "report/samples.jsonl")
    won = np.mean([(s["candidateReward"] > s["baselineReward"]) + 0.5 * (s["candidateReward"] == s["baselineReward"])
                   for s in samples if s["origin"] == "User"])  # fmt: skip
    assert user.value == pytest.approx(won, rel=1e-4)
    assert evaluated.message.startswith(f"win rate {metrics[Metric.WIN_RATE].value:.1%} (")


@pytest.mark.training
def test_production_parent_and_the_stages_between_are_told_apart(model_bench: Workbench) -> None:
    tiny_model.build(model_bench.claim / "models/third", seed=2)
    rows = model_bench.input("evaluation", model_bench.data("apart", tiny_data.traffic(24)))
    baseline = model_bench.input("baseline", "pvc://lab/models/other")
    parent = model_bench.input("parent", "pvc://lab/models/third")
    stage = model_bench.input("checkpoint", "pvc://lab/models/other") | {"name": "sft"}
    inputs = [rows, *models(model_bench), baseline, parent, stage]
    code, result = model_bench.run("evaluate", inputs, **SHORT, bootstrapSamples=100, checkpointPromptsPerOrigin=4)
    assert code == 0, result.message
    report = json.loads((model_bench.folder(result) / "report/report.json").read_text())
    assert report["models"] == {
        "candidate": "policy", "baseline": "baseline", "parent": "parent", "checkpoints": []
    }, "the stage left what is in production: it has been asked already"  # fmt: skip
    assert result.metrics[Metric.WIN_RATE_PARENT].value == pytest.approx(
        report["againstParent"]["winRate"]["value"], rel=1e-4
    )
    tiny_model.build(model_bench.claim / "models/fourth", seed=3)
    stage = model_bench.input("checkpoint", "pvc://lab/models/fourth") | {"name": "sft"}
    code, result = model_bench.run(
        "evaluate", [*inputs[:-1], stage], **SHORT, bootstrapSamples=100, checkpointPromptsPerOrigin=4
    )
    report = json.loads((model_bench.folder(result) / "report/report.json").read_text())
    assert [point["model"] for point in report["way"]] == ["parent", "sft", "policy"]
    assert all(point["rewardGain"]["n"] <= 8 for point in report["way"])
    assert result.metrics[Metric.KL_WITHOUT_REWARD].n == report["way"][0]["rewardGain"]["n"]


@pytest.mark.training
def test_a_model_against_itself_ties_everywhere(model_bench: Workbench) -> None:
    rows = model_bench.input("evaluation", model_bench.data("users", tiny_data.traffic(6, origin="User")))
    nameless = [{"messages": row["messages"]} for row in tiny_data.traffic(5)]
    general = model_bench.input("general", model_bench.data("general", nameless))
    baseline = model_bench.input("baseline", "pvc://lab/models/one")
    code, result = model_bench.run(
        "evaluate", [rows, general, *models(model_bench), baseline], **SHORT, bootstrapSamples=100
    )
    assert code == 0, result.message
    metrics = result.metrics
    for name in (Metric.WIN_RATE, Metric.WIN_RATE_USER):
        assert (metrics[name].value, metrics[name].low, metrics[name].high) == (0.5, 0.5, 0.5)
    assert metrics[Metric.PERPLEXITY_RATIO].value == 1.0
    assert metrics[Metric.PERPLEXITY].n == 5
    # No prompts of one origin: neither its rate nor the gap was measured.
    assert Metric.WIN_RATE_INTERNAL not in metrics
    assert Metric.WIN_RATE_GAP not in metrics
    assert {row["origin"] for row in lines(model_bench, result, "report/samples.jsonl")} == {"User"}
