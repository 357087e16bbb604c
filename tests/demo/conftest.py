import json
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.demo.objects import Turn

RECORDED = Path(__file__).parent / "recorded"

Load = Callable[[str], Turn]


@pytest.fixture
def recorded() -> Load:
    """Objects as an API server gave them."""
    return lambda name: Turn.parse(json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8")))
