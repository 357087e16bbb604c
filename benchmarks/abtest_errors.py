"""Thousands of simulated A/A and A/B tests through the operator's own decision: how often it errs, how often it sees.

Each test runs seven days: a look for harm at the end of each of the first six, the verdict at the end of the seventh.
Prints one line of JSON; rates come with exact 95 % intervals. It ends with code 1 where one lies beyond its limit.
Run it: python -m benchmarks.abtest_errors
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy import stats

from benchmarks.abtest_measure import baseline, moments, readings, split
from benchmarks.abtest_population import DAYS, Effect, Habits, behave, draw_traits
from flywheel_contract.experiment import Allocation, AnalysisResult
from flywheel_operator.decide.abtest import Decision, DecisionRule, final_verdict, harm_look
from flywheel_operator.decide.power import Outlook, outlook
from flywheel_operator.model.experiment import (
    DEFAULT_GUARDRAILS,
    DEFAULT_PRIMARIES,
    DEFAULT_TARGET_LIFT,
    AbReason,
    AbVerdict,
    LookOutcome,
    PrimaryOutcome,
)

MAX_FALSE_PROMOTION: Final = 0.025
MAX_FALSE_HARM_STOP: Final = 0.01
MIN_POWER: Final = 0.80
DEFAULT_USERS: Final = 3000
SHUFFLES: Final = 5
"""Tests per user that is drawn: the same people are divided anew, which is what randomisation varies."""


NO_EFFECT: Final = Effect()
USUAL: Final = Habits()


@dataclass(frozen=True)
class Scenario:
    """What is simulated."""

    users_per_arm: int = DEFAULT_USERS
    effect: Effect = NO_EFFECT
    habits: Habits = USUAL
    treatment_share: float = 0.5
    """Of the enrolled users; anything but a half is a broken split."""
    peeking: bool = False
    """Also count the tests that would win if the rule of the last day were used on every day."""


def default_rule(users_per_arm: int) -> DecisionRule:
    """The default metrics and margins."""
    return DecisionRule(DEFAULT_PRIMARIES, DEFAULT_GUARDRAILS, min_users_per_arm=min(100, users_per_arm // 2))


def simulate(scenario: Scenario, tests: int, seed: int, rule: DecisionRule | None = None) -> Counter[str]:
    """How often what came out, of `tests` tests."""
    rule = rule or default_rule(scenario.users_per_arm)
    counts: Counter[str] = Counter()
    for test in _tests(scenario, tests, seed, rule):
        counts["tests"] += 1
        paused, decision = _run(test, rule)
        counts[decision.verdict] += 1
        counts[f"{decision.verdict}/{decision.reason}"] += 1
        counts["paused"] += paused
        end = final_verdict(test[-1], rule)
        counts["primaryAbove"] += any(p.outcome is PrimaryOutcome.ABOVE for p in end.primaries)
        for guardrail in end.guardrails:
            counts[f"{guardrail.metric}/{guardrail.outcome}"] += 1
        if scenario.peeking:
            wins = (final_verdict(day, rule).verdict is AbVerdict.TREATMENT_WINS for day in test)
            counts["peeking"] += any(wins)
    return counts


def _tests(scenario: Scenario, tests: int, seed: int, rule: DecisionRule) -> Iterator[list[AnalysisResult]]:
    """The reports of each test, one per day."""
    rng = np.random.default_rng(seed)
    metrics = _metrics(rule)
    users = 2 * scenario.users_per_arm
    pool = max(1, min(30_000 // users, tests)) * users
    done = 0
    while True:
        traits = draw_traits(rng, pool, scenario.habits)
        control = moments(behave(rng, traits, scenario.habits, NO_EFFECT))
        # Where the treatment does nothing a user does the same in either arm: that is what A/A means.
        same = scenario.effect == NO_EFFECT
        treatment = control if same else moments(behave(rng, traits, scenario.habits, scenario.effect))
        for _ in range(SHUFFLES):
            for test in readings(split(rng, control, treatment, users, scenario.treatment_share), metrics):
                if done == tests:
                    return
                done += 1
                yield test


def _run(test: list[AnalysisResult], rule: DecisionRule) -> tuple[bool, Decision]:
    """Whether a look paused the treatment, and what came out; a pause is looked at and the test goes on."""
    paused = False
    for day in range(1, DAYS):
        look = harm_look(test[day - 1], rule, day, DAYS)
        paused = paused or look.outcome is LookOutcome.PAUSE
        if look.decision is not None:
            return paused, look.decision
    return paused, final_verdict(test[-1], rule)


def predict(scenario: Scenario, lift: float, seed: int, rule: DecisionRule | None = None) -> Outlook:
    """What the operator would say before such a test, from last week's log of ten times its users."""
    rule = rule or default_rule(scenario.users_per_arm)
    rng = np.random.default_rng(seed)
    traits = draw_traits(rng, 10 * scenario.users_per_arm, scenario.habits)
    sums = moments(behave(rng, traits, scenario.habits, NO_EFFECT)).sum(axis=0)
    log = baseline(sums, _metrics(rule))
    return outlook(log, rule, Allocation(), log.window.days * log.window.day_length_seconds, lift)


def _metrics(rule: DecisionRule) -> list[str]:
    return list(dict.fromkeys([*rule.primaries, *(guardrail.metric for guardrail in rule.guardrails)]))


def rate(count: int, of: int) -> dict[str, float]:
    """A rate with its exact 95 % interval (Clopper-Pearson)."""
    interval = stats.binomtest(count, of).proportion_ci(0.95, method="exact")
    return {"rate": round(count / of, 5), "low": round(interval.low, 5), "high": round(interval.high, 5)}


def harm_stops(counts: Counter[str]) -> int:
    """Tests that a daily look ended."""
    return sum(
        counts[f"{verdict}/{AbReason.HARM_AT_DAILY_LOOK}"]
        for verdict in (AbVerdict.GUARDRAIL_BROKEN, AbVerdict.CONTROL_WINS)
    )


def summary(counts: Counter[str]) -> dict[str, Any]:
    """The verdicts of one scenario, with intervals."""
    tests = counts["tests"]
    return {
        "tests": tests,
        **{verdict.value: rate(counts[verdict], tests) for verdict in AbVerdict},
        "harmStops": rate(harm_stops(counts), tests),
    }


def main() -> None:
    """Runs the scenarios and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=20_000, help="A/A tests, and as many A/B tests")
    parser.add_argument("--users", type=int, default=DEFAULT_USERS, help="exposed users per arm")
    parser.add_argument("--lift", type=float, default=DEFAULT_TARGET_LIFT, help="what the treatment really does")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    users, tests, few = options.users, options.tests, max(options.tests // 10, 1)
    same = simulate(Scenario(users, peeking=True), tests, options.seed)
    better = simulate(Scenario(users, Effect(lift=options.lift)), tests, options.seed + 1)
    others = {
        "worse": Scenario(users, Effect(lift=-options.lift)),
        "violationsDoubled": Scenario(users, Effect(lift=options.lift, violations=2.0)),
        "slowerByTenth": Scenario(users, Effect(lift=options.lift, latency=1.1)),
        "brokenSplit": Scenario(users, Effect(lift=options.lift), treatment_share=0.45),
    }
    answer = {
        "users": users,
        "lift": options.lift,
        "falsePromotion": rate(same[AbVerdict.TREATMENT_WINS], tests),
        "falseHarmStop": rate(harm_stops(same), tests),
        "power": rate(better[AbVerdict.TREATMENT_WINS], tests),
        "powerPredicted": round(predict(Scenario(users), options.lift, options.seed).win_probability or 0.0, 4),
        "primaryAboveUnderAA": rate(same["primaryAbove"], tests),
        "primaryAboveUnderAB": rate(better["primaryAbove"], tests),
        "falsePromotionIfPeeking": rate(same["peeking"], tests),
        "falsePause": rate(same["paused"], tests),
        "guardrailsPassUnderAA": {g.metric: rate(same[f"{g.metric}/Passed"], tests) for g in DEFAULT_GUARDRAILS},
        "A/A": summary(same),
        "A/B": summary(better),
        **{
            name: summary(simulate(scenario, few, options.seed + 2 + number))
            for number, (name, scenario) in enumerate(others.items())
        },
    }
    sys.stdout.write(json.dumps(answer) + "\n")
    kept = (
        answer["falsePromotion"]["low"] < MAX_FALSE_PROMOTION,
        answer["falseHarmStop"]["low"] < MAX_FALSE_HARM_STOP,
        answer["power"]["high"] >= MIN_POWER,
    )
    sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
