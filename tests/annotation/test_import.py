"""From Label Studio's export to the rows that the stages read."""

import json
from typing import Any

import pytest

from flywheel_trainer.data.rows import read_preferences, read_traffic
from tests.annotation.conftest import Desk
from tests.annotation.rows import PROMPT, annotated, annotation, conversation, pair, proposed_call, said, side_by_side

Json = dict[str, Any]

GOOD, BAD = "Tea weather!", "As an AI I feel no rain."


def ranks(desk: Desk, better: str) -> Json:
    """Ranks that put the reply with this text first, wherever it is shown."""
    (task,) = desk.tasks()
    first = task["data"]["reply_a"] == better
    return {"rank_a": "1" if first else "2", "rank_b": "2" if first else "1"}


def tie() -> Json:
    return {"rank_a": "1", "rank_b": "1"}


def test_ranked_pairs_come_back_with_ids_reviews_and_agreement(desk: Desk) -> None:
    desk.export("Ranking", pair(3))
    (task,) = desk.tasks()
    both = annotated(task, annotation(1, **ranks(desk, GOOD)), annotation({"id": 2, "email": "x@y.z"}, **tie()))
    code, report, err = desk.import_([both])
    assert (code, err) == (0, "")
    (row,) = read_preferences(desk.folder / "in/preferences")
    assert (row.conversation, row.user, row.character, row.origin) == ("conv-3", "user-3", "luna", "Internal")
    assert (row.chosen[0]["content"], row.rejected[0]["content"]) == (GOOD, BAD)
    assert row.prompt == PROMPT
    assert sorted(row.choices) == ["Chosen", "Tie"]
    assert all(len(review.reviewer) == 24 for review in row.reviews)
    assert report["counts"]["pairs"] == 1
    assert report["questions"]["falseRefusal"]["Internal"]["shares"] == {"no": 1.0}
    assert "alpha" not in report["questions"]["falseRefusal"]["Internal"]
    assert "x@y.z" not in (desk.folder / "in/labels/data.jsonl").read_text(encoding="utf-8")


CARRIED = {"time": "2026-05-01T10:00:00Z", "retain_until": "2999-01-01T00:00:00Z", "consent": {"training": True}}


def test_time_mark_and_consent_of_a_row_come_back_on_all_that_is_made_of_it(desk: Desk) -> None:
    for kind, row, answers, folders in (
        ("Rewrite", conversation(), {"rewrite": "Rain!"}, {"preferences": read_preferences, "rewrites": read_traffic}),
        (
            "ToolCall",
            proposed_call(),
            {"call": "Explicit", "call_is_good": "Yes"},
            {"tool-calls": read_traffic, "tool-preferences": read_preferences},
        ),
    ):
        desk.export(kind, {**row, **CARRIED})
        (task,) = desk.tasks()
        code, _, err = desk.import_([annotated(task, annotation(1, **answers), annotation(2, **answers))])
        assert (code, err) == (0, "")
        for folder, read in folders.items():
            for made in read(desk.folder / "in" / folder):
                assert {name: value for name, value in made.to_json().items() if name in CARRIED} == CARRIED


def test_labels_of_another_tool_may_carry_them_too(desk: Desk) -> None:
    given = desk.rows(ranked(1, **CARRIED), ranked(2))
    desk.run("import", "--labels", given, "--output", str(desk.folder / "in"))
    first, second = desk.read("in/preferences/data.jsonl")
    assert CARRIED.items() <= first.items()
    assert not CARRIED.keys() & second.keys()


def test_a_line_separator_within_a_text_ends_no_line(desk: Desk) -> None:
    desk.export("Ranking", pair(chosen=said(f"{GOOD}\u2028\u0085")))
    (task,) = desk.tasks()
    code, report, err = desk.import_([annotated(task, annotation(1, rank_a="1", rank_b="2"))])
    assert (code, err, report["counts"]["pairs"]) == (0, "", 1)


def test_a_draw_makes_no_pair(desk: Desk) -> None:
    desk.export("Ranking", pair())
    (task,) = desk.tasks()
    _, report, _ = desk.import_(
        [annotated(task, annotation(1, **ranks(desk, GOOD)), annotation(2, **ranks(desk, BAD)))]
    )
    assert report["counts"]["pairsUndecided"] == 1
    assert not (desk.folder / "in/preferences").exists()


def test_a_rewrite_is_better_than_what_it_improves_and_worth_imitating(desk: Desk) -> None:
    desk.export("Rewrite", conversation())
    (task,) = desk.tasks()
    _, report, _ = desk.import_([annotated(task, annotation(1, rewrite=" Rain again! \n"), annotation(2))])
    (row,) = read_preferences(desk.folder / "in/preferences")
    assert (row.chosen[0]["content"], row.rejected[0]["content"]) == ("Rain again!", BAD)
    assert row.choices == ["Chosen"]
    (imitated,) = read_traffic(desk.folder / "in/rewrites")
    assert imitated.messages == [*PROMPT, {"role": "assistant", "content": "Rain again!"}]
    assert report["counts"]["rewrites"] == report["counts"]["pairsFromRewrites"] == 1


def test_a_rewrite_with_an_identifier_is_dropped(desk: Desk) -> None:
    desk.export("Rewrite", conversation())
    (task,) = desk.tasks()
    _, report, _ = desk.import_([annotated(task, annotation(1, rewrite="Mail canary@example.com"))])
    assert report["counts"]["rewritesDroppedPrivacy.EMAIL_ADDRESS"] == 1
    assert not (desk.folder / "in/rewrites").exists()
    assert "canary@example.com" not in (desk.folder / "in/labels/data.jsonl").read_text(encoding="utf-8")


def test_a_reply_that_breaks_the_character_loses_whatever_its_rank(desk: Desk) -> None:
    desk.export("Steerability", pair())
    (task,) = desk.tasks()
    broken = "a" if task["data"]["reply_a"] == BAD else "b"
    answers = {"breaks_a": "No", "breaks_b": "No", f"breaks_{broken}": "Yes", **ranks(desk, BAD)}
    _, report, _ = desk.import_([annotated(task, annotation(1, **answers, rewrite="Better."))])
    better = {(row.chosen[0]["content"], row.rejected[0]["content"]) for row in read_preferences(
        desk.folder / "in/preferences")}  # fmt: skip
    # The rewrite improves only what broke the character.
    assert better == {(GOOD, BAD), ("Better.", BAD)}
    assert report["questions"]["breaks"]["Internal"]["shares"] == {"no": 0.5, "yes": 0.5}


def call(who: int, call: str, good: str = "Yes") -> Json:
    return annotation(who, call=call, call_is_good=good)


@pytest.mark.parametrize(
    ("annotations", "label", "calls"),
    [
        ([call(1, "Explicit"), call(2, "Explicit")], "Explicit", True),
        ([call(1, "Explicit"), call(2, "Implicit"), call(3, "Implicit")], "Implicit", True),
        ([call(1, "None"), call(2, "None", "No")], "None", False),
    ],
)
def test_agreed_tool_calls_become_sources_of_their_own(
    desk: Desk, annotations: list[Json], label: str, calls: bool
) -> None:
    desk.export("ToolCall", proposed_call())
    (task,) = desk.tasks()
    _, report, _ = desk.import_([annotated(task, *annotations)])
    assert report["counts"][f"toolCalls{label}"] == 1
    (row,) = read_traffic(desk.folder / "in/tool-calls")
    assert row.tool_call == label
    assert set(row.choices) == {"Chosen"}
    assert ("tool_calls" in row.messages[-1]) is calls
    (preference,) = read_preferences(desk.folder / "in/tool-preferences")
    assert ("tool_calls" in preference.chosen[0]) is calls
    assert ("tool_calls" in preference.rejected[0]) is not calls


@pytest.mark.parametrize(
    ("annotations", "count"),
    [
        ([call(1, "Explicit")], "toolCallsWithoutAgreement"),
        ([call(1, "Explicit"), call(2, "None")], "toolCallsWithoutAgreement"),
        ([call(1, "Explicit"), call(2, "Explicit", "No")], "toolCallsWithoutAgreement"),
        ([call(1, "Explicit", "No"), call(2, "Explicit", "No")], "toolCallsThatAreBad"),
    ],
)
def test_tool_calls_without_agreement_are_counted_and_left_out(desk: Desk, annotations: list[Json], count: str) -> None:
    desk.export("ToolCall", proposed_call())
    (task,) = desk.tasks()
    _, report, _ = desk.import_([annotated(task, *annotations)])
    assert report["counts"][count] == 1
    assert not (desk.folder / "in/tool-calls").exists()


def test_side_by_side_undoes_the_blinding(desk: Desk) -> None:
    desk.export("SideBySide", *(side_by_side(n, origin="User" if n % 2 else "Internal") for n in range(20)))
    done = []
    for number, (task, item) in enumerate(zip(desk.tasks(), desk.items(), strict=True)):
        first = item["replies"][0]["source"] == "candidate"
        won = {"rank_a": "1" if first else "2", "rank_b": "2" if first else "1"}
        lost = {"rank_a": won["rank_b"], "rank_b": won["rank_a"]}
        # The candidate wins 12, ties 4 and loses 2; on the other 2 the reviewers do not agree.
        first_review = won if number < 12 else tie() if number < 16 else lost
        second_review = first_review if number < 18 else won
        done.append(annotated(task, annotation(1, **first_review), annotation(2, **second_review)))
    code, report, err = desk.import_(done)
    assert (code, err) == (0, "")
    whole = report["sideBySide"]["all"]
    assert (whole["items"], whole["itemsAgreed"], whole["itemsWithSeveralReviews"]) == (20, 18, 20)
    assert whole["winRate"]["value"] == pytest.approx((12 + 2 + 0 + 1) / 20)
    assert whole["winRateAgreed"]["value"] == pytest.approx((12 + 2) / 18)
    assert whole["winRate"]["low"] < whole["winRate"]["value"] < whole["winRate"]["high"]
    assert whole["winRate"]["n"] == 20
    assert whole["reviews"] == {"candidate": 26, "tie": 8, "baseline": 6}
    assert 0 < whole["alpha"] < 1
    assert report["sideBySide"]["User"]["items"] + report["sideBySide"]["Internal"]["items"] == 20


def test_side_by_side_without_sources_is_refused(desk: Desk) -> None:
    label = {
        "item": "i", "kind": "SideBySide", "conversation": "c", "user": "u", "origin": "User", "prompt": PROMPT,
        "replies": [{"text": "a"}, {"text": "b"}],
        "reviews": [{"reviewer": "r", "falseRefusal": [False, False], "templated": [False, True], "ranks": [1, 2]}],
    }  # fmt: skip
    code, _, err = desk.run("import", "--labels", desk.rows(label), "--output", str(desk.folder / "in"))
    assert (code, "not of candidate and baseline; write each reply's source" in err) == (65, True)


OWN_IDENTIFIER = {"recognizers": [{"name": "CUSTOMER_ID", "pattern": r"\bCU-\d{6}\b"}]}
SECRET = "CU-774411"


def ranked(number: int, **changes: Any) -> Json:  # noqa: ANN401 -- JSON
    """A label of another tool."""
    review = {"reviewer": "r1", "falseRefusal": [False, False], "templated": [False, False], "ranks": [1, 2]}
    return {
        "item": f"i{number}", "kind": "Ranking", "conversation": f"c{number}", "user": f"u{number}",
        "origin": "Internal", "prompt": PROMPT, "replies": [{"text": GOOD}, {"text": BAD}], "reviews": [review],
        **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": [{"role": "user", "content": f"I am {SECRET}."}]},
        {"replies": [{"text": GOOD}, {"text": f"You are {SECRET}."}]},
    ],
)
def test_no_file_of_the_import_holds_an_identifier_of_the_teams_own(desk: Desk, changes: Json) -> None:
    (desk.folder / "privacy.json").write_text(json.dumps(OWN_IDENTIFIER), encoding="utf-8")
    given = desk.rows(ranked(1), ranked(2, **changes))
    told = ("--labels", given, "--output", str(desk.folder / "in"))
    _, report, _ = desk.run("import", *told, "--privacy", str(desk.folder / "privacy.json"))
    assert (report["counts"]["droppedPrivacy.CUSTOMER_ID"], report["counts"]["items"]) == (1, 1)
    written = [f.read_text(encoding="utf-8") for f in (desk.folder / "in").rglob("*") if f.is_file()]
    assert len(written) == 3
    assert not any(SECRET in text for text in written)
    _, report, _ = desk.run("import", *told)
    assert report["counts"]["items"] == 2, "without the setting nobody can know that it is one"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "write spec.curation.privacy as JSON"),
        ('{"entitys": []}', "write spec.curation.privacy as JSON"),
        ('{"entities": ["SHOE_SIZE"]}', "privacy.entities: unknown SHOE_SIZE"),
    ],
)
def test_settings_that_cannot_be_used_are_named(desk: Desk, text: str | None, sentence: str) -> None:
    settings = desk.folder / "privacy.json"
    if text is not None:
        settings.write_text(text, encoding="utf-8")
    code, _, err = desk.export("Ranking", pair(), more=("--privacy", str(settings)))
    assert code in (64, 78)
    assert sentence in err


def test_labels_of_another_tool_are_read_too(desk: Desk) -> None:
    label = {
        "item": "i", "kind": "Ranking", "conversation": "c", "user": "u", "origin": "User", "prompt": PROMPT,
        "replies": [{"text": "a"}, {"text": "b"}, {"text": "c"}],
        "reviews": [{"reviewer": "r", "falseRefusal": [False] * 3, "templated": [False] * 3, "ranks": [2, 1, 2]}],
    }  # fmt: skip
    code, report, _ = desk.run("import", "--labels", desk.rows(label), "--output", str(desk.folder / "in"))
    assert (code, report["counts"]["pairs"], report["counts"]["pairsUndecided"]) == (0, 2, 1)
    assert {row.chosen[0]["content"] for row in read_preferences(desk.folder / "in/preferences")} == {"b"}


def label(**changes: object) -> Json:
    review = {"reviewer": "r", "falseRefusal": [False, True], "templated": [False, False], "ranks": [1, 2]}
    return {
        "item": "i", "kind": "Ranking", "conversation": "c", "user": "u", "origin": "User", "prompt": PROMPT,
        "replies": [{"text": "a"}, {"text": "b"}], "reviews": [review], **changes,
    }  # fmt: skip


REVIEW = label()["reviews"][0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reviews": []}, "reviews: List should have at least 1 item"),
        ({"reviews": [{**REVIEW, "ranks": None}]}, "reviews[0]: a review of kind Ranking has ranks; add it"),
        ({"reviews": [{**REVIEW, "ranks": [1]}]}, "reviews[0]: ranks has 1 answers for 2 replies; give one for each"),
        (
            {"reviews": [{**REVIEW, "templated": ["maybe", "no"]}]},
            "reviews.0.templated.0: Input should be a valid bool",
        ),
        ({"reviews": [REVIEW, REVIEW]}, "reviews: one reviewer stands there twice; keep the last review"),
        ({"kind": "Steerability"}, "reviews[0]: a review of kind Steerability has breaks; add it"),
        ({"kind": "Poem"}, "kind: Input should be 'Ranking'"),
        ({"replies": [{"text": "x" * 100_001}, {"text": "b"}]}, "replies.0.text: String should have at most 100000"),
        ({"mood": "good"}, "mood: Extra inputs are not permitted"),
        ({"prompt": None}, "prompt: Input should be a valid array"),
    ],
)
def test_a_wrong_label_is_named_with_its_line(desk: Desk, changes: Json, sentence: str) -> None:
    given = desk.rows(label(), label(**changes))
    code, _, err = desk.run("import", "--labels", given, "--output", str(desk.folder / "in"))
    assert code == 65
    assert err.startswith(f"flywheel-trainer annotate: {given}, line 2: {sentence}")
    assert err.endswith("docs/annotation.md describes the row")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no labels: write at least one row into it"),
        (b'{"item": "i', "line 1: Invalid JSON: EOF while parsing"),
        (b"\xff\xfe", "is not UTF-8; save the file as UTF-8"),
        (b"null\n", "line 1: Input should be an object"),
    ],
)
def test_a_file_that_is_no_json_lines_is_named(desk: Desk, content: bytes, sentence: str) -> None:
    (desk.folder / "labels.jsonl").write_bytes(content)
    code, _, err = desk.run(
        "import", "--labels", str(desk.folder / "labels.jsonl"), "--output", str(desk.folder / "in")
    )
    assert (code, sentence in err) == (65, True)
    code, _, err = desk.run("import", "--labels", str(desk.folder / "none"), "--output", str(desk.folder / "in"))
    assert (code, "is no file: name the JSON Lines file with the labels" in err) == (65, True)


def changed(desk: Desk, **changes: object) -> Json:
    (task,) = desk.tasks()
    return annotated(task, {**annotation(1, **ranks(desk, GOOD)), **changes})


def test_what_is_wrong_with_an_export_is_said(desk: Desk) -> None:
    desk.export("Ranking", pair())
    (task,) = desk.tasks()
    strange = {"data": {**task["data"], "item": "other"}}
    cases: list[tuple[object, str]] = [
        ("", "is no JSON"),
        ("[{", "export the project from Label Studio as JSON"),
        ({}, "is no list of tasks"),
        ([], "is no list of tasks"),
        ([None], "task 1 has no data.item"),
        ([annotated(strange)], "the item 'other' is not in the items file; give the one of the same export"),
        ([{**task, "annotations": "none"}], "annotations is no list of objects"),
        ([annotated(task)], "none of the 1 tasks has an annotation; export after annotating"),
        ([changed(desk, was_cancelled=True)], "none of the 1 tasks has an annotation"),
        ([changed(desk, completed_by=None)], "has no completed_by"),
        ([changed(desk, result=None)], "has no list in result"),
        ([changed(desk, result=[{"value": {}}])], "a result has no from_name or value"),
        ([changed(desk, result=[])], "annotation 7: false_refusal_a is not answered; one of Yes, No is needed"),
        ([annotated(task, annotation(1, rank_a="9", rank_b="1"))], "rank_a says '9'; one of 1, 2 is needed"),
        (
            [annotated(task, annotation(1, **tie(), rewrite="x" * 100_001))],
            "rewrite: String should have at most 100000",
        ),
    ]
    for exported, sentence in cases:
        code, _, err = desk.import_(exported)
        assert (code, sentence in err) == (65, True), err
        assert "\n" not in err
    known = ("--items", str(desk.folder / "out/items.jsonl"), "--key-file", str(desk.folder / "key"))
    code, _, err = desk.run("import", "--export", str(desk.folder / "no"), *known, "--output", "y")
    assert (code, "cannot be read" in err) == (65, True)
    code, _, err = desk.run("import", "--export", "x", "--output", "y")
    assert (code, "--export needs --items and --key-file" in err) == (78, True)
    code, _, err = desk.import_([changed(desk)], "--min-share", "0.5")
    assert (code, "--min-reviews, --min-share: " in err) == (78, True)


def test_the_latest_annotation_of_a_reviewer_counts(desk: Desk) -> None:
    desk.export("Ranking", pair())
    (task,) = desk.tasks()
    old = {**annotation(1, **ranks(desk, BAD)), "updated_at": "2026-04-30"}
    _, report, _ = desk.import_([annotated(task, annotation(1, **ranks(desk, GOOD)), old)])
    assert report["counts"]["reviews"] == 1
    (row,) = read_preferences(desk.folder / "in/preferences")
    assert row.chosen[0]["content"] == GOOD


def test_a_report_has_agreement_for_each_question_and_origin(desk: Desk) -> None:
    desk.export("Ranking", *(pair(n) for n in range(4)))
    done = []
    for number, task in enumerate(desk.tasks()):
        word = "Yes" if number % 2 else "No"
        answers = {**tie(), "templated_a": word, "templated_b": word}
        done.append(annotated(task, annotation(1, **answers), annotation(2, **answers)))
    _, report, _ = desk.import_(done)
    templated = report["questions"]["templated"]["Internal"]
    assert (templated["items"], templated["itemsWithSeveralReviews"], templated["alpha"]) == (8, 8, 1.0)
    assert json.loads((desk.folder / "in/_report.json").read_text(encoding="utf-8")) == report


def test_an_item_has_a_reviewer_once_and_not_hundreds(desk: Desk) -> None:
    desk.export("Ranking", pair())
    (task,) = desk.tasks()
    code, _, err = desk.import_([annotated(task, *(annotation(who, **tie()) for who in range(1, 102)))])
    assert (code, "task 1: reviews: List should have at most 100 items" in err) == (65, True)


def test_of_a_tool_call_the_second_reply_has_the_call(desk: Desk) -> None:
    review = {**REVIEW, "ranks": None, "call": "None", "callIsGood": False}
    given = desk.rows(label(kind="ToolCall", reviews=[review]))
    code, _, err = desk.run("import", "--labels", given, "--output", "y")
    assert (code, "the first is without the call and the second with it" in err) == (65, True)


def test_a_reply_that_says_nothing_is_not_imitated(desk: Desk) -> None:
    desk.export("ToolCall", proposed_call(reply=""))
    (task,) = desk.tasks()
    _, report, _ = desk.import_([annotated(task, call(1, "None"), call(2, "None"))])
    assert report["counts"]["toolCallsNone"] == 1
    assert not (desk.folder / "in/tool-calls").exists()
    assert not (desk.folder / "in/tool-preferences").exists()


def test_what_nobody_agrees_on_has_no_agreed_win_rate(desk: Desk) -> None:
    desk.export("SideBySide", side_by_side())
    (task,) = desk.tasks()
    _, report, _ = desk.import_([annotated(task, annotation(1, **tie()))])
    assert report["sideBySide"] == {"all": report["sideBySide"]["Internal"], "Internal": report["sideBySide"]["all"]}
    assert set(report["sideBySide"]["all"]) == {"items", "itemsWithSeveralReviews", "itemsAgreed", "reviews", "winRate"}
    assert report["sideBySide"]["all"]["winRate"]["value"] == 0.5
