"""Limits how often an action with a small cost for others is repeated."""

from __future__ import annotations

# How many may follow one without a pause.
_NOTICES_AT_ONCE = 4


class Pace:
    """Allow one action per `seconds` on average; a few in a row are not delayed.

    Rare actions never wait, while frequent ones are combined.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._credit_ends = 0.0

    def pause(self, now: float) -> float:
        """Count the next action and return how long it must wait, in seconds."""
        at = max(now, self._credit_ends - _NOTICES_AT_ONCE * self._seconds)
        self._credit_ends = max(at, self._credit_ends) + self._seconds
        return at - now
