"""One world for all cluster tests of a run."""

import os
from collections.abc import Iterator

import pytest

from e2e.images.targets import choose
from e2e.installation import remove_namespace
from e2e.world.world import World, bring_up

CLUSTER = os.environ.get("FLYWHEEL_TEST_CLUSTER", "flywheel-test")
NAMESPACE = "flywheel-e2e"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The operator installed by its chart on the cluster `flywheel-test` (or on CONTEXT's), tiny model and data."""
    made = bring_up(choose(CLUSTER, os.environ), NAMESPACE, tmp_path_factory.mktemp("world"))
    yield made
    remove_namespace(made.kubectl, NAMESPACE)
