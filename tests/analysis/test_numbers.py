"""The CLI's numbers against an independent computation, over messy traffic in every kind of file."""

import datetime as dt
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from tea_tasting.aggr import Aggregates

from flywheel_analysis import lifts
from flywheel_analysis.lifts import Sufficient
from flywheel_analysis.metrics import BUILTIN
from tests.analysis import reference, traffic

SCHEMAS = {
    "zone": pa.timestamp("us", "UTC"),
    "other zone": pa.timestamp("ms", "Asia/Tokyo"),
    "no zone": pa.timestamp("ms"),
    "nanoseconds": pa.timestamp("ns"),
}


def check(report: dict, table: dict) -> None:
    found = traffic.by_name(report)
    for name in [*reference.RATIOS, *(n + "Cuped" for n in reference.COVARIATE)]:
        metric, wanted = found[name], reference.estimate(table, name)
        assert metric["status"] == "Measured", (name, metric["message"])
        near = lambda value: pytest.approx(value, rel=1e-8, abs=1e-12)  # noqa: E731
        assert metric["control"]["mean"] == near(wanted["control"]), name
        assert metric["treatment"]["mean"] == near(wanted["treatment"]), name
        for ours, theirs in [("lift", "lift"), ("low", "low"), ("high", "high"), ("pValue", "p")]:
            assert metric[ours] == near(wanted[theirs]), (name, ours)
        assert metric["logStandardError"] == near(wanted["error"]), name
        assert metric["differenceUpper"] >= wanted["difference"] - 1e-12, name
        if not name.endswith(("PerMessage", "PerRequest")):
            assert metric["differenceUpper"] == near(wanted["difference"]), name
        # All of one piece: the interval is what the log standard error says, and p < 0.05 where it leaves out 0.
        assert math.log1p(metric["high"]) - math.log1p(metric["lift"]) == pytest.approx(
            stats.norm.ppf(0.975) * metric["logStandardError"]
        )
        assert (metric["pValue"] < 0.05) == (not metric["low"] < 0 < metric["high"])
        for arm in ("control", "treatment"):
            assert metric[arm]["n"] == len(table[arm]["messages"])
    for arm in ("control", "treatment"):
        assert report["users"][arm] == len(table[arm]["messages"])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout", [*SCHEMAS, "lines", "folders"])
def test_against_an_independent_computation(tmp_path: Path, seed: int, layout: str) -> None:
    exposures, events, covariates = traffic.make(seed)
    places = []
    for name, rows in (("exposures", exposures), ("events", events), ("covariates", covariates)):
        if layout in ("lines", "folders"):
            file = (
                tmp_path / name / "date=2026-03-02" / "a-1.jsonl" if layout == "folders" else tmp_path / f"{name}.jsonl"
            )
            half = len(rows) // 2 if layout == "folders" else len(rows)
            place = traffic.write_lines(rows[:half], file)
            if layout == "folders":
                traffic.write_lines(rows[half:], tmp_path / name / "date=2026-03-03" / "b-1.jsonl")
                traffic.write_lines(rows, tmp_path / name / "date=2026-03-03" / "_open-1.jsonl")
                (tmp_path / name / "empty.jsonl").touch()
                place = tmp_path / name
        else:
            aware = [
                {**r, "ts": r["ts"].replace(tzinfo=None)} if layout in ("no zone", "nanoseconds") and "ts" in r else r
                for r in rows
            ]
            kinds = {key: None for row in aware for key in row}
            table = pa.Table.from_pylist(aware)
            if "ts" in kinds:
                at = table.schema.get_field_index("ts")
                table = table.set_column(at, "ts", table["ts"].cast(SCHEMAS[layout]))
            place = traffic.write_parquet(table.to_pylist(), tmp_path / f"{name}.parquet", table.schema)
        places += [f"--{name}", place]
    report = traffic.run(*places, *traffic.WINDOW)
    check(report, reference.per_user(exposures, events, covariates, traffic.T1))


def test_short_days_are_counted_from_the_start(tmp_path: Path) -> None:
    exposures, events, covariates = traffic.make(9)

    # A fortnight in an hour: days of five minutes.
    def squeeze(rows: list) -> list:
        return [{**r, "ts": traffic.T0 + (r["ts"] - traffic.T0) / 168} if "ts" in r else r for r in rows]

    exposures, events = squeeze(exposures), squeeze(events)
    end = traffic.T0 + dt.timedelta(hours=1)
    report = traffic.run(
        "--exposures", traffic.write_lines(exposures, tmp_path / "x.jsonl"),
        "--events", traffic.write_parquet(events, tmp_path / "e.parquet"),
        "--covariates", traffic.write_parquet(covariates, tmp_path / "c.parquet"),
        "--start", "2026-03-02T00:00:00Z", "--end", "2026-03-02T01:00:00+00:00", "--day-length", "5m",
    )  # fmt: skip
    assert report["window"] == {
        "start": "2026-03-02T00:00:00Z", "end": "2026-03-02T01:00:00Z", "dayLengthSeconds": 300, "days": 12,
    }  # fmt: skip
    check(report, reference.per_user(exposures, events, covariates, end, dt.timedelta(minutes=5)))


def test_more_days_than_a_mask_holds(tmp_path: Path) -> None:
    exposures, events, covariates = traffic.make(11)
    end = traffic.T0 + dt.timedelta(days=7)
    report = traffic.run(
        "--exposures", traffic.write_lines(exposures, tmp_path / "x.jsonl"),
        "--events", traffic.write_lines(events, tmp_path / "e.jsonl"),
        "--covariates", traffic.write_lines(covariates, tmp_path / "c.jsonl"),
        *traffic.WINDOW, "--day-length", "1h",
    )  # fmt: skip
    assert report["window"]["days"] == 168
    check(report, reference.per_user(exposures, events, covariates, end, dt.timedelta(hours=1)))


def test_the_intervals_hold_what_they_promise() -> None:
    """Of A/A samples about 95 % of the intervals hold 0, also of clustered ratios and with CUPED."""
    rng = np.random.default_rng(1)
    metrics = {m.name: m for m in BUILTIN if m.name.startswith(("messagesPerUser", "messagesPerActiveDay"))}
    held = dict.fromkeys(metrics, 0)
    rounds, n = 400, 400

    def arm() -> Sufficient:
        taste = rng.gamma(2, 1, n)
        days = rng.binomial(7, 1 - np.exp(-taste))
        columns = {
            "messages": rng.poisson(days * taste * 2),
            "active_days": days,
            "pre_messages": rng.poisson(taste * 9),
        }
        columns["messages_capped"] = np.minimum(columns["messages"], 100)
        names = sorted(columns)
        matrix = np.cov([columns[c] for c in names])
        return Sufficient(
            n, {c: float(columns[c].sum()) for c in names},
            Aggregates(
                n, {c: float(columns[c].mean()) for c in names},
                {c: float(matrix[i, i]) for i, c in enumerate(names)},
                {(a, b): float(matrix[i, j]) for i, a in enumerate(names) for j, b in enumerate(names) if a < b},
            ),
        )  # fmt: skip

    for _ in range(rounds):
        control, treatment = arm(), arm()
        for name, metric in metrics.items():
            result = lifts.measure(metric, control, treatment)
            assert result.low is not None
            assert result.high is not None
            held[name] += result.low <= 0 <= result.high
    for name, count in held.items():
        assert stats.binomtest(count, rounds, 0.95).pvalue > 0.001, (name, count)
