"""CPU seconds and peak memory of the analysis, beside a plain tea-tasting run and a pandas one, on the same files.

    python benchmarks/analysis_speed.py [--events 10000000] [--users 500000]
    python benchmarks/analysis_speed.py --spill        # 50 million events, DuckDB limited to 1 GB, ours alone

Each run is a process of its own, imports and reading included. All three measure the same nine metrics (ours measures
the other built-in ones too) and print the first lift, so that it can be seen that they agree. Events carry an
`event_id`; ours and the pandas run drop duplicates, the plain tea-tasting run does not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import duckdb

WINDOW: Final = ("--start", "2026-03-02T00:00:00Z", "--end", "2026-03-09T00:00:00Z")
_SPILL_EVENTS: Final = 50_000_000
_SPILL_LIMIT: Final = "1GB"

_TEA: Final = """
import ibis, sys, tea_tasting as tt
folder = sys.argv[1]
con = ibis.duckdb.connect()
users = con.sql(f'''
    WITH exposed AS (SELECT user_id, min(ts) AS began, min(arm) AS arm FROM read_parquet('{folder}/exposures.parquet')
                     WHERE ts >= '2026-03-02' AND ts < '2026-03-09' GROUP BY 1 HAVING min(arm) = max(arm)),
    sums AS (SELECT user_id, count(DISTINCT e.ts::DATE) FILTER (type = 'message') AS days,
                    count(*) FILTER (type = 'message') AS messages, count(*) FILTER (type = 'error') AS errors,
                    count(*) FILTER (type = 'safety_violation') AS violations,
                    count(*) FILTER (type = 'false_refusal') AS refusals,
                    sum(value) FILTER (type = 'message') AS latency
             FROM read_parquet('{folder}/events.parquet') e JOIN exposed USING (user_id)
             WHERE e.ts >= began AND e.ts < '2026-03-09' GROUP BY 1)
    SELECT arm, coalesce(days, 0) AS days, coalesce(messages, 0) AS messages,
           (coalesce(messages, 0) > 0)::INT AS active,
           coalesce(violations, 0) AS violations, coalesce(refusals, 0) AS refusals, coalesce(errors, 0) AS errors,
           coalesce(messages + errors, 0) AS requests, coalesce(latency, 0) AS latency,
           coalesce(pre_messages, 0) AS pre_messages, coalesce(pre_active_days, 0) AS pre_active_days
    FROM exposed LEFT JOIN sums USING (user_id) LEFT JOIN read_parquet('{folder}/covariates.parquet') USING (user_id)
''')
users = con.create_table('users', users)
result = tt.Experiment(
    {
        'messages': tt.Mean('messages'), 'messages_cuped': tt.Mean('messages', 'pre_messages'),
        'days': tt.Mean('days'), 'active': tt.Mean('active'), 'depth': tt.RatioOfMeans('messages', 'days'),
        'violations': tt.RatioOfMeans('violations', 'messages'), 'refusals': tt.RatioOfMeans('refusals', 'messages'),
        'errors': tt.RatioOfMeans('errors', 'requests'), 'latency': tt.RatioOfMeans('latency', 'messages'),
    },
    'arm',
).analyze(users, control='control')
print(result['messages'].rel_effect_size)
"""

_PANDAS: Final = """
import sys, numpy as np, pandas as pd
folder = sys.argv[1]
start, end = pd.Timestamp('2026-03-02'), pd.Timestamp('2026-03-09')
x = pd.read_parquet(f'{folder}/exposures.parquet')
x = x[(x.ts >= start) & (x.ts < end)]
x = x.groupby('user_id').agg(began=('ts', 'min'), arm=('arm', 'min'), other=('arm', 'max'))
x = x[x.arm == x.other].drop(columns='other')
e = pd.read_parquet(f'{folder}/events.parquet').dropna(subset='user_id').drop_duplicates('event_id')
e = e.merge(x[['began']], left_on='user_id', right_index=True)
e = e[(e.ts >= e.began) & (e.ts < end)]
m = e[e.type == 'message']
u = x[['arm']].copy()
u['messages'] = m.groupby('user_id').size()
u['days'] = m.assign(day=m.ts.dt.date).groupby('user_id').day.nunique()
u['latency'] = m.groupby('user_id').value.sum()
for name, kind in (('violations', 'safety_violation'), ('refusals', 'false_refusal'), ('errors', 'error')):
    u[name] = e[e.type == kind].groupby('user_id').size()
c = pd.read_parquet(f'{folder}/covariates.parquet').set_index('user_id')
u = u.join(c).fillna({n: 0 for n in (*u.columns[1:], *c.columns)})
u['active'] = (u.messages > 0).astype(int)
u['requests'] = u.messages + u.errors
u['one'] = 1
def lift(top, bottom='one', covariate=None):
    theta = np.cov(u[top], u[covariate])[0, 1] / u[covariate].var() if covariate else 0.0
    found = []
    for arm in ('control', 'treatment'):
        part = u[u.arm == arm]
        ratio = part[top].sum() / part[bottom].sum()
        linear = (part[top] - ratio * part[bottom]) / part[bottom].mean()
        if covariate:
            ratio -= theta * (part[covariate].mean() - u[covariate].mean())
            linear = linear - theta * part[covariate]
        found.append((ratio, linear.var() / len(part) / ratio**2))
    error = np.sqrt(found[0][1] + found[1][1])
    log = np.log(found[1][0] / found[0][0])
    return np.expm1([log, log - 1.96 * error, log + 1.96 * error])
first = lift('messages')
lift('messages', covariate='pre_messages'); lift('days'); lift('active'); lift('messages', 'days')
lift('violations', 'messages'); lift('refusals', 'messages'); lift('errors', 'requests'); lift('latency', 'messages')
print(first[0])
"""


def generate(folder: Path, events: int, users: int) -> None:
    """Parquet files: users with 64-digit ids as the gateway writes them, a long tail of messages, no effect."""
    with duckdb.connect() as connection:
        connection.execute("SET preserve_insertion_order = false; SET enable_progress_bar = false; SELECT setseed(0.4)")
        connection.execute("CREATE MACRO name(i) AS md5('u' || i) || md5('v' || i)")
        start, days = "TIMESTAMP '2026-03-02' + to_microseconds(CAST(random() * {} * 86400e6 AS BIGINT))", (3, 7)
        tables = {
            "exposures": f"SELECT name(i) AS user_id, CASE i % 2 WHEN 0 THEN 'control' ELSE 'treatment' END AS arm, "
            f"{start.format(days[0])} AS ts FROM range({users}) t(i)",
            "events": f"SELECT CASE WHEN random() < 0.01 THEN NULL ELSE name(u) END AS user_id, "
            f"{start.format(days[1])} AS ts, CASE WHEN r < 0.002 THEN 'safety_violation' WHEN r < 0.006 THEN "
            f"'false_refusal' WHEN r < 0.012 THEN 'error' WHEN r < 0.08 THEN 'thumbs_up' ELSE 'message' END AS type, "
            f"200 + random() * 900 AS value, 'e' || i AS event_id FROM (SELECT i, random() AS r, "
            f"CAST(floor(pow(random(), 2) * {users}) AS BIGINT) AS u FROM range({events}) t(i))",
            "covariates": f"SELECT name(i) AS user_id, CAST(random() * 60 AS BIGINT) AS pre_messages, "
            f"CAST(random() * 7 AS BIGINT) AS pre_active_days FROM range({users}) t(i) WHERE random() < 0.8",
        }
        for name, query in tables.items():
            connection.execute(f"COPY ({query}) TO '{folder / name}.parquet' (FORMAT PARQUET)")


def timed(label: str, words: list[str]) -> float:
    """Runs a process, prints what it took, and answers its CPU seconds."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(words, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise SystemExit(f"{label} ended with {process.returncode}")
    lift = _lift(text)
    cpu = used.ru_utime + used.ru_stime
    print(f"{label:<24} {cpu:7.1f} CPU s {used.ru_maxrss / 1024:8.0f} MB   lift of messages per user {lift:+.6%}")
    return cpu


def _lift(text: str) -> float:
    if not text.startswith("{"):
        return float(text.rsplit(maxsplit=1)[-1])
    found = {metric["name"]: metric for metric in json.loads(text)["metrics"]}
    return float(found["messagesPerUser"]["lift"])


def ours(folder: Path, *more: str) -> list[str]:
    """The command line of the analysis."""
    tables = [
        word for name in ("exposures", "events", "covariates") for word in (f"--{name}", f"{folder}/{name}.parquet")
    ]
    return [sys.executable, "-m", "flywheel_analysis", *tables, *WINDOW, *more]


def main() -> None:
    """Makes the data, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int)
    parser.add_argument("--users", type=int, default=500_000)
    parser.add_argument("--spill", action="store_true", help="50 million events with a limit of 1 GB, ours alone")
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    events = given.events or (_SPILL_EVENTS if given.spill else 10_000_000)
    with tempfile.TemporaryDirectory(prefix="analysis-speed-") as name:
        folder = Path(name)
        generate(folder, events, given.users)
        load = os.getloadavg()[0]
        print(f"{events} events, {given.users} users, {os.cpu_count()} cores, load {load:.1f}", flush=True)
        for _ in range(given.repeats):
            if given.spill:
                timed(f"ours, limit {_SPILL_LIMIT}", ours(folder, "--memory-limit", _SPILL_LIMIT))
                continue
            mine = timed("ours", ours(folder))
            tea = timed("tea-tasting over ibis", [sys.executable, "-c", _TEA, name])
            pandas = timed("pandas", [sys.executable, "-c", _PANDAS, name])
            print(f"ours takes {mine / tea:.2f} of tea-tasting's CPU seconds and {mine / pandas:.2f} of pandas'")


if __name__ == "__main__":
    main()
