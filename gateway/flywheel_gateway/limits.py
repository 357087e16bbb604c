"""How much one user may ask for: a token bucket each, of which only the busiest are remembered."""

import math
from collections import OrderedDict
from typing import Final

USERS_REMEMBERED: Final = 100_000


class RateLimiter:
    """Token buckets by user. Forgotten users start with a full bucket, so memory is bounded and nobody is wronged."""

    def __init__(self, per_second: float, burst: int, remembered: int = USERS_REMEMBERED) -> None:
        self._rate, self._burst, self._remembered = per_second, burst, remembered
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, user: str, now: float) -> int:
        """0 and a token taken, or the whole seconds after which there is one. `now` is of a monotonic clock."""
        left, since = self._buckets.get(user, (float(self._burst), now))
        left = min(float(self._burst), left + max(0.0, now - since) * self._rate)
        allowed = left >= 1
        self._buckets[user] = (left - 1 if allowed else left, now)
        self._buckets.move_to_end(user)
        if len(self._buckets) > self._remembered:
            self._buckets.popitem(last=False)
        return 0 if allowed else max(1, math.ceil((1 - left) / self._rate))
