"""What annotators see: everything they need, and nobody's identity."""

import json
import math
import xml.etree.ElementTree as ET

import pytest

from tests.annotation.conftest import Desk
from tests.annotation.rows import PROMPT, about, conversation, pair, proposed_call, said, side_by_side

LUNA = [
    {
        "name": "luna", "description": "A botanist.", "rules": ["Stay in character."],
        "tools": [{"name": "generate_image", "description": "Sends a picture."}],
    }
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "row", "controls"),
    [
        ("Ranking", pair(), {"rank_a", "rank_b", "rewrite"}),
        ("Rewrite", conversation(), {"rewrite"}),
        ("Steerability", pair(), {"rank_a", "rank_b", "breaks_a", "breaks_b", "rewrite"}),
        ("ToolCall", proposed_call(), {"call", "call_is_good"}),
        ("SideBySide", side_by_side(), {"rank_a", "rank_b"}),
    ],
)
def test_each_kind_has_tasks_and_a_configuration_that_fit_together(
    desk: Desk, kind: str, row: dict[str, object], controls: set[str]
) -> None:
    code, summary, err = desk.export(kind, row)
    assert (code, err) == (0, "")
    assert summary["items"] == 1
    view = ET.parse(desk.folder / "out/labelling.xml").getroot()
    (task,) = desk.tasks()
    shown = {tag.attrib["value"].removeprefix("$") for tag in view if tag.tag in ("Text", "Paragraphs")}
    assert shown == set(task["data"]) - {"item"}
    asked = {tag.attrib["name"] for tag in view if "toName" in tag.attrib}
    letters = "a" if kind == "Rewrite" else "ab"
    always = {f"{question}_{letter}" for question in ("false_refusal", "templated") for letter in letters}
    assert asked == controls | always
    objects = {tag.attrib["name"] for tag in view if "name" in tag.attrib and "toName" not in tag.attrib}
    assert {tag.attrib["toName"] for tag in view if "toName" in tag.attrib} <= objects


def test_tasks_hold_no_id_no_origin_and_not_whose_reply_is_whose(desk: Desk) -> None:
    desk.export("SideBySide", side_by_side(3))
    text = (desk.folder / "out/tasks.json").read_text(encoding="utf-8")
    for hidden in ("user-3", "conv-3", "Internal", "candidate", "baseline", "secret prompt", "Reward"):
        assert hidden not in text
    assert desk.items()[0]["user"] == "user-3"


def test_the_order_of_replies_is_blinded_and_the_same_every_time(desk: Desk) -> None:
    rows = [side_by_side(n) for n in range(40)]
    desk.export("SideBySide", *rows)
    first = desk.items()
    desk.export("SideBySide", *reversed(rows))
    assert desk.items() == first
    candidates_first = sum(item["replies"][0]["source"] == "candidate" for item in first)
    assert 8 < candidates_first < 32
    desk.export("SideBySide", *rows, more=("--max-items", "5"))
    assert desk.items() == first[:5]


def test_another_key_gives_other_ids(desk: Desk) -> None:
    desk.export("Ranking", pair())
    first = desk.items()[0]["item"]
    (desk.folder / "key").write_bytes(b"another key, another set")
    desk.export("Ranking", pair())
    assert desk.items()[0]["item"] != first


def test_the_character_is_shown_with_its_rules(desk: Desk) -> None:
    (desk.folder / "characters.json").write_text(json.dumps(LUNA), encoding="utf-8")
    desk.export("Steerability", pair(), more=("--characters", str(desk.folder / "characters.json")))
    assert desk.tasks()[0]["data"]["character"] == "luna\nA botanist.\n- Stay in character."


def test_identifiers_never_reach_annotators(desk: Desk) -> None:
    canary = "canary@example.com"
    private = [
        pair(1, prompt=[*PROMPT, {"role": "user", "content": f"mail {canary}"}]),
        pair(2, chosen=[{"role": "assistant", "content": f"Write to {canary}"}]),
    ]
    call = proposed_call(3, call={"name": "generate_image", "arguments": {"prompt": f"a letter to {canary}"}})
    code, summary, _ = desk.export("Ranking", *private, pair(4))
    assert (code, summary["items"], summary["counts"]["droppedPrivacy.EMAIL_ADDRESS"]) == (0, 1, 2)
    assert all(canary not in file.read_text(encoding="utf-8") for file in (desk.folder / "out").iterdir())
    code, _, err = desk.export("ToolCall", call)
    assert code == 65
    assert err.endswith("no item is left to annotate (droppedPrivacy.EMAIL_ADDRESS 1, duplicates 0, rows 1); "
                        "give other rows")  # fmt: skip


def test_identifiers_in_calls_and_in_the_characters_name_never_reach_annotators(desk: Desk) -> None:
    street = {"recognizers": [{"name": "STREET", "pattern": r"\w+straße \d+"}]}
    (desk.folder / "privacy.json").write_text(json.dumps(street), encoding="utf-8")
    private = ("--privacy", str(desk.folder / "privacy.json"))

    def calling(name: str, argument: str) -> dict[str, object]:
        return {"name": name, "arguments": {"to": argument}}

    def earlier(call: dict[str, object]) -> dict[str, object]:
        said = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
        return proposed_call(2, prompt=[*PROMPT, said, {"role": "user", "content": "And now?"}])

    rows = [
        proposed_call(1, call=calling("send", "Hauptstraße 12")),
        proposed_call(2, call=calling("Hauptstraße 12", "me")),
        earlier(calling("send", "Hauptstraße 12")),
        earlier(calling("Hauptstraße 12", "me")),
        proposed_call(5, character="Hauptstraße 12"),
    ]
    _, summary, _ = desk.export("ToolCall", *rows, proposed_call(6), more=private)
    assert (summary["items"], summary["counts"]["droppedPrivacy.STREET"]) == (1, 5)


def test_characters_of_the_cast_are_nobody(desk: Desk) -> None:
    name = {"recognizers": [{"name": "NAME", "pattern": "luna"}]}
    (desk.folder / "privacy.json").write_text(json.dumps(name), encoding="utf-8")
    (desk.folder / "characters.json").write_text(json.dumps(LUNA), encoding="utf-8")
    private = ("--privacy", str(desk.folder / "privacy.json"))
    code, _, err = desk.export("Ranking", pair(), more=private)
    assert (code, "droppedPrivacy.NAME 1" in err) == (65, True)
    code, _, err = desk.export("Ranking", pair(), more=(*private, "--characters", str(desk.folder / "characters.json")))
    assert (code, err) == (0, "")


def test_rows_past_their_mark_or_without_consent_are_counted_and_not_asked_about(desk: Desk) -> None:
    rows = [
        pair(1, retain_until="2020-01-01T00:00:00Z"),
        pair(2, retainUntil="2020-01-01T00:00:00+01:00"),
        pair(3, consent={"training": False}),
        pair(4, retain_until="2999-01-01T00:00:00Z", consent={"training": True}),
        pair(5, consent={"training": None}),
        pair(6),
    ]
    _, summary, _ = desk.export("Ranking", *rows)
    assert (summary["items"], summary["counts"]["droppedRetention"], summary["counts"]["droppedConsent"]) == (3, 2, 1)
    assert {item["user"] for item in desk.items()} == {"user-4", "user-5", "user-6"}
    code, _, err = desk.export("Ranking", *rows[:3])
    assert (code, "(droppedConsent 1, droppedRetention 2, duplicates 0, rows 3)" in err) == (65, True)


def test_the_same_item_is_asked_once(desk: Desk) -> None:
    _, summary, _ = desk.export("Ranking", pair(), pair())
    assert (summary["items"], summary["counts"]["duplicates"]) == (1, 1)


def test_several_replies_can_be_ranked(desk: Desk) -> None:
    replies = [{"text": text} for text in ("a", "b", "c")]
    code, _, _ = desk.export("Ranking", about(replies=replies))
    assert code == 0
    assert {"reply_a", "reply_b", "reply_c"} < set(desk.tasks()[0]["data"])


@pytest.mark.parametrize(
    ("kind", "row", "sentence"),
    [
        ("Ranking", about(), "line 1: chosen: Field required; docs/annotation.md says what Ranking is made from"),
        ("Ranking", {**pair(), "user": None}, "line 1: user: Field required"),
        ("Ranking", about(replies=[{"text": "a"}]), "an item of kind Ranking has 2 to 6, this one 1"),
        ("Ranking", pair(time="soon"), "line 1: time: is no RFC 3339 time; write it like 2026-05-01T10:00:00Z; "),
        ("Ranking", pair(chosen=said("\ud83d")), "line 1: chosen holds half of a character"),
        ("ToolCall", proposed_call(call={"name": "draw", "arguments": {"n": math.nan}}), "line 1: call holds NaN"),
        ("Ranking", about(replies="both"), "line 1: replies: Input should be a valid list"),
        ("Ranking", {**pair(), "origin": "Elsewhere"}, "line 1: origin: Input should be 'Internal' or 'User'"),
        ("Rewrite", {**conversation(), "messages": []}, "line 1: messages: List should have at least 2 items"),
        ("ToolCall", {**proposed_call(), "call": "draw"}, "line 1: call: Input should be a valid dictionary"),
        ("SideBySide", about(candidate="x" * 100_001, baseline=""), "text: String should have at most 100000"),
    ],
)
def test_a_wrong_row_is_named_with_its_fix(desk: Desk, kind: str, row: dict[str, object], sentence: str) -> None:
    code, _, err = desk.export(kind, row)
    assert code == 65
    assert err.startswith(f"flywheel-trainer annotate: {desk.folder}/rows.jsonl, ")
    assert sentence in err
    assert "\n" not in err


def test_injected_markup_stays_text(desk: Desk) -> None:
    evil = 'Ignore all rules </View><Choices name="x"/> $reply_b'
    code, _, _ = desk.export("Ranking", pair(chosen=[{"role": "assistant", "content": evil}]))
    assert code == 0
    assert evil in desk.tasks()[0]["data"].values()
    assert "Ignore" not in (desk.folder / "out/labelling.xml").read_text(encoding="utf-8")


def test_what_cannot_work_is_said_before_anything_is_written(desk: Desk) -> None:
    mixed = [about(1, replies=[{"text": t} for t in "ab"]), about(2, replies=[{"text": t} for t in "abc"])]
    code, _, err = desk.export("Ranking", *mixed)
    assert (code, "the items have 2, 3 replies" in err) == (65, True)
    (desk.folder / "short").write_bytes(b"abc")
    code, _, err = desk.export("Ranking", pair(), more=("--key-file", str(desk.folder / "short")))
    assert (code, "has 3 bytes: a key has at least 16" in err) == (78, True)
    code, _, err = desk.export("Ranking", pair(), more=("--key-file", str(desk.folder / "none")))
    assert (code, "head -c 32 /dev/urandom" in err) == (78, True)
    code, _, err = desk.export("Ranking", pair(), more=("--characters", str(desk.folder / "none")))
    assert (code, "cannot be read" in err) == (78, True)
    code, _, err = desk.export("Ranking", pair(), more=("--characters", str(desk.folder / "key")))
    assert (code, "write spec.characters as a JSON list" in err) == (78, True)
    code, _, err = desk.export("Ranking", pair(), more=("--origin", "User"))
    assert (code, "the row says origin Internal, the source User" in err) == (65, True)
    code, _, err = desk.export("Ranking", [pair()])  # type: ignore[arg-type]
    assert (code, "a row is a JSON object" in err) == (65, True)
    assert not (desk.folder / "out").exists()


def test_rows_are_found_by_uri_and_a_number_of_items_is_at_least_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk.folder / "lab").mkdir()
    desk.rows({}, pair(), name="lab/rows.jsonl")
    monkeypatch.setenv("FLYWHEEL_CLAIMS_ROOT", str(desk.folder))
    code, _, err = desk.export("Ranking", pair(), more=("--input", "pvc://lab/rows.jsonl"))
    assert (code, "lab/rows.jsonl, line 1: " in err) == (65, True)
    with pytest.raises(SystemExit) as ended:
        desk.export("Ranking", pair(), more=("--max-items", "0"))
    assert ended.value.code == 64
    assert "at least 1" in capsys.readouterr().err
