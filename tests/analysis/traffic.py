"""Made-up traffic with everything that real traffic has, and files and runs made of it."""

import contextlib
import datetime as dt
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_analysis.__main__ import main

Row = dict[str, Any]
T0 = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
T1 = dt.datetime(2026, 3, 9, tzinfo=dt.UTC)
WINDOW = ("--start", "2026-03-02T00:00:00Z", "--end", "2026-03-09T00:00:00Z")
TYPES = ("message", "message", "message", "message", "thumbs_up", "error", "safety_violation", "false_refusal")


def make(seed: int, users: int = 300, events: int = 4000) -> tuple[list[Row], list[Row], list[Row]]:
    """Exposures, events, covariates: users in both arms, out of the window, without events, twice exposed; events
    without a user, of nobody, before the exposure, twice, without a latency."""
    rng = np.random.default_rng(seed)
    exposures: list[Row] = []
    for i in range(users):
        arm = ("control", "treatment")[int(rng.integers(2))]
        for _ in range(int(rng.integers(1, 4))):
            other = ("control", "treatment")[int(rng.integers(2))] if rng.random() < 0.02 else arm
            at = T0 + dt.timedelta(seconds=float(rng.uniform(-1.5, 8)) * 86400)
            exposures.append({"user_id": f"user-{i}", "arm": other, "ts": _cut(at)})
    rows: list[Row] = []
    for i in range(events):
        user = None if rng.random() < 0.02 else f"user-{int(rng.pareto(1.1) * users / 6) % (users + 20)}"
        kind = TYPES[int(rng.integers(len(TYPES)))]
        at = T0 + dt.timedelta(seconds=float(rng.uniform(-2, 9)) * 86400)
        value = round(float(rng.lognormal(6, 0.5)), 3) if rng.random() < 0.95 else None
        identity = f"event-{i}" if rng.random() < 0.9 else None
        row = {"user_id": user, "ts": _cut(at), "type": kind, "value": value, "event_id": identity}
        rows += [row, dict(row)] if identity is not None and rng.random() < 0.05 else [row]
    covariates = [
        {
            "user_id": f"user-{i}",
            "pre_messages": int(rng.poisson(8)) if rng.random() < 0.9 else None,
            "pre_active_days": int(rng.integers(0, 8)),
        }
        for i in range(users)
        if rng.random() < 0.8
    ]
    rng.shuffle(rows)
    return exposures, rows, covariates


def _cut(time: dt.datetime) -> dt.datetime:
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def write_parquet(rows: Sequence[Row], file: Path, schema: pa.Schema | None = None) -> Path:
    """Rows as a Parquet file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)
    return file


def write_lines(rows: Sequence[Row], file: Path) -> Path:
    """Rows as JSON lines; fields that are None are left out, as a writer of logs does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({k: _plain(v) for k, v in row.items() if v is not None}) for row in rows]
    file.write_text("".join(line + "\n" for line in lines))
    return file


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, dt.datetime) else value


def run(*words: str | Path) -> dict[str, Any]:
    """The report of a run that must succeed."""
    code, out = attempt(*words)
    assert code == 0, out
    found: dict[str, Any] = json.loads(out)
    return found


def attempt(*words: str | Path) -> tuple[int, str]:
    """Exit code and what was printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([str(word) for word in words])
    return code, out.getvalue()


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics of a report."""
    return {metric["name"]: metric for metric in report["metrics"]}
