"""The rules of measurement once more, in plain Python and numpy, sharing nothing with the analysis."""

import datetime as dt
import math
from collections import defaultdict
from typing import Any

import numpy as np
from scipy import stats

Row = dict[str, Any]
T0 = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
COVARIATE = {
    "activeShare": "pre_active_days", "activeDaysPerUser": "pre_active_days", "messagesPerUser": "pre_messages",
    "messagesPerUserCapped": "pre_messages", "messagesPerActiveUser": "pre_messages",
    "messagesPerActiveDay": "pre_messages",
}  # fmt: skip
RATIOS = {
    "activeShare": ("active", None), "activeDaysPerUser": ("days", None), "messagesPerUser": ("messages", None),
    "messagesPerUserCapped": ("capped", None), "messagesPerActiveUser": ("messages", "active"),
    "messagesPerActiveDay": ("messages", "days"), "safetyViolationsPerMessage": ("violations", "messages"),
    "falseRefusalsPerMessage": ("refusals", "messages"), "errorsPerRequest": ("errors", "requests"),
    "latencyMean": ("latency", "latencies"),
}  # fmt: skip


def per_user(  # noqa: C901 -- the rules in one piece, to be read beside docs/analysis.md
    exposures: list[Row], events: list[Row], covariates: list[Row], end: dt.datetime, length: dt.timedelta = DAY
) -> dict[str, dict[str, np.ndarray]]:
    """Arm -> column -> one number per exposed user."""
    arms: dict[str, set[str]] = defaultdict(set)
    began: dict[str, dt.datetime] = {}
    for row in exposures:
        if row["user_id"] is not None and T0 <= row["ts"] < end:
            arms[row["user_id"]].add(row["arm"])
            began[row["user_id"]] = min(row["ts"], began.get(row["user_id"], row["ts"]))
    counts: dict[str, Row] = {
        u: {"messages": 0, "violations": 0, "refusals": 0, "errors": 0, "latency": 0.0, "latencies": 0, "seen": set()}
        for u, found in arms.items()
        if len(found) == 1
    }
    ids = set()
    for row in sorted(events, key=lambda r: r["ts"]):
        if row.get("event_id") is not None:
            if row["event_id"] in ids:
                continue
            ids.add(row["event_id"])
        user = counts.get(row["user_id"])
        if user is None or not began[row["user_id"]] <= row["ts"] < end:
            continue
        names = {"safety_violation": "violations", "false_refusal": "refusals", "error": "errors"}
        if row["type"] == "message":
            user["messages"] += 1
            user["seen"].add((row["ts"] - T0) // length)
            if row.get("value") is not None:
                user["latency"] += row["value"]
                user["latencies"] += 1
        elif row["type"] in names:
            user[names[row["type"]]] += 1
    before = {row["user_id"]: row for row in covariates}
    table: dict[str, dict[str, list[float]]] = {arm: defaultdict(list) for arm in ("control", "treatment")}
    for name, user in counts.items():
        (arm,) = arms[name]
        user |= {
            "active": int(user["messages"] > 0), "days": len(user["seen"]), "capped": min(user["messages"], 100),
            "requests": user["messages"] + user["errors"],
            **{c: before.get(name, {}).get(c) or 0 for c in ("pre_messages", "pre_active_days")},
        }  # fmt: skip
        for column, value in user.items():
            if column != "seen":
                table[arm][column].append(value)
    return {arm: {c: np.array(v, dtype=float) for c, v in columns.items()} for arm, columns in table.items()}


def estimate(table: dict[str, dict[str, np.ndarray]], metric: str) -> dict[str, float]:
    """Lift with its log-delta interval, from the users' own numbers: linearised residuals, no moments."""
    plain = metric.removesuffix("Cuped")
    top, bottom = RATIOS[plain]
    arms = {}
    for arm, columns in table.items():
        numerator = columns[top]
        denominator = columns[bottom] if bottom else np.ones_like(numerator)
        ratio = numerator.sum() / denominator.sum()
        arms[arm] = [ratio, (numerator - ratio * denominator) / denominator.mean()]
    if metric != plain:
        x = {arm: columns[COVARIATE[plain]] for arm, columns in table.items()}
        everyone = np.concatenate(list(x.values()))
        if everyone.var() > 0:
            # The factor over all users as one sample: the linearisation of the pooled ratio.
            numerator = np.concatenate([table[arm][top] for arm in table])
            denominator = np.concatenate([table[arm][bottom] for arm in table]) if bottom else np.ones_like(numerator)
            residual = (numerator - numerator.sum() / denominator.sum() * denominator) / denominator.mean()
            theta = np.cov(residual, everyone)[0, 1] / everyone.var(ddof=1)
            for arm, found in arms.items():
                found[0] -= theta * (x[arm].mean() - everyone.mean())
                found[1] = found[1] - theta * x[arm]
    (control, first), (treatment, second) = arms["control"], arms["treatment"]
    v1, v2 = first.var(ddof=1) / len(first), second.var(ddof=1) / len(second)
    error = math.sqrt(v1 / control**2 + v2 / treatment**2)
    log = math.log(treatment / control)
    z = stats.norm.ppf(0.975)
    return {
        "control": control,
        "treatment": treatment,
        "lift": math.expm1(log),
        "low": math.expm1(log - z * error),
        "high": math.expm1(log + z * error),
        "error": error,
        "p": 2 * stats.norm.sf(abs(log) / error),
        "difference": treatment - control + stats.norm.ppf(0.95) * math.sqrt(v1 + v2),
    }
