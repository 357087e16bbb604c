"""What serves a lineage: promotions, rollbacks and retirements in any order."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from flywheel_operator.decide.production import (
    HISTORY_LIMIT,
    last_time,
    promote,
    retire,
    rollback,
    rollback_target,
    serving_digest,
)
from flywheel_operator.model.production import Ended, ProductionRecord
from tests.unit.build import T0, digest, record

ANNOTATIONS_BYTES = 262_144


def after(*steps: str) -> ProductionRecord:
    """The record after `steps`: `+name` promotes, `<` rolls back, `-` retires."""
    state = ProductionRecord()
    for hours, step in enumerate(steps):
        now = T0 + timedelta(hours=hours)
        if step == "-":
            state = retire(state, now)
        elif step == "<":
            target = rollback_target(state)
            assert target is not None
            state = rollback(state, target, now)
        else:
            state = promote(state, step[1:], f"pvc://models/{step[1:]}", digest(step[1:]), now)
    return state


def serving(state: ProductionRecord) -> str | None:
    return state.serving.generation if state.serving else None


def target(state: ProductionRecord) -> str | None:
    found = rollback_target(state)
    return found.generation if found else None


def test_a_line_of_promotions() -> None:
    state = after("+a", "+b", "+c")
    assert serving(state) == "c"
    assert [(s.generation, s.ended) for s in state.history] == [("a", Ended.SUPERSEDED), ("b", Ended.SUPERSEDED)]
    assert [s.until for s in state.history] == [T0 + timedelta(hours=1), T0 + timedelta(hours=2)]
    assert target(state) == "b"


def test_a_rollback_never_goes_to_what_was_rolled_back() -> None:
    state = after("+a", "+b", "+c", "<")
    assert serving(state) == "b"
    assert [(s.generation, s.ended) for s in state.history][-1] == ("c", Ended.ROLLED_BACK)
    assert target(state) == "a"
    assert target(after("+a", "+b", "+c", "<", "<")) is None
    assert target(after("+a", "+b", "<", "+c")) == "a"
    assert target(after("+a", "+b", "<", "+c", "<")) is None


def test_after_a_retirement_nothing_serves() -> None:
    state = after("+a", "+b", "-")
    assert serving(state) is None
    assert serving_digest(state) is None
    assert target(state) is None
    assert retire(state, T0) == state
    assert target(after("+a", "+b", "-", "+c")) == "a"


def test_the_last_time_in_production() -> None:
    state = after("+a", "+b", "<")
    now = last_time(state, "a")
    assert now is not None
    assert now.until is None
    before = last_time(state, "b")
    assert before is not None
    assert before.ended is Ended.ROLLED_BACK
    assert last_time(state, "c") is None
    assert last_time(None, "a") is None
    assert serving_digest(state) == digest("a")
    assert serving_digest(None) is None


_STEPS = st.lists(st.sampled_from(["promote", "rollback", "retire"]), max_size=30)


@given(_STEPS)
def test_whatever_is_done_one_serves_at_most_and_no_bad_one_comes_back(steps: list[str]) -> None:
    state, bad, count = ProductionRecord(), set(), 0
    for hours, step in enumerate(steps):
        now = T0 + timedelta(hours=hours)
        goal = rollback_target(state)
        before = state
        if step == "promote":
            count += 1
            state = promote(state, f"g{count}", f"pvc://models/g{count}", digest(f"g{count}"), now)
        elif step == "rollback" and goal is not None:
            bad.add(serving(state))
            state = rollback(state, goal, now)
        elif step == "retire":
            bad.add(serving(state))
            state = retire(state, now)
        assert all(s.until is not None and s.ended is not None for s in state.history)
        assert state.serving is None or state.serving.until is None
        assert len(state.history) <= len(before.history) + 1
        assert state.history[: len(before.history)] == before.history, "history is only ever added to"
        goal = rollback_target(state)
        assert goal is None or goal.generation not in bad | {serving(state)}
        # Rolling back leads backwards: what serves then was there before.
        assert goal is None or int(goal.generation[1:]) < int((serving(state) or "g0")[1:])


def test_the_longest_history_fits_into_the_annotations_of_a_service() -> None:
    state = ProductionRecord()
    for i in range(HISTORY_LIMIT + 20):
        name = f"{i:050}"
        uri = f"s3://{'x' * 250}/{name}/{name}/rejection-sample/{'0' * 16}/model"
        state = promote(state, name, uri, digest(name), T0 + timedelta(microseconds=i))
    assert len(state.history) == HISTORY_LIMIT
    assert state.history[-1].generation == f"{HISTORY_LIMIT + 18:050}"
    text = state.model_dump_json(by_alias=True, exclude_none=True)
    assert len(text) < ANNOTATIONS_BYTES - 16_384
    assert ProductionRecord.model_validate_json(text) == state


def test_a_newer_operators_record_can_be_read() -> None:
    text = record("a").model_dump_json().replace("{", '{"news": 1, ', 1)
    assert serving(ProductionRecord.model_validate_json(text)) == "a"
