"""`python -m flywheel_operator`: starts the operator."""

import asyncio
import os
import sys

from flywheel_operator import logs, settings
from flywheel_operator.plan import abtest, generation, reward_model
from flywheel_operator.watch import process
from flywheel_operator.watch.controller import Planners


def main() -> int:
    """Parses arguments and environment, and runs."""
    given = settings.parse(sys.argv[1:], os.environ)
    logs.configure(given.log_level)
    return asyncio.run(process.run(given, Planners(generation.plan, reward_model.plan, abtest.plan)))


if __name__ == "__main__":
    sys.exit(main())
