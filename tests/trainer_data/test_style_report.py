"""Rates of style artefacts side by side, what the reward prefers, and jumps."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_contract.judging import StyleParams
from flywheel_trainer import style, style_report
from flywheel_trainer.data.rows import Preference
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.style_report import change, jumps, preference

EMOJI = style.Feature("emoji", style.has_emoji)
LENGTH = style.Feature("length", style.words, binary=False)
USERS = [f"u{i}" for i in range(60)]
ASKED = [{"role": "user", "content": "hello there, what do you think of rain in the autumn?"}]


def params(*patterns: dict[str, Any], **more: float) -> StyleParams:
    return StyleParams.model_validate({"patterns": list(patterns), **more})


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("question", "And you?", "Why? Because."),
        ("question", "What do you think? *smiles*", "I think so *smiles*"),
        ("greeting", "Good morning! Coffee?", "This is a good morning."),
        ("refusal", "I\u2019m sorry, but I can't help with that.", "I can help with that."),
        ("refusal", "I'm not able to say.", "You are not able to say."),
        ("all-caps", "THIS IS GREAT", "The USA is large"),
        ("exclamation", "Yes! Sure!", "Yes!"),
        ("markdown", "This is **bold**.", "2 ** 3 is 8"),
        ("markdown", "# Plan\nwalk", "number #1"),
        ("action", "*waves* hi", "**bold** and 2 * 3 * 4"),
        ("wall-of-text", "word " * 120, ("word " * 119 + "\n\n") * 3),
        ("echo", "You asked what do you think of rain.", "Rain in the autumn is fine."),
    ],
)
def test_built_in_artefacts(name: str, yes: str, no: str) -> None:
    feature = next(f for f in style.BUILT_IN if f.name == name)
    # A reply to "And then?": nobody has greeted or asked for anything.
    history = ASKED if name == "echo" else [{"role": "user", "content": "And then?"}]
    assert (feature.measure(history, yes), feature.measure(history, no)) == (1.0, 0.0)


def test_a_greeting_that_answers_a_greeting_is_none() -> None:
    assert style.greets([{"role": "user", "content": "Hi!"}], "Hey you.") == 0
    assert style.greets([], "Hey you.") == 1


@given(st.text(max_size=300), st.text(max_size=100))
def test_every_artefact_takes_any_text(reply: str, asked: str) -> None:
    for feature in style.BUILT_IN:
        value = feature.measure([{"role": "user", "content": asked}], reply)
        assert value >= 0 if feature.name == "length" else value in (0.0, 1.0)


def test_a_reply_a_hundred_times_too_long_is_read_in_part() -> None:
    assert style.values(LENGTH, [ASKED], ["a " * 1_000_000]) == [style.MAX_CHARACTERS / 2]


def test_patterns_of_ones_own() -> None:
    found = style.features(params({"name": "pirate", "pattern": r"\barr+\b"}, {"name": "x", "pattern": "A"} | {
        "name": "loud", "ignoreCase": False}))  # fmt: skip
    assert [f.name for f in found[-2:]] == ["pirate", "loud"]
    assert [f.measure([], "ARRR, a ship") for f in found[-2:]] == [1.0, 1.0]
    assert [f.measure([], "a ship") for f in found[-2:]] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ({"name": "emoji", "pattern": "x"}, "style.patterns: emoji is the name of another artefact"),
        ({"name": "broken", "pattern": "(a"}, "style.patterns: broken is no regular expression: missing \\)"),
    ],
)
def test_patterns_that_are_refused(pattern: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        style.features(params(pattern))


def test_a_pattern_that_never_ends_is_stopped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "PATTERN_SECONDS", 0.05)
    own = style.features(params({"name": "slow", "pattern": "(a|a|b?a)*c$"}))[-1]
    with pytest.raises(ConfigError, match=r"style\.patterns: slow took more than 0.05 s on one reply"):
        style.values(own, [[]], ["a" * 5000 + "c!"])


def test_a_rate_is_compared_as_a_difference_and_a_length_as_a_share() -> None:
    before, after = np.zeros(60), np.array([1.0] * 15 + [0.0] * 45)
    found = change(EMOJI, USERS, before, after)
    assert (found.before.value, found.after.value, found.increase.value) == (0, 0.25, 0.25)
    assert found.over(StyleParams(tolerance=0.24))
    assert not found.over(StyleParams(tolerance=0.25)), "exactly the tolerance is no jump"
    longer = change(LENGTH, USERS, np.full(60, 10.0), np.full(60, 16.0))
    assert longer.increase.value == pytest.approx(0.6)
    assert longer.over(StyleParams())
    assert not longer.over(StyleParams(length_tolerance=0.7))
    assert set(longer.to_json("a", "b")) == {"a", "b", "increase"}


def test_a_length_over_nothing_has_no_increase() -> None:
    found = change(LENGTH, USERS, np.zeros(60), np.ones(60))
    assert found.increase is None
    assert not found.over(StyleParams())
    assert set(found.to_json("a", "b")) == {"a", "b"}


def test_one_user_who_was_answered_among_many_who_were_not() -> None:
    found = change(LENGTH, USERS, np.eye(60)[0] * 5, np.ones(60))
    assert np.isfinite(found.increase.resamples).all()


def test_what_the_reward_prefers_is_asked_within_prompts() -> None:
    artefact = [[0, 1], [0, 1, 1], [1, 0]]
    liked = preference(["a", "b", "c"], artefact, [[0.0, 1.0], [0.0, 5.0, 6.0], [9.0, 1.0]])
    assert liked.value > 0.9
    # Between prompts the artefact comes with reward, within them it does not: no preference.
    between = preference(["a", "b"], [[0, 0, 1], [1, 1, 0]], [[1.0, 2.0, 0.0], [8.0, 7.0, 9.0]])
    assert between.value < 0
    assert preference(["a"], [[1, 1]], [[0.0, 1.0]]) is None, "the artefact does not vary"
    assert preference(["a"], [[0, 1]], [[1.0, 1.0]]) is None, "the reward does not vary"
    assert preference([], [], []) is None


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(-5, 5)), min_size=2, max_size=6), st.floats(-100, 100))
def test_a_preference_lies_between_minus_one_and_one_and_ignores_the_prompts_level(
    replies: list[tuple[int, float]], level: float
) -> None:
    artefact = [a for a, _ in replies]
    found = preference(["a"], [artefact], [[r for _, r in replies]], samples=100)
    if found is not None:
        assert -1.0000001 <= found.value <= 1.0000001
        turned = preference(["a"], [artefact], [[-r for _, r in replies]], samples=100)
        assert turned.value == pytest.approx(-found.value)


def rise(by: float) -> style_report.Change:
    return change(EMOJI, USERS, np.zeros(60), (np.arange(60) < by * 60).astype(float))


def liked(value: float) -> Any:  # noqa: ANN401 -- an Estimate
    sign = [0.0, 1.0] if value > 0 else [1.0, 0.0]
    return None if value == 0 else preference(["a"], [[0, 1]], [sign])


@pytest.mark.parametrize(
    ("increase", "correlation", "jumped"),
    [(0.5, 1, True), (0.5, -1, False), (0.05, 1, False), (0.05, -1, False), (0.5, 0, True)],
)
def test_a_jump_needs_a_rise_and_a_reward_that_likes_it(increase: float, correlation: float, jumped: bool) -> None:
    assert jumps([rise(increase)], [liked(correlation)], StyleParams()) == (["emoji"] if jumped else [])


def pair(chosen: str, rejected: str, user: str = "u") -> Preference:
    return Preference.model_validate(
        {
            "conversation": "c", "user": user, "origin": "User", "prompt": ASKED,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
    )  # fmt: skip


def test_reports_of_pairs_and_of_samples(tmp_path: Any) -> None:  # noqa: ANN401 -- a path
    ctx: Any = SimpleNamespace(
        spec=SimpleNamespace(style=params({"name": "yes", "pattern": "yes"}), seed=0), beside=lambda name: tmp_path
    )
    style_report.leave_pairs(ctx, [pair("yes \U0001f600", "no"), pair("yes", "no", "v")])
    report = json.loads((tmp_path / style_report.REPORT).read_text())
    assert (report["rows"], report["users"]) == (2, 2)
    assert report["artefacts"]["emoji"]["chosen"]["value"] == 0.5
    assert report["artefacts"]["yes"]["increase"]["value"] == 1
    assert "rewardCorrelation" not in report["artefacts"]["yes"]
    replies = [["yes", "no", ""], ["yes", "no", "no"], ["", "", ""]]
    style_report.leave_samples(ctx, ["u", "v", "w"], [ASKED] * 3, replies, [[1, 0, 9], [2, 1, 0], [1, 1, 1]])
    report = json.loads((tmp_path / style_report.REPORT).read_text())
    assert report["rows"] == 2, "a prompt without a reply says nothing"
    assert report["artefacts"]["yes"]["accepted"]["value"] == 1
    assert report["artefacts"]["yes"]["rewardCorrelation"]["value"] > 0.8
