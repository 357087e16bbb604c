"""The parts that need nothing: sentences, events, keys, rates, the process's own log."""

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_contract.experiment import Arm
from flywheel_gateway import logs
from flywheel_gateway.detectors import is_refusal
from flywheel_gateway.errors import ConfigError
from flywheel_gateway.keys import InvalidTokenError, Keys, SessionClaims, draw_id, is_drawn, is_user_id
from flywheel_gateway.limits import RateLimiter
from flywheel_gateway.sse import EventReader, raw_event
from flywheel_safety.sentences import LONGEST, sentences, split_complete
from tests.gateway.lab import KEYS


@given(st.lists(st.text(alphabet="ab .!?\n\u3002\u2026'", max_size=30)))
def test_nothing_is_lost_where_a_stream_is_cut(parts: list[str]) -> None:
    shown, held = "", ""
    for part in parts:
        complete, held = split_complete(held + part)
        shown += complete
    assert shown + held == "".join(parts)


@given(st.text(max_size=3000))
def test_sentences_hold_every_word_and_none_is_longer_than_may_be(text: str) -> None:
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(0 < len(sentence) <= LONGEST for sentence in found)


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("One two", ""),
        ("One. ", "One. "),
        ("One.", ""),
        ("3.5 is", ""),
        ('"Yes!" she', '"Yes!" '),
        ("a\nb", "a\n"),
        ("\u306f\u3044\u3002\u3044", "\u306f\u3044\u3002"),
        ("x" * 401, "x" * 400),
        ("x" * 300 + " " + "y" * 200, "x" * 300 + " "),
    ],
)
def test_where_a_sentence_ends(text: str, complete: str) -> None:
    assert split_complete(text) == (complete, text[len(complete) :])


@given(st.lists(st.text(alphabet="ab:\u00e9 {}", min_size=1)), st.lists(st.integers(1, 9)))
def test_events_are_the_same_however_they_arrive(values: list[str], sizes: list[int]) -> None:
    stream = b"".join(raw_event(value.encode()) for value in values)
    reader, found = EventReader(10_000), []
    while stream:
        size = sizes.pop() if sizes else len(stream)
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert [data.decode() for data in found] == values


def test_data_of_several_lines_and_an_event_without_end() -> None:
    reader = EventReader(20)
    assert reader.feed(b"event: x\ndata:a\ndata: b\n\n\n\n") == [b"a\nb"]
    assert raw_event(b"a\nb") == b"data: a\ndata: b\n\n"
    with pytest.raises(ValueError, match="too long"):
        reader.feed(b"data: " + b"x" * 30)


_CLAIMS = st.builds(
    SessionClaims,
    session=st.text(max_size=40),
    user=st.just("a" * 64),
    expires=st.integers(1, 2**40),
    arm=st.none() | st.sampled_from(Arm),
    test=st.none() | st.text(max_size=63),
    character=st.none() | st.text(max_size=63),
    consent=st.none() | st.booleans(),
    conversation=st.none() | st.text(max_size=128),
)


@given(_CLAIMS)
def test_a_token_says_what_was_put_into_it(claims: SessionClaims) -> None:
    assert KEYS.claims(KEYS.token(claims), claims.expires - 1) == claims
    with pytest.raises(InvalidTokenError, match="over"):
        KEYS.claims(KEYS.token(claims), claims.expires)


@given(st.text(max_size=200))
def test_nothing_that_was_not_signed_is_believed(text: str) -> None:
    assert KEYS.user_of_cookie(text) is None
    with pytest.raises(InvalidTokenError):
        KEYS.claims(text, 0)


@given(st.data())
def test_a_changed_token_or_cookie_is_not_ours(data: st.DataObject) -> None:
    token = KEYS.token(SessionClaims(session="s", user="u", expires=10))
    for signed, check in ((token, lambda t: KEYS.claims(t, 0)), (KEYS.cookie("abc"), KEYS.user_of_cookie)):
        place = data.draw(st.integers(0, len(signed) - 1))
        other = data.draw(st.sampled_from("AZaz09_-.").filter(lambda c, old=signed[place]: c != old))
        changed = signed[:place] + other + signed[place + 1 :]
        try:
            assert check(changed) is None
        except InvalidTokenError:
            pass


def test_signatures_of_one_kind_are_none_of_another() -> None:
    """A user's hash is seen by those who read the log, and must not be worth a cookie."""
    signature = KEYS.cookie("anna").split(".")[1]
    assert KEYS.hash_user("anna") != signature
    token = KEYS.token(SessionClaims(session="s", user="u", expires=10))
    assert KEYS.user_of_cookie(token) is None
    assert Keys(b"another key of the lineage").user_of_cookie(KEYS.cookie("anna")) is None


def test_ids() -> None:
    assert is_drawn(draw_id())
    assert draw_id() != draw_id()
    assert not is_drawn("a b")
    assert is_user_id("anna@example.org")
    assert not any(is_user_id(bad) for bad in ("", "a\0", "a\nb", "\x7f", "x" * 257))
    with pytest.raises(ConfigError, match="16"):
        Keys(b"short")


def test_a_rate_is_a_burst_and_then_so_many_a_second() -> None:
    limiter = RateLimiter(per_second=2, burst=3, remembered=2)
    assert [limiter.wait("a", 0.0) for _ in range(4)] == [0, 0, 0, 1]
    assert limiter.wait("a", 0.5) == 0
    assert limiter.wait("a", 0.5) == 1
    assert limiter.wait("a", 0.2) == 1  # a clock that stands still gives nothing
    assert limiter.wait("b", 0.5) == limiter.wait("c", 0.5) == 0
    assert limiter.wait("a", 0.5) == 0  # forgotten for c
    slow = RateLimiter(per_second=0.1, burst=1)
    assert [slow.wait("a", 0.0), slow.wait("a", 0.0)] == [0, 10]


def test_typographic_apostrophes_refuse_too() -> None:
    assert is_refusal("I\u2019m sorry, but I can\u2019t assist with that.")
    assert not is_refusal("x" * 300 + " I can't assist with that.")


def test_the_processs_log_never_quotes_an_exception() -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure("INFO", stream)
        try:
            raise ValueError("anna said hello")
        except ValueError:
            logging.getLogger("x").exception("it broke")
        logging.getLogger("uvicorn").info("chatter")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    line = json.loads(stream.getvalue())
    assert (line["message"], line["error"]["type"]) == ("it broke", "ValueError")
    assert "anna" not in stream.getvalue()
