"""How soon to ask again: as the server says, and not all at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from random import Random

#: Where a server says nothing.
DEFAULT_PAUSE = 2.0

#: Even where a server says zero.
LEAST_PAUSE = 0.1

_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 30.0
_BURST = 5
_SECONDS = re.compile(r"[0-9]{1,9}")


def told_pause(headers: Mapping[str, str]) -> float | None:
    """Read `Retry-After` as seconds; None where it is absent or makes no sense.

    A date (RFC 9110, section 10.2.3) counts from the answer's own `Date`: the clocks of two
    machines need not agree.
    """
    text = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
        return max(0.0, (until - parsedate_to_datetime(headers["date"])).total_seconds())
    except (KeyError, ValueError, TypeError):
        return None


def backoff(failures: int, told: float | None, random: Random) -> float:
    """Choose the pause after so many failures in a row, never less than what was told."""
    most = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(failures - 1, 10))
    return max(told or 0.0, random.uniform(most / 2, most))


class Turns:
    """Lets held reads follow each other at once, but for those that come too thick.

    A server that holds a request means to be asked again as soon as it has answered. A job that
    reports progress many times a second would make that a storm: after some in a row the told
    pause is kept.
    """

    def __init__(self) -> None:
        self._left = float(_BURST)
        self._at: float | None = None

    def pause(self, now: float, told: float) -> float:
        """Return for how long to wait before the next one."""
        since = 0.0 if self._at is None else now - self._at
        self._left = min(_BURST, self._left + since / max(told, 1.0))
        self._at = now
        self._left = max(-1.0, self._left - 1)
        return 0.0 if self._left >= 0 else told
