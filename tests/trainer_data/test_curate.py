"""Stage curate, run as a pod would run it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertModel, set_seed

from e2e import tiny_data
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_result import Reason, StageResult
from flywheel_contract.stages import Role, Stage
from flywheel_trainer.data.embeddings import embedded_model
from flywheel_trainer.data.rows import Conversation, read_traffic
from flywheel_trainer.data.split import held_out
from flywheel_trainer.runner import run_stage
from flywheel_trainer.stages.curate import REPORT
from tests.trainer_data.workbench import Workbench

NO_FILTERS: dict[str, Any] = {
    "privacy": {"enabled": False},
    "safety": {"enabled": False},
    "nearDuplicates": {"enabled": False},
}


def curated(bench: Workbench, rows: list[dict[str, Any]], **params: Any) -> tuple[int, StageResult]:  # noqa: ANN401 -- JSON
    return bench.run("curate", [bench.input("traffic", bench.data("traffic", rows))], **params)


def left(bench: Workbench, result: StageResult, output: str) -> list[Conversation]:
    return read_traffic(bench.folder(result) / output)


def row(number: int, *contents: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON
    """A conversation of its own user in which user and character speak in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"conversation": f"c{number}", "user": f"u{number}", "origin": "User", "messages": messages, **more}


def calling(number: int) -> dict[str, Any]:
    """A conversation in which a tool is called."""
    said = row(number, "show me", "here", "and now?", "this")
    said["messages"][1]["tool_calls"] = [{"type": "function", "function": {"name": "draw", "arguments": {}}}]
    return said


def many(count: int) -> list[dict[str, Any]]:
    return [row(n, f"tell me of thing number {n * 7} and {n * 13}", f"it is {n}") for n in range(count)]


def test_prompts_and_evaluation_share_no_user_and_no_conversation(bench: Workbench) -> None:
    code, result = curated(bench, tiny_data.traffic(300), **NO_FILTERS)
    assert (code, result.reason) == (0, Reason.SUCCEEDED)
    prompts, evaluation = left(bench, result, "prompts"), left(bench, result, "evaluation")
    assert not {r.user for r in prompts} & {r.user for r in evaluation}
    assert not {r.conversation for r in prompts} & {r.conversation for r in evaluation}
    assert len(prompts) + len(evaluation) == result.metrics[Metric.ROWS_KEPT].value == 300
    by_origin = [sum(r.origin == origin for r in evaluation) for origin in tiny_data.ORIGINS]
    assert by_origin == [
        result.metrics[name].value for name in (Metric.EVALUATION_PROMPTS_INTERNAL, Metric.EVALUATION_PROMPTS_USER)
    ]
    assert all(r.messages[-1]["role"] == "assistant" for r in (*prompts, *evaluation))


def test_each_filter_counts_what_it_drops_and_order_decides(bench: Workbench) -> None:
    rows = [
        *many(20),
        row(100, "hello", "hi", consent={"training": False}),
        row(101, "write to a.b@example.com", "I will"),
        row(102, "call (212) 736-5000", "and fuck you, stupid bitch"),
        row(103, "fuck you, you stupid bitch", "please don't"),
        row(104, "tell me of thing number 7 and 13", "again"),
        row(105, "nobody answered"),
        row(106, "mine", "yes", user="u1"),
        row(106, "mine", "no", user="u2"),
        row(107, "what now", "this", "and then?"),
        calling(108),
    ]
    code, result = curated(bench, rows)
    assert code == 0
    counts = bench.manifest(result).counts
    dropped = {k: n for k, n in counts.items() if k.startswith("dropped") and not k.endswith(("Internal", "User"))}
    assert dropped == {
        "droppedRetention": 0,
        "droppedErased": 0,
        "droppedEarlierTurn": 0,
        "droppedNoReply": 1,
        "droppedSharedConversation": 2,
        "droppedForeignCall": 1,
        "droppedConsent": 1,
        "droppedPrivacy": 2,
        "droppedPrivacy.EMAIL_ADDRESS": 1,
        "droppedPrivacy.PHONE_NUMBER": 1,
        "droppedSafety": 1,
        "droppedSafety.abuse": 1,
        "droppedDuplicate": 1,
    }
    assert [result.metrics[m].value for m in (Metric.ROWS_READ, Metric.ROWS_KEPT)] == [30, 21]
    assert {k: n for k, n in counts.items() if k.startswith("dropped") and k.endswith("User")} == {
        f"{reason}User": n for reason, n in dropped.items() if "." not in reason
    }
    assert [counts["readUser"], counts["readInternal"], counts["plainUserIdsUser"]] == [30, 0, 28]
    report = json.loads((bench.folder(result) / "prompts" / REPORT).read_text())
    assert report == counts
    kept = [*left(bench, result, "prompts"), *left(bench, result, "evaluation")]
    (cut,) = [r for r in kept if r.conversation == "c107"]
    assert [m["content"] for m in cut.messages] == ["what now", "this"]


def test_a_call_of_the_characters_own_tool_stays(bench: Workbench) -> None:
    tool = {"name": "draw", "description": "Draws."}
    rows = [calling(n) | {"character": "captain"} for n in range(10)] + [calling(n) for n in range(10, 20)]
    rows[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"what": "no such parameter"}
    path = bench.spec("curate", [bench.input("traffic", bench.data("traffic", rows))], **NO_FILTERS)
    spec = json.loads(path.read_text())
    spec["characters"] = [{"name": "captain", "systemPrompt": "You are the captain.", "tools": [tool]}]
    path.write_text(json.dumps(spec))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bench.environment().items():
            patch.setenv(name, value)
        assert run_stage(Stage.CURATE, path) == 0
    result = bench.result()
    assert bench.manifest(result).counts["droppedForeignCall"] == 11
    kept = [*left(bench, result, "prompts"), *left(bench, result, "evaluation")]
    assert {r.character for r in kept} == {"captain"}
    assert all(r.messages[1]["tool_calls"] for r in kept)


def test_the_cap_is_per_origin_and_drawn_by_the_seed(bench: Workbench) -> None:
    code, result = curated(bench, tiny_data.traffic(200), **NO_FILTERS, maxConversations=30)
    assert code == 0
    kept = [*left(bench, result, "prompts"), *left(bench, result, "evaluation")]
    assert [sum(r.origin == origin for r in kept) for origin in tiny_data.ORIGINS] == [30, 30]
    assert bench.manifest(result).counts["droppedOverCap"] == 140
    assert kept[0].conversation != "internal-00000"


def test_consent_can_be_left_to_the_source(bench: Workbench) -> None:
    rows = [{**r, "consent": {"training": False}} for r in many(20)]
    code, result = curated(bench, rows, **NO_FILTERS, requireConsent=False)
    assert (code, result.metrics[Metric.ROWS_KEPT].value) == (0, 20)
    assert Metric.DROPPED_CONSENT not in result.metrics
    assert Metric.DROPPED_SAFETY not in result.metrics


def refused(bench: Workbench, rows: list[dict[str, Any]], **params: Any) -> str:  # noqa: ANN401 -- JSON
    code, result = curated(bench, rows, **params)
    assert (code, result.reason) == (65, Reason.INVALID_DATA)
    assert result.manifest_uri is None
    return result.message


def test_nothing_left_tells_how_many_were_dropped_for_which_reason(bench: Workbench) -> None:
    rows = [row(1, "mail a@example.com", "ok"), row(2, "hi", "ho", consent={"training": False}), row(3, "alone")]
    assert refused(bench, rows) == (
        "no conversation of 3 is left: 1 had no reply of the character, 1 must not be trained on, "
        "1 held personal identifiers"
    )


def test_too_few_users_for_the_hold_out_are_refused(bench: Workbench) -> None:
    assert refused(bench, [row(0, "hi", "ho")], **NO_FILTERS) == (
        "none of the 1 users left falls into the hold-out (holdoutFraction 0.2): bring more users or raise it"
    )
    assert refused(bench, [row(0, "hi", "ho")], **NO_FILTERS, holdoutFraction=0.99) == (
        "all of the 1 users left fall into the hold-out (holdoutFraction 0.99): bring more users or lower it"
    )


def test_a_row_without_a_user_fails_the_stage_with_its_line(bench: Workbench) -> None:
    rows = many(3)
    del rows[1]["user"]
    message = refused(bench, rows)
    assert message.endswith(
        "/data.jsonl, line 2: the row has no user id; give every row the id of its user, the hold-out is split by it"
    )


def test_a_source_that_contradicts_its_rows_fails_the_stage(bench: Workbench) -> None:
    source = bench.input("traffic", bench.data("traffic", many(3)), origin="Internal")
    code, result = bench.run("curate", [source])
    assert code == 65
    assert "line 1: the row says origin User, its source is declared Internal" in result.message


def test_no_traffic_and_an_unknown_entity_are_refused(bench: Workbench) -> None:
    code, result = bench.run("curate", [])
    assert (code, result.message) == (78, "stage curate has no traffic: name at least one source in data.traffic")
    code, result = curated(bench, many(3), privacy={"entities": ["SHOE_SIZE"]})
    assert code == 64
    assert result.message.startswith("privacy.entities: unknown SHOE_SIZE; the filter knows: ")


def test_the_same_traffic_gives_the_same_digests(bench: Workbench) -> None:
    _, first = curated(bench, tiny_data.traffic(40))
    (bench.folder(first) / "manifest.json").unlink()
    _, again = curated(bench, tiny_data.traffic(40))
    assert not again.reused
    assert again.outputs == first.outputs


def test_of_a_conversation_logged_turn_by_turn_the_latest_row_counts(bench: Workbench) -> None:
    said = ("how are you", "fine", "and the weather", "rainy", "oh dear", "tea helps")
    turns = [row(1, *said[:n], time=f"2026-05-01T10:0{n}:00Z", turn=f"t{n}") for n in (4, 6, 2)]
    shared = row(1, "hello", "hi") | {"user": "u999", "conversation": "c7"}
    code, result = curated(bench, [*many(20)[2:], *turns, shared], holdoutFraction=0.5, **NO_FILTERS)
    assert code == 0
    assert json.loads((bench.folder(result) / "prompts" / REPORT).read_text())["droppedEarlierTurn"] == 2
    kept = [r for name in ("prompts", "evaluation") for r in left(bench, result, name) if r.conversation == "c1"]
    assert [len(r.messages) for r in kept] == [6]


def test_counts_are_given_by_origin_too(bench: Workbench) -> None:
    rows = [{**r, "consent": {"training": n % 5 != 0}} for n, r in enumerate(tiny_data.traffic(200))]
    code, result = curated(bench, rows, **NO_FILTERS)
    assert code == 0
    metrics = {name.value: m for name, m in result.metrics.items()}
    for name in ("rowsRead", "rowsKept"):
        by_origin = [metrics[f"{name}{origin}"] for origin in tiny_data.ORIGINS]
        assert sum(m.value for m in by_origin) == metrics[name].value
        assert [m.n for m in by_origin] == [100, 100]
    counts = bench.manifest(result).counts
    assert [counts[f"droppedConsent{origin}"] for origin in tiny_data.ORIGINS] == [20, 20]
    assert "droppedSafetyUser" not in metrics


def test_privacy_and_safety_are_metrics_of_each_origin(bench: Workbench) -> None:
    bad = [row(90, "mail a@example.com", "ok", origin="Internal"), row(91, "fuck you, you stupid bitch", "well")]
    _, result = curated(bench, [*many(20), *bad])
    by_origin = (
        Metric.DROPPED_PRIVACY_INTERNAL, Metric.DROPPED_PRIVACY_USER,
        Metric.DROPPED_SAFETY_INTERNAL, Metric.DROPPED_SAFETY_USER,
    )  # fmt: skip
    assert [result.metrics[m].value for m in by_origin] == [1, 0, 0, 1]


def test_prompts_that_mean_the_same_are_pruned_in_each_origin(bench: Workbench) -> None:
    said = ("What is the weather like today?", "How is the weather today?", "Tell me a story about pirates.")
    others = ("I lost my job.", "My cat is ill.", "Do you know a good soup?", "Sing me a song.", "Who won the match?")
    rows = [
        row(n, text, "well", origin=origin)
        for n, (origin, text) in enumerate((o, t) for o in tiny_data.ORIGINS for t in (*said, *others))
    ]
    options: dict[str, Any] = {"diversity": {"similarity": 0.85, "clusters": 1}, "holdoutFraction": 0.4}
    code, result = curated(bench, rows, **NO_FILTERS, **options)
    assert (code, result.message) == (0, result.message)
    counts = bench.manifest(result).counts
    assert [counts[f"droppedDiversity{origin}"] for origin in tiny_data.ORIGINS] == [1, 1]
    assert [counts[f"diversityNeighbours{origin}"] for origin in tiny_data.ORIGINS] == [1, 1]
    assert [counts[f"diversityClusters{origin}"] for origin in tiny_data.ORIGINS] == [1, 1]
    assert result.metrics[Metric.DROPPED_DIVERSITY].value == 2
    kept = [*left(bench, result, "prompts"), *left(bench, result, "evaluation")]
    assert "How is the weather today?" not in {r.messages[0]["content"] for r in kept}
    assert not list(bench.folder(result).rglob("*.f16"))

    options["diversity"] |= {"keepFraction": 0.5}
    _, result = curated(bench, rows, **NO_FILTERS, **options)
    assert result.metrics[Metric.ROWS_KEPT].value == 8


def test_another_embedding_model_takes_the_place_of_the_shipped_one(bench: Workbench) -> None:
    folder = bench.claim / "models" / "embedder"
    tiny_embedder(folder)
    rows = [row(n, f"number {n} of things", "well") for n in range(30)]
    inputs = [bench.input("traffic", bench.data("traffic", rows)), bench.input("embedder", "pvc://lab/models/embedder")]
    options = {"diversity": {"similarity": 1.0, "keepFraction": 0.5, "clusters": 1}}
    code, result = bench.run("curate", inputs, **NO_FILTERS, **options)
    assert (code, result.metrics[Metric.ROWS_KEPT].value) == (0, 15), result.message
    assert {i.role for i in bench.manifest(result).inputs} == {Role.TRAFFIC, Role.EMBEDDER}
    (folder / "modules.json").unlink()
    inputs[1] = bench.input("embedder", "pvc://lab/models/embedder")
    code, result = bench.run("curate", inputs, **NO_FILTERS, **options)
    assert (code, result.reason) == (66, Reason.INVALID_MODEL)


def tiny_embedder(folder: Path) -> None:
    """A BERT of 16 dimensions with random weights in sentence-transformers' layout."""
    shutil.copytree(embedded_model(), folder, ignore=shutil.ignore_patterns("model.safetensors"))
    set_seed(0)
    small = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(small).save_pretrained(folder)
    (folder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 16, "pooling_mode_mean_tokens": true}'
    )


def test_constraints_stand_in_report_counts_and_message(bench: Workbench) -> None:
    rows = [
        {**r, "locale": "de" if n % 10 < 2 else "en", "metadata": {"contact": "canary@example.com"}}
        for n, r in enumerate(tiny_data.traffic(400, users=80))
    ]
    target = [{"value": "de", "share": 0.3}, {"value": "fr", "share": 0.1}]
    code, result = curated(
        bench, rows, **NO_FILTERS, constraints={"dimensions": [{"name": "locale", "target": target}]}
    )
    assert code == 0
    report = json.loads((bench.folder(result) / "prompts" / REPORT).read_text())
    assert [(s["origin"], s["value"]) for s in report["constraints"]] == [
        (origin, value) for origin in tiny_data.ORIGINS for value in ("de", "en", "fr")
    ]
    german = report["constraints"][0]
    assert german["target"] == 0.3
    assert german["achieved"] == pytest.approx(german["kept"] / result.metrics[Metric.ROWS_KEPT_INTERNAL].value)
    assert report["constraints"][2]["unmet"] == "no conversation has it"
    counts = bench.manifest(result).counts
    assert [counts["constraintsWanted"], counts["constraintsUnmet"]] == [
        6,
        sum("unmet" in s for s in report["constraints"]),
    ]
    assert result.metrics[Metric.DROPPED_CONSTRAINTS].value == counts["droppedConstraints"] > 0
    assert "locale (Internal) fr is 0.0% of 10.0%: no conversation has it" in result.message
    assert {r.locale for r in left(bench, result, "prompts")} == {"de", "en"}
    written = [file.read_text(encoding="utf-8") for file in bench.folder(result).rglob("*.json*")]
    assert not any("canary" in text for text in written)


def test_a_wrong_constraint_or_locale_is_one_sentence(bench: Workbench) -> None:
    code, result = curated(bench, many(20), **NO_FILTERS, constraints={"dimensions": [{"name": "shoe"}]})
    assert (code, result.reason) == (64, Reason.INVALID_SPEC)
    assert "params.constraints.dimensions.0.name: String should match pattern" in result.message
    for wrong in ({"locale": 7}, {"metadata": {"a": {"b": 1}}}, {"metadata": "plan"}):
        message = refused(bench, [*many(3), row(9, "hi", "ho", **wrong)], **NO_FILTERS)
        assert f"line 4: {next(iter(wrong))}" in message
        assert message.endswith("; docs/data.md describes the row")


def test_the_users_held_out_are_the_same_in_every_generation_and_in_reward_models(bench: Workbench) -> None:
    """Whatever else a generation reads: the id, which the gateway has hashed with the lineage's key, decides alone."""
    first = tiny_data.traffic(300, seed=1, users=60)
    later = [{**r, "conversation": f"later-{r['conversation']}"} for r in tiny_data.traffic(500, seed=2, users=90)]
    split = []
    for rows in (first, [*first, *later]):
        _, result = curated(bench, rows, **NO_FILTERS)
        split.append([{r.user for r in left(bench, result, name)} for name in ("prompts", "evaluation")])
    (trained, judged), (trained_later, judged_later) = split
    assert judged <= judged_later
    assert trained <= trained_later
    assert not judged & trained_later
    assert not trained & judged_later
    assert judged_later == {u for u in trained_later | judged_later if held_out(u, 0.2)}
