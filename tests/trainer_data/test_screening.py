"""What may not be trained on of data that does not come through curation: preferences, SFT data, a signal's traffic."""

from dataclasses import replace
from typing import Any

import pytest

from e2e import tiny_data
from flywheel_contract.stage_result import Reason
from flywheel_contract.stage_spec import CurateSpec, SftSpec
from flywheel_contract.stages import Role
from flywheel_trainer.artifacts import Store
from flywheel_trainer.context import StageContext
from flywheel_trainer.data.rows import Conversation, Preference, read_preferences, read_traffic
from flywheel_trainer.data.screening import MOMENT_FILE, Moment, Screen
from flywheel_trainer.errors import DataError, SpecError, StageError
from tests.trainer_data.test_curate import row
from tests.trainer_data.test_retention import leave
from tests.trainer_data.workbench import Workbench

MAIL = "rebecca.canary@example.org"


def context(bench: Workbench, rows: list[dict[str, Any]], role: str = "sft-data", **screening: object) -> StageContext:
    spec = {"owner": "g", "group": "luna", "artifacts": "pvc://lab/out", "screening": screening}
    source = {**bench.input(role, bench.data("own", rows)), "name": "fixes"}
    return StageContext(SftSpec.model_validate({**spec, "inputs": [source]}), Store(bench.root))


def screened(ctx: StageContext) -> tuple[list[Conversation], Screen]:
    screen = Screen(ctx)
    source = ctx.input(Role.SFT_DATA)
    return screen(read_traffic(source.path), source), screen


def test_every_reason_is_counted_and_said_and_the_rest_is_left_as_it_was(bench: Workbench) -> None:
    kept = row(1, "hi", "ho", time="2026-06-01T00:00:00Z")
    leave(bench, "data/erasures", "u3")
    rows = [
        kept,
        row(2, "hi", "ho", retain_until="2020-01-01T00:00:00Z"),
        row(3, "hi", "ho", time="2026-05-01T00:00:00Z"),
        row(4, "hi", "ho", consent={"training": False}),
        row(5, "hi", f"write to {MAIL}"),
    ]
    ctx = context(bench, rows)
    left, screen = screened(ctx)
    assert [r.to_json() for r in left] == [kept]
    reasons = ("retention", "erased", "consent", "privacy", "privacy.EMAIL_ADDRESS")
    assert dict(screen.counts) == {f"dropped-{reason}": 1 for reason in reasons}
    assert ctx.notes == [
        "fixes: 4 of 5 rows are left out: 1 were past the time that they may be kept, 1 were of users who were erased, "
        "1 must not be trained on, 1 held personal identifiers"
    ]


def test_what_is_fine_is_not_spoken_of(bench: Workbench) -> None:
    ctx = context(bench, tiny_data.traffic(10))
    left, screen = screened(ctx)
    assert (len(left), screen.counts.total(), ctx.notes) == (10, 0, [])


def test_an_erasure_from_the_lineages_own_log_reaches_data_that_lies_elsewhere(bench: Workbench) -> None:
    leave(bench, "out/luna/traffic/erasures", "u1")
    left, screen = screened(context(bench, [row(1, "hi", "ho"), row(2, "hi", "ho")]))
    assert ([r.user for r in left], screen.counts["dropped-erased"]) == (["u2"], 1)


def test_every_process_and_attempt_compares_with_the_same(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(1, "hi", "ho", retain_until="2999-01-01T00:00:00Z"), row(2, "hi", "ho"), row(3, "hi", "ho")]
    ctx = context(bench, rows)
    assert len(screened(ctx)[0]) == 3
    moment = Moment.model_validate_json((ctx.checkpoints() / MOMENT_FILE).read_bytes())
    leave(bench, "data/erasures", "u2")
    assert len(screened(ctx)[0]) == 3, "it was looked at once"
    later = moment.model_copy(update={"now": moment.now.replace(year=3000), "erasures": {"u3": moment.now}})
    (ctx.checkpoints() / MOMENT_FILE).write_text(later.model_dump_json(), encoding="utf-8")
    monkeypatch.setenv("RANK", "1")
    assert [r.user for r in screened(ctx)[0]] == ["u2"]


def test_a_process_waits_for_the_first_one(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("flywheel_trainer.data.screening._WAIT_SECONDS", 0.3)
    with pytest.raises(StageError, match="the first process did not leave"):
        screened(context(bench, [row(1, "hi", "ho")]))


def test_a_conversation_in_a_log_goes_as_a_whole(bench: Workbench) -> None:
    """Otherwise the turn before the identifier would look like the last one: as if the user had left there."""
    said = ["hi", "ho", "and", "so", f"I am {MAIL}", "I see"]
    turns = [row(1, *said[: 2 * n], time=f"2026-06-01T00:0{n}:00Z") for n in (1, 2, 3)]
    ctx = context(bench, [*turns, row(2, "hi", "ho")])
    source, screen = ctx.input(Role.SFT_DATA), Screen(ctx)
    assert [r.user for r in screen(read_traffic(source.path), source, whole=True)] == ["u2"]
    assert screen.counts["dropped-privacy"] == 3
    assert len(screened(ctx)[0]) == 3, "rows that a person gave are looked at one by one"


def test_what_is_not_trained_on_is_not_looked_at(bench: Workbench) -> None:
    ctx = context(bench, [row(1, "hi", MAIL)])
    unused = replace(ctx.input(Role.SFT_DATA), spec=ctx.spec.inputs[0].model_copy(update={"weight": 0.0}))
    assert len(Screen(ctx)(read_traffic(unused.path), unused)) == 1


def test_filters_that_are_off_drop_nothing(bench: Workbench) -> None:
    rows = [row(1, "hi", MAIL), row(2, "hi", "ho", consent={"training": False})]
    left, screen = screened(context(bench, rows, privacy={"enabled": False}, requireConsent=False))
    assert (len(left), "dropped-privacy" in screen.counts) == (2, False)


@pytest.mark.parametrize("place", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("mode", ["Drop", "Redact"])
def test_every_part_of_a_pair_is_looked_at(bench: Workbench, place: str, mode: str) -> None:
    pairs = tiny_data.preferences(2)
    pairs[0][place][-1]["content"] = f"My friend is {MAIL}, you know."
    ctx = context(bench, pairs, privacy={"mode": mode})
    source = ctx.input(Role.SFT_DATA)
    screen = Screen(ctx)
    left: list[Preference] = screen(read_preferences(source.path), source)
    assert MAIL not in str([r.to_json() for r in left])
    if mode == "Drop":
        assert [r.to_json() for r in left] == pairs[1:]
    else:
        assert getattr(left[0], place)[-1]["content"] == "My friend is <EMAIL_ADDRESS>, you know."
        assert screen.counts["redacted-privacy"] == 1


def test_a_source_of_which_nothing_may_be_used_stops_the_stage(bench: Workbench) -> None:
    ctx = context(bench, [row(n, "hi", MAIL) for n in range(3)])
    with pytest.raises(DataError, match=r"none of the 3 rows may be trained on: 3 held personal identifiers; bring"):
        screened(ctx)


def test_an_unknown_entity_is_named(bench: Workbench) -> None:
    with pytest.raises(SpecError, match=r"privacy\.entities: unknown SHOE_SIZE"):
        screened(context(bench, [row(1, "hi", "ho")], privacy={"entities": ["SHOE_SIZE"]}))


def test_a_stage_behind_curation_has_no_screen(bench: Workbench) -> None:
    spec = CurateSpec.model_validate({"owner": "g", "group": "luna", "artifacts": "pvc://lab/out"})
    with pytest.raises(TypeError, match="curate reads only"):
        Screen(StageContext(spec, Store(bench.root)))


@pytest.mark.training
@pytest.mark.parametrize("stage", ["reward-model", "sft", "dpo"])
def test_the_stages_ask_before_they_train(model_bench: Workbench, stage: str) -> None:
    kind = "sft-data" if stage == "sft" else "preferences"
    rows = (tiny_data.traffic if stage == "sft" else tiny_data.preferences)(40)
    for bad in rows[:5]:
        bad["consent"] = {"training": False}
    uri = model_bench.data(f"{stage}-own", rows)
    inputs = [model_bench.input("policy", "pvc://lab/models/one"), model_bench.input(kind, uri)]
    short = {"batchSize": 8, "maxLength": 96, "maxSteps": 1, "saveSteps": 1}
    code, result = model_bench.run(stage, inputs, **short)
    assert (code, result.reason) == (0, Reason.SUCCEEDED), result.message
    assert model_bench.manifest(result).counts["dropped-consent"] == 5
    assert "5 of 40 rows are left out: 5 must not be trained on" in result.message


@pytest.mark.training
def test_a_models_signal_is_not_learned_from_rows_that_may_not_be_used(model_bench: Workbench) -> None:
    rows = [{**r, "signals": {"liked": n % 2 == 0}} for n, r in enumerate(tiny_data.traffic(60))]
    for bad in rows[:4]:
        bad["consent"] = {"training": False}
    inputs = [
        model_bench.input("policy", "pvc://lab/models/one"),
        model_bench.input("traffic", model_bench.data("signals", rows)),
    ]
    result = model_bench.succeed(
        "reward-model",
        inputs,
        type="UserSignal",
        signal={"name": "liked"},
        batchSize=8,
        maxLength=96,
        maxSteps=1,
        saveSteps=1,
    )
    assert model_bench.manifest(result).counts["dropped-consent"] == 4
