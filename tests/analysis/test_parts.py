"""Bounds against scipy's distributions, buckets, the schema, and tables with the fewest columns."""

import json
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flywheel_analysis import bounds, schema, sources
from flywheel_analysis.bounds import Rate
from flywheel_analysis.engine import Engine
from flywheel_analysis.errors import DataError, SourceUnavailableError, SpecError
from flywheel_analysis.metrics import Counting
from flywheel_analysis.stores import Store
from tests.analysis import traffic
from tests.analysis.test_rules import both, metric
from tests.analysis.traffic import WINDOW

counts = st.integers(0, 500)
SCHEMA = Path(__file__).parents[2] / "docs/schemas/analysis-report.json"


@given(counts, st.integers(1, 10_000))
def test_poisson_bounds_are_garwoods(events: int, messages: int) -> None:
    rate = Rate(events, messages)
    assert bounds.upper(rate, Counting.POISSON) == pytest.approx(stats.chi2.ppf(0.975, 2 * events + 2) / 2 / messages)
    low = stats.chi2.ppf(0.025, 2 * events) / 2 / messages if events else 0
    assert bounds.lower(rate, Counting.POISSON) == pytest.approx(low)


@given(counts, counts)
def test_binomial_bounds_are_clopper_and_pearsons(events: int, others: int) -> None:
    total = events + others
    if not total:
        return
    exact = stats.binomtest(events, total).proportion_ci(0.95, "exact")
    assert bounds.upper(Rate(events, total), Counting.BINOMIAL) == pytest.approx(exact.high, abs=1e-12)
    assert bounds.lower(Rate(events, total), Counting.BINOMIAL) == pytest.approx(exact.low, abs=1e-12)


@given(counts, counts, st.integers(1, 9999), st.integers(1, 9999))
def test_harm_is_the_conditional_binomial(treatment: int, control: int, some: int, others: int) -> None:
    ours = bounds.harm_p_value(Rate(treatment, some), Rate(control, others))
    if treatment + control:
        share = some / (some + others)
        wanted = stats.binomtest(treatment, treatment + control, share, alternative="greater").pvalue
    else:
        wanted = 1.0
    assert ours == pytest.approx(wanted, rel=1e-7, abs=1e-300)


@given(st.floats(-30, 30))
def test_p_values_are_normal(z: float) -> None:
    assert bounds.two_sided_p_value(z) == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)


class Bucket(MemoryFileSystem):
    """An object store in memory that DuckDB and the analysis take for S3."""

    protocol = "s3"
    store: dict = {}  # noqa: RUF012 -- as its base declares it
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("s3://"))


def bucket(scheme: str) -> fsspec.AbstractFileSystem:
    assert scheme == "s3"
    return Bucket()


def test_a_bucket_is_read_and_a_report_left_there(tmp_path: Path) -> None:
    exposures, events = both(4)
    system = bucket("s3")
    for name, rows in (("exposures", exposures), ("events", events)):
        for i in range(2):
            file = traffic.write_lines(rows[i::2], tmp_path / f"{i}.jsonl")
            system.pipe_file(f"logs/luna/{name}/date=2026-03-02/gw-{i}.jsonl", file.read_bytes())
        system.pipe_file(f"logs/luna/{name}/date=2026-03-02/_gw-2.jsonl", b"{half")
    store, engine = Store(filesystem=bucket), Engine(temporary=str(tmp_path))
    source = sources.open_source(sources.Places(log="s3://logs/luna"), engine, store)
    assert engine.rows(source.exposures.aggregate(n=source.exposures.count())) == [{"n": 8}]
    assert engine.rows(source.events.aggregate(n=source.events.count())) == [{"n": 20}]
    assert store.find("s3://logs/nothing").missing
    digest = store.write("s3://logs/report.json", b"{}")
    assert digest.startswith("sha256:")
    assert system.cat_file("logs/report.json") == b"{}"
    engine.close()


def test_a_store_that_does_not_answer_may_be_tried_again() -> None:
    class Away(MemoryFileSystem):
        def find(self, *_: object, **__: object) -> None:
            raise ConnectionError("no route")

    with pytest.raises(SourceUnavailableError, match="no route"):
        Store(filesystem=lambda _: Away()).find("s3://logs/luna")


def test_a_missing_driver_is_named() -> None:
    def none(_: str) -> None:
        raise ImportError("s3fs")

    with pytest.raises(SpecError, match="install"):
        Store(filesystem=none).find("s3://logs/luna")


def test_a_claim_is_not_left_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    (tmp_path / "claim" / "out").symlink_to("/etc")
    with pytest.raises(SpecError, match="leaves its claim"):
        Store(tmp_path).find("pvc://claim/out/passwd")


def test_files_of_two_kinds_are_told_apart(tmp_path: Path) -> None:
    traffic.write_parquet(both(1)[0], tmp_path / "a.parquet")
    traffic.write_lines(both(1)[0], tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="files of one kind"):
        Store().find(str(tmp_path))
    (tmp_path / "b.jsonl").rename(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"notes\.txt is neither"):
        Store().find(str(tmp_path))
    (tmp_path / "a.parquet").rename(tmp_path / "a")
    assert Store().find(str(tmp_path / "a")).parquet == (str(tmp_path / "a"),)


def test_the_fewest_columns(tmp_path: Path) -> None:
    exposures, events = both(4)
    events = [{k: row[k] for k in ("user_id", "ts", "type")} for row in events]
    covariates = [{"user_id": row["user_id"], "pre_messages": i} for i, row in enumerate(exposures)]
    report = traffic.run(
        "--exposures", traffic.write_parquet(exposures, tmp_path / "x.parquet"),
        "--events", traffic.write_parquet(events, tmp_path / "e.parquet"),
        "--covariates", traffic.write_parquet(covariates, tmp_path / "c.parquet"), *WINDOW,
    )  # fmt: skip
    assert metric(report, "latencyMean")["message"] == "the control arm has nothing to divide by"
    assert metric(report, "messagesPerUserCuped")["status"] == "Measured"
    assert report["users"]["withoutCovariates"] == 0


def test_empty_files_hold_no_rows(tmp_path: Path) -> None:
    exposures, _ = both(4)
    (tmp_path / "e.jsonl").touch()
    report = traffic.run(
        "--exposures",
        traffic.write_parquet(exposures, tmp_path / "x.parquet"),
        "--events",
        tmp_path / "e.jsonl",
        *WINDOW,
    )
    assert metric(report, "activeShare")["control"]["mean"] == 0
    assert any("holds no rows" in note for note in report["notes"])


def test_the_schema_is_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert schema.main([str(SCHEMA), "--check"]) == 0
    copy = tmp_path / "schemas" / "report.json"
    assert schema.main([str(copy), "--check"]) == 1
    assert "make regen" in capsys.readouterr().err
    assert schema.main([str(copy)]) == 0
    assert json.loads(copy.read_text())["title"] == "AnalysisReport"
