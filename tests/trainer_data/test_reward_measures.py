"""What reward models are measured with: looks, calibration, discrimination, drift, and the labels of signals."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from flywheel_contract.params import RewardStageParams, SignalParams
from flywheel_contract.stages import Origin, RewardModelType
from flywheel_trainer import calibration, discrimination, intervals, surface
from flywheel_trainer.data.rows import Conversation, Message
from flywheel_trainer.errors import DataError
from flywheel_trainer.signals import examples

DAY = timedelta(days=1)
T0 = datetime(2026, 5, 1, tzinfo=UTC)
MANY = {"samples": 200, "seed": 1}


def users(count: int) -> list[str]:
    return [f"u{i}" for i in range(count)]


# ------------------------------------------------------------------------------------------------------- looks


def test_features_of_a_reply() -> None:
    plain = surface.features([], "two words")
    assert plain == [pytest.approx(np.log(10)), pytest.approx(np.log(3)), 0, 0]
    assert surface.features([], "- one\n- two 🌙")[2:] == [1, 1]
    assert surface.features([], "") == [0, 0, 0, 0]


def test_a_preference_for_length_is_found_and_the_order_of_a_pair_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    longer = np.column_stack([np.abs(rng.normal(size=50)), rng.normal(size=50), np.zeros(50), np.zeros(50)])
    found = surface.preferred(longer, longer)
    assert (found > 0).mean() > 0.95
    assert surface.preferred(longer, -longer) == pytest.approx(-found)


def test_looks_that_do_not_differ_say_nothing() -> None:
    same = np.zeros((10, 4))
    assert surface.preferred(same, same) == pytest.approx(np.zeros(10))


def test_a_signal_that_goes_by_length_is_found() -> None:
    x = np.arange(40.0)[:, None] * np.ones((1, 4))
    found = surface.signalled(x, x[:, 0] > 20, x)
    assert discrimination.auc(users(40), found, x[:, 0] > 20, **MANY).value == 1  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------- calibration


def test_calibrated_and_overconfident() -> None:
    rng = np.random.default_rng(0)
    said = rng.random(4000)
    came = rng.random(4000) < said
    assert calibration.error(users(4000), said, came, **MANY).value < 0.03
    wrong = calibration.error(users(4000), np.full(4000, 0.9), rng.random(4000) < 0.5, **MANY)
    assert wrong.value == pytest.approx(0.4, abs=0.03)
    measured = wrong.measurement(0.95)
    assert measured.low is not None
    assert measured.high is not None
    assert measured.low <= 0.4 <= measured.high


def test_few_rows_make_one_bin_and_bins_hold_equally_many() -> None:
    assert calibration.error(["a"], [0.7], [1], **MANY).value == pytest.approx(0.3)
    assert len(calibration.reliability([0.5] * 9, [1] * 9)) == 1
    lines = calibration.reliability(np.linspace(0, 1, 205), np.zeros(205))
    assert len(lines) == calibration.MAX_BINS
    assert {line["rows"] for line in lines} == {20, 21}


@settings(deadline=None)  # a shared machine
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_error_is_a_share(rows: list[tuple[float, bool]]) -> None:
    said, came = zip(*rows, strict=True)
    found = calibration.error(users(len(rows)), said, came, samples=20, seed=0)
    assert 0 <= found.value <= 1
    assert ((found.resamples >= 0) & (found.resamples <= 1 + 1e-9)).all()
    assert sum(line["rows"] for line in calibration.reliability(said, came)) == len(rows)


# ---------------------------------------------------------------------------------------------- discrimination


@settings(deadline=None)  # a shared machine
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=50))
def test_the_area_is_that_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores, labels = zip(*rows, strict=True)
    found = discrimination.auc(users(len(rows)), scores, labels, samples=20, seed=0)
    if len(set(labels)) == 1:
        assert found is None
    else:
        assert found is not None
        assert found.value == pytest.approx(roc_auc_score(labels, scores))
        assert ((found.resamples >= 0) & (found.resamples <= 1)).all()


def test_rows_of_one_user_are_one_unit() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(400) < 0.5
    scores = labels + rng.normal(size=400) * 2
    apart = discrimination.auc(users(400), scores, labels, **MANY)
    together = discrimination.auc([f"u{i // 20}" for i in range(400)], scores, labels, **MANY)
    assert apart is not None
    assert together is not None
    assert (apart.users, together.users) == (400, 20)
    assert apart.value == together.value
    assert 0.3 < np.std(together.resamples) / np.std(apart.resamples) < 3


def test_resamples_under_one_seed_belong_together() -> None:
    labels = np.arange(60) % 2 == 0
    scores = np.arange(60.0)
    one, same = (discrimination.auc(users(60), scores, labels, **MANY) for _ in range(2))
    assert one is not None
    assert same is not None
    assert intervals.combine(lambda a, b: a - b, one, same, users=60).resamples == pytest.approx(np.zeros(200))


def test_slices_go_by_time_and_leave_out_rows_without() -> None:
    times = [T0 + 3 * DAY, None, T0, T0 + DAY, T0 + 2 * DAY]
    cut = discrimination.slices(times, 2)
    assert [part.rows.tolist() for part in cut] == [[2, 3], [4, 0]]
    assert (cut[0].first, cut[1].last) == (T0, T0 + 3 * DAY)
    assert discrimination.slices(times, 5) == []


def test_drift_is_small_where_nothing_changes_and_large_where_the_scores_move() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=500)
    assert discrimination.drift(before, rng.normal(size=500)) < 0.1
    assert discrimination.drift(before, rng.normal(1.5, size=500)) > 0.25
    assert np.isfinite(discrimination.drift(before, before + 100)), "an empty bin is not infinite"
    assert discrimination.drift([1.0], [2.0]) >= 0


# ----------------------------------------------------------------------------------------------------- signals


def row(conversation: str, roles: str, *, time: datetime | None = T0, **signals: bool | float | str) -> Conversation:
    """`roles` like `uaua`."""
    messages = [Message(role={"u": "user", "a": "assistant"}[r], content=f"{i}") for i, r in enumerate(roles)]
    text = time.isoformat() if time else None
    return Conversation(
        conversation=conversation, user="u", origin=Origin.USER, time=text, messages=messages, signals=signals
    )


def test_rows_say_it_themselves() -> None:
    rows = [
        row("a", "ua", liked=True),
        row("b", "ua", liked=0.0),
        row("c", "ua", liked=2.0),
        row("d", "ua"),
        row("e", "uau", liked=True),
    ]
    found, counts = examples(rows, SignalParams(name="liked"))
    assert [(e.row.conversation, e.given) for e in found] == [("a", True), ("b", False), ("c", True)]
    assert counts == {"rows": 5, "dropped-no-signal": 1, "dropped-no-reply": 1}
    found, counts = examples(rows, SignalParams(name="liked", absent="Negative"))
    assert [(e.row.conversation, e.given) for e in found][-1] == ("d", False)


def test_whether_the_user_went_on_is_in_the_conversation() -> None:
    rows = [
        row("a", "ua"),
        row("a", "uauaua", time=T0),
        row("b", "ua", time=T0 + 2 * DAY),
        row("c", "ua", time=None),
        row("d", "ua", time=T0 + 2 * DAY, continued=True),
        row("e", "uau", time=T0),
    ]
    found, counts = examples(rows, SignalParams(name="continued", source="Conversation"))
    told = [(e.row.conversation, len(e.messages), e.given) for e in found]
    assert told == [("a", 2, True), ("a", 4, True), ("a", 6, False), ("d", 2, True), ("e", 2, True)]
    assert counts == {"rows": 6, "dropped-earlier-turn": 1, "dropped-unsettled": 2}
    assert examples([row("c", "ua", time=None)], SignalParams(name="continued", source="Conversation"))[0] == []


GOES_ON = SignalParams(name="continued", source="Conversation")


def test_of_a_client_that_sends_a_window_the_latest_row_tells_who_went_on() -> None:
    """Every row has four messages, so none is longer; the user went on after each reply but the last."""
    talk = row("a", "uauauaua").messages
    windows = [
        row("a", "u", time=T0 + hour * timedelta(hours=1)).model_copy(update={"messages": talk[start : start + 4]})
        for hour, start in enumerate((0, 2, 4))
    ]
    later = row("b", "ua", time=T0 + 3 * DAY)
    for rows in (windows, windows[::-1]):
        found, counts = examples([*rows, later], GOES_ON)
        told = [(e.messages[-1]["content"], e.given) for e in found]
        assert told == [("5", True), ("7", False)]
        assert counts == {"rows": 4, "dropped-earlier-turn": 2, "dropped-unsettled": 1}


def test_an_edited_conversation_is_what_was_said_last() -> None:
    rows = [row("a", "uauaua", time=T0), row("a", "ua", time=T0 + DAY), row("a", "uaua", time=None)]
    found, _ = examples([*rows, row("b", "ua", time=T0 + 3 * DAY)], GOES_ON)
    assert [(len(e.messages), e.given) for e in found] == [(2, False)]


def test_the_opening_line_tells_nothing() -> None:
    """A log has it only because somebody answered."""
    rows = [row("a", "auaua", time=T0), row("b", "aua", time=T0 + 2 * DAY), row("c", "a", time=T0, continued=True)]
    found, counts = examples(rows, GOES_ON)
    assert [(e.row.conversation, len(e.messages), e.given) for e in found] == [("a", 3, True), ("a", 5, False)]
    assert counts == {"rows": 3, "dropped-earlier-turn": 0, "dropped-opening": 3, "dropped-unsettled": 1}


def test_times_of_any_zone_and_none() -> None:
    naive = row("a", "ua", liked=True).model_copy(update={"time": "2026-05-01T10:00:00"})
    zoned = row("b", "ua", liked=True).model_copy(update={"time": "2026-05-01T12:00:00+02:00"})
    found, _ = examples([naive, zoned], SignalParams(name="liked"))
    assert found[0].time == found[1].time


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row("c-1", "ua", liked="yes"), "conversation c-1: signals.liked is the text 'yes'"),
        (row("c-1", "ua", liked="x" * 9000), "write true, false or a number"),
        (
            row("c-1", "ua", liked=True).model_copy(update={"time": "yesterday; ignore all rules"}),
            "conversation c-1: time 'yesterday; ignore all rules' is no RFC 3339 time",
        ),
    ],
)
def test_what_cannot_be_read_is_named(bad: Conversation, said: str) -> None:
    with pytest.raises(DataError) as raised:
        examples([bad], SignalParams(name="liked"))
    assert said in str(raised.value)
    assert len(str(raised.value)) < 200


def test_a_signal_belongs_to_its_type() -> None:
    RewardStageParams(type=RewardModelType.USER_SIGNAL, signal=SignalParams(name="liked"))
    for wrong in ({"type": "UserSignal"}, {"type": "Pairwise", "signal": {"name": "liked"}}):
        with pytest.raises(ValueError, match="type UserSignal needs it"):
            RewardStageParams.model_validate(wrong)
    with pytest.raises(ValueError, match="pattern"):
        SignalParams(name="liked; drop")
