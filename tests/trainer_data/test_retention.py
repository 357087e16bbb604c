"""Rows whose time is over, erased users, and what their rows touched."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_contract.base import digest_of
from flywheel_contract.manifest import Manifest
from flywheel_contract.online import ErasureReceipt
from flywheel_contract.stage_result import Reason
from flywheel_contract.stage_spec import CurateSpec, Input
from flywheel_contract.stages import Role, Stage
from flywheel_trainer import touched
from flywheel_trainer.__main__ import main
from flywheel_trainer.artifacts import Store, digest_folder
from flywheel_trainer.context import StageContext
from flywheel_trainer.data.retention import erased, is_over, latest, receipts
from flywheel_trainer.data.rows import Conversation, read_traffic
from tests.trainer_data.test_curate import NO_FILTERS, left, many, row
from tests.trainer_data.workbench import Workbench

Rows = list[dict[str, Any]]
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def said(time: str | None = None, **more: Any) -> Conversation:  # noqa: ANN401 -- JSON
    return Conversation.model_validate({**row(1, "hi", "ho"), "time": time, **more})


@pytest.mark.parametrize(
    ("time", "mark", "days", "over"),
    [
        (None, None, None, False),
        (None, None, 30, True),
        ("2026-05-20T00:00:00Z", None, 30, False),
        ("2026-05-20", None, 30, False),
        ("2026-04-20T00:00:00Z", None, 30, True),
        (None, "2026-06-01T00:00:00Z", None, True),
        (None, "2026-06-01T02:00:00+02:00", None, True),
        ("2026-01-01T00:00:00Z", "2026-06-01T00:00:01Z", None, False),
        ("2026-01-01T00:00:00Z", "2026-07-01T00:00:00Z", 30, True),
    ],
)
def test_a_row_is_over_by_its_mark_or_by_its_age(
    time: str | None, mark: str | None, days: int | None, over: bool
) -> None:
    assert is_over(said(time, retain_until=mark), NOW, days) is over


def receipt(user: str, time: datetime = NOW) -> ErasureReceipt:
    return ErasureReceipt(user=user, time=time, rows={}, files=[])


def test_what_was_said_before_the_last_erasure_goes_and_what_comes_later_is_new() -> None:
    times = latest([receipt("u1", NOW - timedelta(days=9)), receipt("u1"), receipt("u1", NOW - timedelta(days=5))])
    assert times == {"u1": NOW}
    assert erased(said("2026-05-31T23:00:00Z"), times)
    assert erased(said(None), times)
    assert not erased(said("2026-06-02T00:00:00Z"), times)
    assert not erased(said(None, user="u2"), times)


def context(store: Store) -> StageContext:
    spec = CurateSpec.model_validate({"owner": "luna-1", "group": "luna", "artifacts": "pvc://lab/runs"})
    return StageContext(spec, store)


def leave(bench: Workbench, folder: str, *users: str) -> None:
    (bench.claim / folder).mkdir(parents=True)
    for user in users:
        text = json.dumps(receipt(user).to_json())
        (bench.claim / folder / f"20260601-{user}.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "erasures"),
    [
        ("luna/traffic/turns", "luna/traffic/erasures"),
        ("luna/traffic/turns/date=2026-05-01", "luna/traffic/erasures"),
        ("luna/traffic/turns/date=2026-05-01/a.jsonl", "luna/traffic/erasures"),
        ("chats", "erasures"),
        ("copies/chats.jsonl", "copies/erasures"),
    ],
)
def test_receipts_are_found_where_the_gateway_leaves_them(bench: Workbench, source: str, erasures: str) -> None:
    ctx = context(Store(claims_root=bench.root))
    assert receipts(ctx, [f"pvc://lab/{source}", "pvc://lab", "hf://owner/data/x"]) == []
    leave(bench, erasures, "u1", "u2")
    found = receipts(ctx, [f"pvc://lab/{source}", f"pvc://lab/{source}"])
    assert sorted(r.user for r in found) == ["u1", "u2"]


def test_receipts_in_a_bucket(bench: Workbench) -> None:
    memory = fsspec.filesystem("memory")
    store = Store(bench.root, bench.root / "cache", lambda _: memory)
    memory.pipe_file("/traffic-bucket/erasures/1.json", json.dumps(receipt("u1").to_json()).encode())
    assert [r.user for r in receipts(context(store), ["s3://traffic-bucket/turns"])] == ["u1"]


def test_receipts_of_the_lineages_own_log_count_for_every_source(bench: Workbench) -> None:
    leave(bench, "runs/luna/traffic/erasures", "u1")
    assert [r.user for r in receipts(context(Store(claims_root=bench.root)), ["pvc://lab/chats"])] == ["u1"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"user": null}', '{"user": "u1", "time": "soon"}', "\x00" * 100])
def test_a_receipt_that_cannot_be_read_stops_the_stage(bench: Workbench, text: str) -> None:
    leave(bench, "data/erasures")
    (bench.claim / "data/erasures/broken.json").write_text(text, encoding="utf-8")
    code, result = bench.run("curate", [bench.input("traffic", bench.data("traffic", many(20)))])
    assert (code, result.reason) == (65, Reason.INVALID_DATA)
    assert "broken.json is no receipt of an erasure, so it is not known whose rows must go;" in result.message


def test_curation_drops_and_counts_what_must_be_gone(bench: Workbench) -> None:
    rows = many(40)
    rows[0] |= {"retain_until": "2020-01-01T00:00:00Z"}
    rows[1] |= {"retainUntil": "2020-01-01T00:00:00+01:00"}
    rows[2] |= {"retain_until": "2999-01-01T00:00:00Z"}
    leave(bench, "data/erasures", "u3", "u4", "nobody-here")
    code, result = bench.run("curate", [bench.input("traffic", bench.data("traffic", rows))], **NO_FILTERS)
    assert code == 0, result.message
    counts = bench.manifest(result).counts
    assert (counts["droppedRetention"], counts["droppedErased"], counts["erasureReceipts"]) == (2, 2, 3)
    assert {name.value: m.value for name, m in result.metrics.items() if m.value == 2} == {
        "droppedRetention": 2,
        "droppedErased": 2,
    }
    kept = {r.user: r for name in ("prompts", "evaluation") for r in left(bench, result, name)}
    assert not {"u0", "u1", "u3", "u4"} & set(kept)
    assert kept["u2"].retain_until == datetime(2999, 1, 1, tzinfo=UTC)


def test_an_age_limit_says_so_when_nothing_is_left(bench: Workbench) -> None:
    code, result = bench.run(
        "curate", [bench.input("traffic", bench.data("traffic", many(3)))], retention={"maxAgeDays": 30}
    )
    assert (code, result.message) == (
        65, "no conversation of 3 is left: 3 were past the time that they may be kept",
    )  # fmt: skip


@pytest.mark.parametrize("mark", ["soon", "2026-05-01T00:00:00", {"a": 1}, True])
def test_a_mark_that_cannot_be_read_names_its_line(bench: Workbench, mark: object) -> None:
    rows = many(3)
    rows[1]["retain_until"] = mark
    code, result = bench.run("curate", [bench.input("traffic", bench.data("traffic", rows))])
    assert code == 65
    assert "data.jsonl, line 2: retain_until" in result.message


class Shelf:
    """Manifests of a few stages below one root, as the stages leave them."""

    def __init__(self, bench: Workbench) -> None:
        self.bench, self.store = bench, Store(claims_root=bench.root)

    def data(self, path: str, rows: list[dict[str, Any]]) -> Input:
        uri = self.bench.data(path, rows)
        role = Role.SFT_DATA
        return Input(name="own", role=role, kind="Data", uri=uri, digest=digest_folder(self.bench.path(uri)))

    def stage(self, owner: str, stage: Stage, inputs: list[Input], **outputs: Rows | str) -> list[Input]:
        """`outputs` are rows, or the text of a model. Answers them as inputs of later stages."""
        base = f"artifacts/luna/{owner}/{stage.value}/0123"
        made = []
        for name, content in outputs.items():
            folder = self.bench.claim / base / name
            folder.mkdir(parents=True)
            text = content if isinstance(content, str) else "".join(json.dumps(r) + "\n" for r in content)
            (folder / ("model.txt" if isinstance(content, str) else "data.jsonl")).write_text(text, encoding="utf-8")
            model = isinstance(content, str)
            made.append(
                Input(
                    name=name,
                    role=Role.POLICY if model else Role.PROMPTS,
                    kind="Model" if model else "Data",
                    uri=f"pvc://lab/{base}/{name}",
                    digest=digest_folder(folder),
                )
            )
        manifest = Manifest(
            stage=stage, owner=owner, group="luna", inputs_digest=digest_of([owner, stage.value]), inputs=inputs,
            seed=0, outputs={i.name: str(i.digest) for i in made},
        )  # fmt: skip
        (self.bench.claim / base / "manifest.json").write_text(manifest.model_dump_json(by_alias=True), "utf-8")
        return made

    def touched(self, user: str) -> dict[str, str]:
        answer = touched.touched(self.store, "pvc://lab/artifacts", user)
        return {t.uri.removeprefix("pvc://lab/artifacts/luna/").replace("/0123", ""): t.because for t in answer.touched}


@pytest.fixture
def shelf(bench: Workbench) -> Shelf:
    """gen-1 learned from ann and bob and is judged by cat; gen-2 starts from its model with other people's rows."""
    found = Shelf(bench)
    ann, bob, cat, dan = ({"user": name, "conversation": name} for name in ("ann", "bob", "cat", "dan"))
    prompts, judging = found.stage("gen-1", Stage.CURATE, [], prompts=[ann, bob], evaluation=[cat])
    accepted, pairs = found.stage("gen-1", Stage.REJECTION_SAMPLE, [prompts], accepted=[ann], pairs=[bob])
    (sft,) = found.stage("gen-1", Stage.SFT, [accepted], model="sft 1")
    (dpo,) = found.stage("gen-1", Stage.DPO, [sft, pairs], model="dpo 1")
    found.stage("gen-1", Stage.EVALUATE, [judging, dpo], report="report 1")
    (own,) = [found.data("own", [dan])]
    found.stage("gen-2", Stage.SFT, [dpo, own], model="sft 2")
    found.stage("gen-0", Stage.SFT, [], model="sft 0")
    return found


def test_rows_are_counted_and_models_follow_by_digest(shelf: Shelf) -> None:
    ann = shelf.touched("ann")
    assert list(ann) == [
        "gen-1/curate/prompts", "gen-1/dpo/model", "gen-1/evaluate/report", "gen-1/rejection-sample/accepted",
        "gen-1/sft/model", "gen-2/sft/model",
    ]  # fmt: skip
    assert ann["gen-1/curate/prompts"].endswith("gen-1/curate/0123/prompts holds 1 rows of the user")
    assert ann["gen-2/sft/model"] == "made from model, pvc://lab/artifacts/luna/gen-1/dpo/0123/model"
    assert list(shelf.touched("bob")) == [
        "gen-1/curate/prompts", "gen-1/dpo/model", "gen-1/evaluate/report", "gen-1/rejection-sample/pairs",
        "gen-2/sft/model",
    ]  # fmt: skip
    assert list(shelf.touched("cat")) == ["gen-1/curate/evaluation", "gen-1/evaluate/report"]
    assert list(shelf.touched("dan")) == ["gen-2/sft/model"]
    assert shelf.touched("an") == {}


def test_what_a_touched_policy_wrote_is_touched(shelf: Shelf, bench: Workbench) -> None:
    model = Input(
        name="policy", role=Role.POLICY, kind="Model", uri="pvc://lab/artifacts/luna/gen-1/sft/0123/model",
        digest=digest_folder(bench.claim / "artifacts/luna/gen-1/sft/0123/model"),
    )  # fmt: skip
    shelf.stage("gen-3", Stage.REJECTION_SAMPLE, [model], accepted=[{"user": "eve"}], pairs=[])
    assert "gen-3/rejection-sample/accepted" in shelf.touched("ann")


def test_the_command_prints_json_and_says_what_nobody_can_tell(
    shelf: Shelf, bench: Workbench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYWHEEL_CLAIMS_ROOT", str(bench.root))
    ask = ["touched", "--artifacts", "pvc://lab/artifacts", "--user"]
    assert main([*ask, "dan"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["user"], answer["stages"], answer["unknown"]) == ("dan", 7, [])
    assert [(t["owner"], t["stage"]) for t in answer["touched"]] == [("gen-2", "sft")]
    (bench.claim / "data/own/data.jsonl").write_text('{"user": "somebody else"}\n')
    (bench.claim / "artifacts/luna/gen-1/rejection-sample/0123/pairs/data.jsonl").unlink()
    (bench.claim / "artifacts/luna/gen-0/sft/0123/manifest.json").write_text("{")
    assert main([*ask, "dan"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["touched"] == []
    assert [u["uri"].removeprefix("pvc://lab/") for u in answer["unknown"]] == [
        "artifacts/luna/gen-0/sft/0123", "artifacts/luna/gen-1/rejection-sample/0123/pairs", "data/own",
    ]  # fmt: skip


def test_the_command_refuses_what_holds_no_artefacts(
    bench: Workbench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYWHEEL_CLAIMS_ROOT", str(bench.root))
    assert main(["touched", "--user", "u", "--artifacts", "pvc://lab/nothing"]) == 65
    assert main(["touched", "--user", "u", "--artifacts", "pvc://away/x"]) == 78
    assert main(["touched", "--user", "u", "--artifacts", "pvc://lab/../x"]) == 77
    said_last = capsys.readouterr().err.splitlines()
    assert said_last[0] == "flywheel-trainer touched: there is no manifest below pvc://lab/nothing"


def test_manifests_in_a_bucket_are_found(bench: Workbench, shelf: Shelf) -> None:
    memory = fsspec.filesystem("memory")
    for file in (bench.claim / "artifacts").rglob("*.*"):
        memory.pipe_file(f"/wheel/runs/{file.relative_to(bench.claim / 'artifacts')}", file.read_bytes())
    store = Store(bench.root, bench.root / "cache", lambda _: memory)
    answer = touched.touched(store, "s3://wheel/runs", "ann")
    assert answer.stages == 7
    assert "s3://wheel/runs/luna/gen-2/sft/0123/model" in {t.uri for t in answer.touched}


def test_rows_of_every_format_are_counted(bench: Workbench) -> None:
    folder = bench.claim / "mixed"
    folder.mkdir()
    pq.write_table(pa.table({"user": ["ann", "bob", "ann"], "x": [1, 2, 3]}), folder / "a.parquet")
    pq.write_table(pa.table({"x": [1]}), folder / "b.parquet")
    (folder / "c.jsonl").write_text('{"user": "ann", "x": "bob"}\n\n["ann"]\n{"x": "ann"}\n')
    assert touched.count_rows(folder, "ann") == 3


def test_marks_and_ids_survive_a_stage_that_reads_and_writes_rows(bench: Workbench) -> None:
    uri = bench.data("marked", [{**row(1, "hi", "ho"), "retain_until": "2999-01-01T00:00:00Z"}])
    (read,) = read_traffic(bench.path(uri))
    assert read.to_json()["retain_until"] == "2999-01-01T00:00:00Z"
