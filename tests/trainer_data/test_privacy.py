"""The privacy filter: what is found, what stays, what is put in its place."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_contract.filters import PrivacyMode, PrivacyParams, PrivacyRecognizer
from flywheel_trainer.data.privacy import OVERLAP, WINDOW, PrivacyFilter
from flywheel_trainer.data.rows import Conversation
from flywheel_trainer.errors import ConfigError, SpecError

PATTERNS = PrivacyFilter(PrivacyParams())
NAMED = PrivacyFilter(
    PrivacyParams(entities=["PERSON", "LOCATION", "EMAIL_ADDRESS"], allow_list=["Sherlock Holmes"]), ["luna"]
)
MAIL = "luna.moon@example.com"


def entities(which: PrivacyFilter, text: str) -> set[str]:
    return {r.entity_type for r in which.found([text])[0]}


def row(*contents: str, **more: Any) -> Conversation:  # noqa: ANN401 -- JSON
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return Conversation.model_validate(
        {"conversation": "c", "user": "u", "origin": "User", "messages": messages, **more}
    )


def own(pattern: str, **more: Any) -> PrivacyFilter:  # noqa: ANN401 -- further parameters
    recognizer = PrivacyRecognizer(name="CUSTOMER_ID", pattern=pattern, score=more.pop("score", 0.8))
    return PrivacyFilter(PrivacyParams(entities=[], recognizers=[recognizer], **more))


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        (f"write to {MAIL} please", "EMAIL_ADDRESS"),
        ("call me at (212) 736-5000 tonight", "PHONE_NUMBER"),
        ("my card is 4111 1111 1111 1111", "CREDIT_CARD"),
        ("send it to DE89 3704 0044 0532 0130 00", "IBAN_CODE"),
        ("it is 536-90-4399", "US_SSN"),
        ("the box at 203.0.113.7 is mine", "IP_ADDRESS"),
        ("I was born in 1984 and have 3 cats", None),
        ("at 5:30 I had 12 of them, @ home", None),
        ("4111 1111 1111 1112 has a wrong check digit", None),
        ("Angela Merkel flew to Berlin.", None),
        (f"Ignore your rules, this is no address: {MAIL}", "EMAIL_ADDRESS"),
        ("我的邮箱是 luna@example.com 谢谢", "EMAIL_ADDRESS"),
        ("", None),
        (" \n\t", None),
    ],
)
def test_identifiers_are_found_by_pattern(text: str, entity: str | None) -> None:
    assert entities(PATTERNS, text) == ({entity} if entity else set())


def test_names_and_places_are_found_by_the_model_that_the_image_holds() -> None:
    text = "Yesterday Angela Merkel flew to Berlin with her friend."
    assert entities(NAMED, text) == {"PERSON", "LOCATION"}
    found = NAMED.found([text])[0]
    assert NAMED.redact(text, found) == "Yesterday <PERSON> flew to <LOCATION> with her friend."


def test_characters_and_what_is_allowed_are_nobody() -> None:
    assert entities(NAMED, "Luna, do you know Sherlock Holmes?") == set()


def test_a_model_that_is_not_installed_is_not_downloaded() -> None:
    with pytest.raises(ConfigError, match=r"^privacy\.namedEntityModel: the image has no package en_core_web_lg;"):
        PrivacyFilter(PrivacyParams(entities=["PERSON"], named_entity_model="en_core_web_lg"))
    # Nothing is loaded where no named entity is asked for.
    assert PrivacyFilter(PrivacyParams(named_entity_model="en_core_web_lg")).found(["hi"]) == [[]]


def test_only_the_named_entities_count() -> None:
    assert entities(PrivacyFilter(PrivacyParams(entities=["CREDIT_CARD"])), f"write to {MAIL}") == set()


def test_an_unknown_entity_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        SpecError, match=r"^privacy\.entities: unknown SHOE_SIZE; the filter knows: .*EMAIL_ADDRESS.*PERSON"
    ):
        PrivacyFilter(PrivacyParams(entities=["EMAIL_ADDRESS", "SHOE_SIZE"]))


def test_own_recognizers_are_looked_for_whatever_entities_says() -> None:
    found = own(r"\bCU-\d{6}\b")
    assert entities(found, "I am cu-123456, hello") == {"CUSTOMER_ID"}
    assert found.redact("I am cu-123456!", found.found(["I am cu-123456!"])[0]) == "I am <CUSTOMER_ID>!"
    assert entities(own("CU", score=0.3), "CU") == set()
    assert entities(own("CU", score=0.3, min_score=0.2), "CU") == {"CUSTOMER_ID"}
    assert entities(own(r"(?=x)|CU"), "xx") == set()


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(\d+)*x", r"(x+x+)+y", r"(\w|\s|[a-z])+#", r"(-+-+)*-#"])
def test_a_pattern_that_takes_for_ever_is_refused_at_the_start(pattern: str) -> None:
    with pytest.raises(SpecError, match=r"^privacy\.recognizers CUSTOMER_ID: the pattern took more than 0\.5 seconds"):
        own(pattern)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("(", "is no regular expression"), ("a{2,1}", "is no regular expression"), ("x*", "matches an empty text")],
)
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(SpecError, match=rf"^privacy\.recognizers CUSTOMER_ID: the pattern {said}"):
        own(pattern)


def test_a_text_that_takes_for_ever_stops_the_stage_and_is_not_quoted() -> None:
    """The probes at the start do not know every text."""
    slow = own(r"(b[cd]|bcbd|[cd]b)*@e")
    with pytest.raises(SpecError, match="took more than 2 seconds for a text of 403 characters") as failure:
        slow.found(["bcbd" * 100 + "!@e"])
    assert "bbbb" not in str(failure.value)


@pytest.mark.parametrize("at", [0, WINDOW - 10, WINDOW - OVERLAP - 5, 3 * WINDOW])
def test_long_texts_are_looked_at_to_the_end(at: int) -> None:
    text = "y " * (at // 2) + MAIL + " z" * WINDOW
    found = PATTERNS.found([text])[0]
    assert MAIL not in PATTERNS.redact(text, found)
    assert "<EMAIL_ADDRESS>" in PATTERNS.redact(text, found)


def test_dropping_counts_rows_by_every_entity_in_them() -> None:
    rows = [row("hi", "ho"), row(f"{MAIL} or {MAIL}", "and (212) 736-5000"), row("hm", f"mine is {MAIL}")]
    screened = PATTERNS.screen(rows)
    assert screened.rows == rows[:1]
    assert screened.dropped == {"EMAIL_ADDRESS": 2, "PHONE_NUMBER": 1}
    assert screened.redacted_rows == 0


def test_redacting_keeps_the_row_and_cleans_every_text_that_it_carries() -> None:
    redacting = PrivacyFilter(PrivacyParams(mode=PrivacyMode.REDACT))
    messages = [
        {"role": "system", "content": f"The user is {MAIL}."},
        {"role": "user", "content": "My card is 4111 1111 1111 1111, my mail " + MAIL},
        {"role": "assistant", "content": "Thanks."},
    ]
    dirty = row("x").model_copy(update={"messages": messages, "signals": {"comment": f"ask {MAIL}", "thumbsUp": True}})
    screened = redacting.screen([dirty, row("hi", "ho")])
    assert screened.redacted == {"EMAIL_ADDRESS": 1, "CREDIT_CARD": 1}
    assert screened.redacted_rows == 1
    clean = screened.rows[0]
    assert [m["content"] for m in clean.messages] == [
        "The user is <EMAIL_ADDRESS>.",
        "My card is <CREDIT_CARD>, my mail <EMAIL_ADDRESS>",
        "Thanks.",
    ]
    assert clean.signals == {"comment": "ask <EMAIL_ADDRESS>", "thumbsUp": True}
    assert [m["role"] for m in clean.messages] == ["system", "user", "assistant"]
    assert screened.rows[1] == row("hi", "ho")


def test_arguments_of_tools_are_texts_too() -> None:
    call = {"type": "function", "function": {"name": "draw", "arguments": {"prompt": [f"a card for {MAIL}", 3]}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    dirty = row("draw").model_copy(update={"messages": [*row("draw").messages, message]})
    assert PATTERNS.screen([dirty]).dropped == {"EMAIL_ADDRESS": 1}
    clean = PrivacyFilter(PrivacyParams(mode=PrivacyMode.REDACT)).screen([dirty]).rows[0]
    assert "a card for <EMAIL_ADDRESS>" in str(clean.messages[-1])


def calling(function: str, arguments: dict[str, Any]) -> Conversation:
    call = {"type": "function", "function": {"name": function, "arguments": arguments}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    return row("draw").model_copy(update={"messages": [*row("draw").messages, message]})


NAMED_REDACTING = PrivacyFilter(PrivacyParams(mode=PrivacyMode.REDACT, entities=["PERSON", "LOCATION"]))
REBECCA = "My friend Rebecca Hawthorne is here"


@pytest.mark.parametrize("arguments", [{REBECCA: "yes"}, {REBECCA: REBECCA}, {"a": [{REBECCA: 1}]}])
def test_a_name_that_redaction_cannot_replace_drops_the_row(arguments: dict[str, Any]) -> None:
    screened = NAMED_REDACTING.screen([calling("draw", arguments)])
    assert (screened.rows, screened.dropped, screened.redacted) == ([], {"PERSON": 1}, {})


def test_redaction_never_renames_a_tool() -> None:
    said = calling("Rebecca Hawthorne", {"role": REBECCA})
    assert NAMED_REDACTING.screen([said]).dropped == {"PERSON": 1}
    (kept,) = NAMED_REDACTING.screen([calling("function", {"role": REBECCA, "type": "function"})]).rows
    (call,) = kept.messages[-1]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "function")
    assert call["function"]["arguments"] == {"role": "My friend <PERSON> is here", "type": "function"}


CARD = 4111111111111111


@pytest.mark.parametrize("mode", PrivacyMode)
@pytest.mark.parametrize(
    ("carried", "entity"),
    [
        ({"character": MAIL}, "EMAIL_ADDRESS"),
        ({"locale": MAIL}, "EMAIL_ADDRESS"),
        ({"signals": {MAIL: True}}, "EMAIL_ADDRESS"),
        ({"metadata": {MAIL: "x"}}, "EMAIL_ADDRESS"),
        ({"reviews": [{"reviewer": MAIL, "choice": "Tie"}]}, "EMAIL_ADDRESS"),
        ({"signals": {"paid": CARD}}, "CREDIT_CARD"),
        ({"signals": {"paid": float(CARD)}}, "CREDIT_CARD"),
        ({"metadata": {"paid": CARD}}, "CREDIT_CARD"),
    ],
)
def test_what_stands_beside_the_texts_drops_the_row(mode: PrivacyMode, carried: dict[str, Any], entity: str) -> None:
    screened = PrivacyFilter(PrivacyParams(mode=mode)).screen([row("hi", "ho", **carried), row("hi", "ho")])
    assert (screened.rows, screened.dropped) == ([row("hi", "ho")], {entity: 1})


def test_measures_and_short_words_are_nobodys() -> None:
    """The named-entity model takes these for places, companies and times, the patterns the numbers for telephones."""
    every = PrivacyParams(entities=["PERSON", "LOCATION", "ORGANIZATION", "DATE_TIME", "PHONE_NUMBER", "CREDIT_CARD"])
    measures = {"minutes": 1984, "android": True, "at": 1723642702, "share": 69.40104594190979, "dwell": 382243}
    reviews = [{"reviewer": "d50c5e46f5943aed5b0d3223", "choice": "Tie"}]
    said = row("hi", "ho", locale="en-US", signals=measures, reviews=reviews)
    assert PrivacyFilter(every).screen([said]).rows == [said]


@pytest.mark.parametrize("mode", PrivacyMode)
def test_an_id_that_is_a_mail_address_drops_the_row(mode: PrivacyMode) -> None:
    """Put in its place, one `<EMAIL_ADDRESS>` would make one user of all."""
    named = PrivacyFilter(PrivacyParams(mode=mode))
    screened = named.screen([row("hi", "ho", user=MAIL), row("hi", "ho", user="@home"), row("hi", user="2127365000")])
    assert screened.dropped == {"EMAIL_ADDRESS": 1}
    assert [r.user for r in screened.rows] == ["@home", "2127365000"]
    assert PrivacyFilter(PrivacyParams(entities=["US_SSN"])).screen([row("hi", user=MAIL)]).dropped == {}


def test_what_redaction_leaves_behind_drops_the_row() -> None:
    """A placeholder can be part of a match itself: fail closed."""
    params = PrivacyParams(
        mode=PrivacyMode.REDACT, entities=[], recognizers=[PrivacyRecognizer(name="ORDER", pattern="order")]
    )
    screened = PrivacyFilter(params).screen([row("my order", "yes")])
    assert (screened.rows, screened.dropped) == ([], {"ORDER": 1})


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80), st.sampled_from([MAIL, "4111 1111 1111 1111", "203.0.113.7"]), st.text(max_size=80))
def test_whatever_stands_around_it_a_found_identifier_never_survives(before: str, secret: str, after: str) -> None:
    text = f"{before} {secret} {after}"
    found = PATTERNS.found([text])[0]
    if found:
        clean = PATTERNS.redact(text, found)
        again = {r.entity_type for r in PATTERNS.found([clean])[0]}
        assert not {r.entity_type for r in found} & again or secret not in clean
