"""The machine's clock, behind the `Clock` protocol so that a test can bring its own."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """Tell the time of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)
