"""Clocks that a test controls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio

_BEGINNING = datetime(2030, 1, 1, tzinfo=UTC)


class ManualClock:
    """A clock that stands still until `advance` moves it, forward or back."""

    def __init__(self, now: datetime = _BEGINNING) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    def advance(self, by: timedelta) -> datetime:
        """Move by a duration, which may be negative; return the new time."""
        self._now += by
        return self._now


class LoopClock:
    """Follows the event loop's own time, so that trio's MockClock moves both."""

    def now(self) -> datetime:
        return _BEGINNING + timedelta(seconds=anyio.current_time())
