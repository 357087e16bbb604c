"""Laboratories in which whole lives of Generations and ABTests are played."""

import random

import pytest

from tests.unit.abtest_bench import Bench, between_generations
from tests.unit.lab import Lab


@pytest.fixture
def lab() -> Lab:
    return Lab(random.Random(0))


@pytest.fixture
def two(lab: Lab) -> Lab:
    """gen-1 was promoted, then gen-2 over it; gen-1 has drained."""
    for name in ("gen-1", "gen-2"):
        lab.put(name)
        lab.go(name)
    lab.go("gen-1", rounds=8)
    assert lab.serving() == "gen-2"
    assert lab.deployments["gen-1-server"]["spec"]["replicas"] == 0
    return lab


@pytest.fixture
def bench() -> Bench:
    return between_generations()
