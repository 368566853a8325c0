"""The pauses between requests: as the server asks, and spread over many clients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from random import Random

#: Seconds between polls if the server sends no `Retry-After`.
DEFAULT_PAUSE = 2.0

#: Seconds between polls if the server sends `Retry-After: 0`.
LEAST_PAUSE = 0.1

#: The longest pause in seconds that a `Retry-After` may ask for.
MAX_PAUSE = 86_400.0

_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 30.0
_HELD_READ_BURST = 5
_SECONDS = re.compile(r"[0-9]{1,9}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return `Retry-After` in seconds, at most a day; None if it is absent or malformed.

    A date (RFC 9110, section 10.2.3) counts from the answer's own `Date`, because the clocks of
    client and server may differ.
    """
    text = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), MAX_PAUSE)
    try:
        pause = parsedate_to_datetime(text) - parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, pause.total_seconds()), MAX_PAUSE)


def backoff(failures: int, least: float | None, random: Random) -> float:
    """Return the pause after a number of failures in a row, at least `least` seconds."""
    most = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(failures - 1, 10))
    return max(least or 0.0, random.uniform(most / 2, most))


class HeldReadPace:
    """The pauses between held reads: none, until they come too often.

    A server that holds requests expects the next one at once. For a job that reports progress many
    times a second, this would flood the server; after some reads in a row the server's pause
    applies.
    """

    def __init__(self) -> None:
        self._left = float(_HELD_READ_BURST)
        self._at: float | None = None

    def pause(self, now: float, asked: float) -> float:
        """Return the seconds before the next read; `asked` is the server's pause."""
        since = 0.0 if self._at is None else now - self._at
        self._left = min(_HELD_READ_BURST, self._left + since / max(asked, 1.0))
        self._at = now
        self._left = max(-1.0, self._left - 1)
        return 0.0 if self._left >= 0 else asked
