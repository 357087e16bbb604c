"""Constraints: targets, what was achieved, and the words for what could not be."""

from typing import Any

import pytest
from pydantic import ValidationError

from flywheel_contract.curation_params import ConstraintDimension, ConstraintsParams
from flywheel_contract.stages import Origin
from flywheel_trainer.data import constraints
from flywheel_trainer.data.constraints import Share
from flywheel_trainer.data.dimensions import labeller
from flywheel_trainer.data.rows import Conversation
from flywheel_trainer.errors import ConfigError


def rows(count: int, origin: str = "User", **fields: Any) -> list[Conversation]:  # noqa: ANN401 -- JSON
    """`count` conversations that are alike."""
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    base = {"user": "u", "origin": origin, "messages": said} | fields
    return [Conversation.model_validate({"conversation": f"{origin}-{fields}-{n}", **base}) for n in range(count)]


def wanted(*dimensions: dict[str, Any], **more: Any) -> ConstraintsParams:  # noqa: ANN401 -- JSON
    return ConstraintsParams.model_validate({"dimensions": list(dimensions), **more})


def sampled(
    left: list[Conversation],
    params: ConstraintsParams,
    traffic: list[Conversation] | None = None,
    cap: int | None = None,
) -> tuple[list[Conversation], dict[tuple[str, str], Share]]:
    """The rows that are kept, and the shares by origin and value."""
    stock = constraints.count(left if traffic is None else traffic, params.dimensions)
    kept, shares = constraints.sample(left, stock, params, cap=cap, seed=0)
    return [left[n] for n in sorted(kept)], {(s.origin.value if s.origin else "", s.value): s for s in shares}


def characters(*named: tuple[str, float]) -> dict[str, Any]:
    return {"name": "character", "target": [{"value": value, "share": share} for value, share in named]}


def test_the_traffic_is_the_target_where_none_is_declared() -> None:
    traffic = [*rows(300, character="luna"), *rows(100, character="max")]
    left = [*rows(120, character="luna"), *rows(100, character="max")]
    kept, shares = sampled(left, wanted({"name": "character"}, tolerance=0.0), traffic)
    assert [sum(r.character == c for r in kept) for c in ("luna", "max")] == [120, 40]
    luna = shares["User", "luna"]
    assert (luna.target, luna.achieved, luna.available, luna.kept, luna.reason) == (0.75, 0.75, 120, 120, "")
    assert luna.to_json() == {
        "dimension": "character", "origin": "User", "value": "luna", "target": 0.75, "achieved": 0.75,
        "available": 120, "kept": 120,
    }  # fmt: skip


def test_origins_are_sampled_by_themselves() -> None:
    left = [*rows(80, character="a"), *rows(20, character="b"), *rows(30, "Internal", character="b")]
    kept, shares = sampled(left, wanted(characters(("a", 0.5), ("b", 0.5)), minKeptFraction=0.1))
    users = [r for r in kept if r.origin is Origin.USER]
    assert [sum(r.character == c for r in users) for c in ("a", "b")] == [20, 20]
    assert sum(r.origin is Origin.INTERNAL for r in kept) == 30
    assert shares["Internal", "a"].reason == "no conversation has it"
    assert shares["Internal", "b"].reason == "it takes its part of what is left by values that no conversation has"


def test_the_balance_of_origins_is_a_dimension_too() -> None:
    left = [*rows(100, "Internal"), *rows(300)]
    kept, shares = sampled(left, wanted({"name": "origin", "target": [{"value": "Internal", "share": 0.4}]}))
    assert [sum(r.origin is o for r in kept) for o in Origin] == [100, 150]
    assert shares["", "Internal"].achieved == pytest.approx(0.4)
    assert "origin" not in shares["", "User"].to_json()
    kept, shares = sampled(left, wanted({"name": "origin", "target": [{"value": "Internal", "share": 0.0}]}))
    assert [sum(r.origin is o for r in kept) for o in Origin] == [50, 300]
    assert shares["", "Internal"].reason == "the other targets and minKeptFraction 0.5 leave no room for fewer"
    _, shares = sampled(rows(10), wanted({"name": "origin", "target": [{"value": "Internal", "share": 1}]}))
    assert shares["", "Internal"].reason == "no conversation has it"


def test_a_target_out_of_reach_says_why() -> None:
    traffic = [*rows(90, locale="en"), *rows(10, locale="fr"), *rows(10, locale="de")]
    left = [r for r in traffic if r.locale != "fr"]
    target = [{"value": "de", "share": 0.5}, {"value": "fr", "share": 0.1}, {"value": "it", "share": 0.1}]
    kept, shares = sampled(left, wanted({"name": "locale", "target": target}), traffic)
    assert len(kept) == 50
    assert {value: s.reason for (_, value), s in shares.items()} == {
        "de": "all 10 that there are were kept",
        "fr": "all 10 that had it were dropped before",
        "it": "no conversation has it",
        "en": "the other targets and minKeptFraction 0.5 leave no room for fewer",
    }
    told = constraints.sentence(list(shares.values()))
    assert told == (
        "0 of 4 target shares met; locale (User) de is 20.0% of 50.0%: all 10 that there are were kept; "
        "locale (User) en is 80.0% of 30.0%: the other targets and minKeptFraction 0.5 leave no room for fewer; "
        "locale (User) fr is 0.0% of 10.0%: all 10 that had it were dropped before; 1 more in the report"
    )


def test_what_only_dropped_conversations_had_is_not_written_down() -> None:
    traffic = [*rows(90, locale="en"), *rows(10, locale="lee@example.org")]
    left = [r for r in traffic if r.locale == "en"]
    _, shares = sampled(left, wanted({"name": "locale"}), traffic)
    assert [s.to_json()["value"] for s in shares.values()] == ["en", "(none left)"]
    assert "lee@example.org" not in constraints.sentence(list(shares.values()))


def test_what_was_met_is_told_in_short() -> None:
    _, shares = sampled([*rows(50, character="a"), *rows(50, character="b")], wanted({"name": "character"}))
    assert constraints.sentence(list(shares.values())) == "2 of 2 target shares met to within 0.00%"


def test_of_dimensions_that_contradict_one_another_the_first_is_met() -> None:
    left = [*rows(100, character="a", locale="en"), *rows(100, character="b", locale="de")]
    params = wanted(characters(("a", 0.9), ("b", 0.1)), {"name": "locale", "target": [{"value": "en", "share": 0.1}]})
    kept, shares = sampled(left, params)
    assert len(kept) == 100
    assert [shares["User", value].reason for value in "ab"] == ["", ""]
    assert shares["User", "en"].reason == "the other targets and minKeptFraction 0.5 leave no room for fewer"
    assert shares["User", "de"].reason == "the other targets and minKeptFraction 0.5 leave no room for more"


def test_the_cap_is_kept_and_the_seed_draws() -> None:
    left = [*rows(100, character="a"), *rows(100, character="b")]
    kept, _ = sampled(left, wanted({"name": "character"}), cap=50)
    assert [sum(r.character == c for r in kept) for c in ("a", "b")] == [25, 25]
    assert {r.conversation for r in kept} != {r.conversation for r in [*left[:25], *left[100:125]]}
    assert kept == sampled(left, wanted({"name": "character"}), cap=50)[0]


def test_targets_of_values_that_nobody_wants_fall_back_to_what_is_there() -> None:
    _, shares = sampled(
        [*rows(6, locale="a"), *rows(4)], wanted({"name": "locale", "target": [{"value": "z", "share": 1}]})
    )
    assert shares["User", "z"].reason == "no conversation has it"
    assert shares["User", "none"].achieved > 0


def test_a_value_that_shall_have_nothing_can_be_all_there_is() -> None:
    _, shares = sampled(rows(8, character="a"), wanted(characters(("a", 0.0))))
    assert (shares["User", "a"].achieved, shares["User", "a"].kept) == (1.0, 8)
    assert shares["User", "a"].reason == "the other targets and minKeptFraction 0.5 leave no room for fewer"


def test_a_measurement_is_no_stratum() -> None:
    many = [r for n in range(1001) for r in rows(1, metadata={"score": n / 7})]
    with pytest.raises(ConfigError, match=r"metadata.score has 1001 values, at most 1000 are strata; name a field"):
        constraints.count(many, wanted({"name": "metadata.score"}).dimensions)


@pytest.mark.parametrize(
    ("name", "fields", "value"),
    [
        ("origin", {}, "User"),
        ("character", {"character": "luna"}, "luna"),
        ("character", {}, "none"),
        ("locale", {"locale": ""}, "none"),
        ("locale", {"locale": "de" * 500}, "de" * 64),
        ("month", {"time": "2026-05-01T10:00:00Z"}, "2026-05"),
        ("month", {}, "none"),
        ("signals.thumbsUp", {"signals": {"thumbsUp": True}}, "true"),
        ("signals.rating", {"signals": {"rating": 4.0}}, "4"),
        ("metadata.plan", {"metadata": {"plan": "free"}}, "free"),
        ("metadata.plan", {"metadata": {"other": 1}}, "none"),
        ("turns", {}, "1"),
        ("length", {}, "0-20"),
        ("length", {"messages": [{"role": "user", "content": "x" * 300}]}, "81-300"),
        ("length", {"messages": [{"role": "user", "content": "x" * 99999}]}, "301+"),
        ("turns", {"messages": [{"role": "user", "content": "x"}] * 12}, "9+"),
    ],
)  # fmt: skip
def test_values_along_dimensions(name: str, fields: dict[str, Any], value: str) -> None:
    (row,) = rows(1, **fields)
    assert labeller(name)(row) == value


@pytest.mark.parametrize(
    ("dimension", "said"),
    [
        (characters(("a", 0.7), ("b", 0.7)), "the shares add up to 1.4; at most 1 can be given away"),
        (characters(("a", 0.1), ("a", 0.2)), "'a' has two shares; name every value once"),
        ({"name": "shoe"}, "String should match pattern"),
        ({"name": "metadata.x y"}, "String should match pattern"),
        ({"name": "locale", "target": []}, "at least 1 item"),
        ({"name": "locale", "target": [{"value": None, "share": 1}]}, "valid string"),
    ],
)
def test_wrong_dimensions_are_refused(dimension: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ConstraintDimension.model_validate(dimension)
    with pytest.raises(ValidationError, match="locale stands there twice; name every dimension once"):
        wanted({"name": "locale"}, {"name": "locale"})
