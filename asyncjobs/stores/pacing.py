"""How often something may happen that costs others a little each time."""

from __future__ import annotations

# So many go at once behind one that did.
_AT_ONCE = 4


class Pace:
    """Once per `seconds` on average; a few in a row go at once.

    So what happens now and then never waits, and what happens all the time is gathered.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._credit_ends = 0.0

    def pause(self, now: float) -> float:
        """Return how long the next one is to wait, in seconds, and count it."""
        at = max(now, self._credit_ends - _AT_ONCE * self._seconds)
        self._credit_ends = max(at, self._credit_ends) + self._seconds
        return at - now
