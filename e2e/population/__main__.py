"""`python -m e2e.population '{"url": ..., "users": ..., "days": ..., "day_seconds": ...}'`: see `settings`."""

import asyncio
import signal
import sys
from collections.abc import Sequence

from e2e.population.settings import Settings
from e2e.population.tally import Tally
from e2e.population.town import Town


async def live(settings: Settings) -> Tally:
    """Lives until the end or SIGTERM; prints a report every few seconds."""
    town = Town(settings, lambda tally: print(tally.to_json(), flush=True))
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, town.stop)
    return await town.run()


def main(arguments: Sequence[str]) -> int:
    """0 once it has ended, whatever happened to the requests: that is for the reader of the report to judge."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        settings = Settings.from_json(arguments[0])
    except (ValueError, TypeError) as error:
        print(f"these are no settings: {error}", file=sys.stderr)
        return 2
    asyncio.run(live(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
