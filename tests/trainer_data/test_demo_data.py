"""The demo's rules for conversations and preferences, on conversations made up here."""

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.demo import chitchat, preferences


def group(sender: str, *texts: str) -> list[dict[str, str]]:
    return [{"sender": sender, "text": text, "timestamp": "t"} for text in texts]


def loaded(tmp_path: Path, conversations: dict[str, list[list[dict[str, str]]]]) -> chitchat.Traffic:
    file = tmp_path / chitchat.DATASET
    file.parent.mkdir()
    raw = {name: {"messages": m, "prompt": "Cats?", "start": "2018"} for name, m in conversations.items()}
    file.write_text(json.dumps(raw))
    return chitchat.load(tmp_path)


def test_the_first_to_speak_is_the_user_and_messages_in_a_row_are_one_turn(tmp_path: Path) -> None:
    groups = [group("a", "hi", "there"), group("b", "oh hello to you my friend"), group("a", "and?")]
    (row,) = loaded(tmp_path, {"c": groups}).rows
    assert (row["conversation"], row["user"], row["character"]) == ("c", "a", "luna")
    assert row["messages"] == [
        {"role": "user", "content": "Cats?\nhi there"},
        {"role": "assistant", "content": "oh hello to you my friend"},
    ]
    assert row["signals"] == {"continued": True}


@pytest.mark.parametrize(("rated", "said"), [(9, True), (8, False), (1, False), (5, None)])
def test_a_rating_counts_where_the_slider_was_moved(tmp_path: Path, rated: int, said: bool | None) -> None:
    groups = [group("a", "hi"), group("b", "this reply has seven words in it")]
    raw = {"messages": groups, "prompt": "Cats?", "start": "2018", "ratings": {"interesting": rated}}
    file = tmp_path / chitchat.DATASET
    file.parent.mkdir()
    file.write_text(json.dumps({"c": raw}))
    (row,) = chitchat.load(tmp_path).rows
    assert row["signals"].get("foundInteresting") is said


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    reply = group("b", "this reply has seven words in it")
    conversations = {f"c{i}": [group("a", "hi"), reply] for i in range(chitchat.PER_USER + 2)}
    conversations["alone"] = [group("a", "hi"), group("a", "anybody?")]
    conversations["short"] = [group("x", "hi"), group("b", "no")]
    traffic = loaded(tmp_path, conversations)
    assert len(traffic.rows) == chitchat.PER_USER
    assert traffic.dropped == {"not two senders": 1, "no reply of a fitting length": 1, "over the user's share": 2}


def test_a_user_has_one_origin(tmp_path: Path) -> None:
    reply = group("b", "this reply has seven words in it")
    conversations = {f"c{i}": [group(f"u{i % 40}", "hi"), reply] for i in range(120)}
    rows = loaded(tmp_path, conversations).rows
    origins: dict[str, set[str]] = {}
    for row in rows:
        origins.setdefault(row["user"], set()).add(row["origin"])
    assert all(len(found) == 1 for found in origins.values())
    assert {o for found in origins.values() for o in found} == {"Internal", "User"}


def asked(human: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": human}]
    common = {"conversation": "c", "user": "u", "character": "luna", "origin": "User", "time": "t"}
    return {**common, "messages": messages}


def test_a_sample_is_cut_at_the_sentence_closest_to_the_humans_length() -> None:
    reply = "One two. Three four five! Six seven eight nine and then it st"
    assert preferences.closest(reply, 8) == "One two."
    assert preferences.closest(reply, 100) == "One two. Three four five!"
    assert preferences.closest("never ends", 5) == ""


def test_lengths_say_nothing_about_which_reply_is_the_humans() -> None:
    humans = ["a" * 20, "a" * 24, "a" * 26, "a" * 100, "a" * 10]
    samples = ["b" * 21 + ".", "b" * 21 + ".", "b" * 21 + ".", "b" * 21 + ".", "no end"]
    pairs = preferences.pair([asked(h) for h in humans], samples)
    assert [len(row["chosen"][0]["content"]) for row in pairs.rows] == [24, 20]
    assert pairs.dropped == {
        "lengths too different": 1,
        "no whole sentence": 1,
        "surplus of one length order": 1,
    }
    assert preferences.length_only_accuracy(pairs.rows, len) == 0.5
    assert preferences.unfinished_accuracy(pairs.rows) == 1.0
    assert pairs.rows[0]["prompt"] == [{"role": "user", "content": "hi"}]


def test_length_only_takes_the_better_of_the_two_rules() -> None:
    rows = preferences.pair([asked("a" * 20), asked("a" * 24)], ["b" * 21 + "."] * 2).rows
    assert preferences.length_only_accuracy(rows, lambda text: -len(text)) == 0.5
    assert preferences.length_only_accuracy(rows[:1], len) == 1.0
    assert preferences.length_only_accuracy([], len) == 0.5
