"""Asks running stages how far they are. No answer is no progress, never an error."""

import asyncio
import logging
from typing import Final

import aiohttp
from pydantic import ValidationError

from flywheel_contract.paths import STATUS_PORT
from flywheel_contract.progress import Progress

SCRAPE_SECONDS: Final = 2.0
AT_A_TIME: Final = 16
_MAX_BYTES: Final = 16_384

_log = logging.getLogger(__name__)


class Scraper:
    """Scrapes `GET /progress` of pods, at most `AT_A_TIME` at once."""

    def __init__(self, session: aiohttp.ClientSession, port: int = STATUS_PORT) -> None:
        self._session = session
        self._port = port
        self._slots = asyncio.Semaphore(AT_A_TIME)

    async def scrape(self, address: str) -> Progress | None:
        """The progress that the pod with this IP address tells of; None where it tells none."""
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{self._port}/progress"
        try:
            async with (
                self._slots,
                self._session.get(
                    url, timeout=aiohttp.ClientTimeout(total=SCRAPE_SECONDS), allow_redirects=False
                ) as answer,
            ):
                if answer.status != 200:
                    return None
                return Progress.model_validate_json(await answer.content.read(_MAX_BYTES))
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
            _log.debug("no progress from %s: %r", url, error)
            return None
