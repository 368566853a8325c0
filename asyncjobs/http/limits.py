"""A limit for clients that poll as fast as they can."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import ceil

from asyncjobs.errors import TooManyPolls
from asyncjobs.model import JobId

# Jobs that were not asked about for longest are forgotten first; that only ever allows more.
_MOST_JOBS = 10_000


@dataclass(frozen=True)
class PollLimit:
    """How fast one job may be asked about: `burst` times at once, then each `every` seconds.

    The first poll is always answered. A process counts its own polls only.
    """

    burst: int = 20
    every: float = 0.5

    def __post_init__(self) -> None:
        if self.burst < 1 or self.every <= 0:
            raise ValueError(f"A limit needs a burst and a pause above zero, got {self}.")


class Limiter:
    """Counts polls, job by job, as a leaky bucket: by the moment at which it would be empty."""

    def __init__(self, limit: PollLimit) -> None:
        self._limit = limit
        self._empty_at: OrderedDict[JobId, float] = OrderedDict()

    def count(self, job_id: JobId, now: float) -> None:
        """Count a poll at a moment of a clock that never goes back; raise `TooManyPolls`."""
        empty_at = max(self._empty_at.pop(job_id, now), now)
        over = empty_at - now - (self._limit.burst - 1) * self._limit.every
        # One that is refused does not count, so that patience is always rewarded.
        self._empty_at[job_id] = empty_at if over > 0 else empty_at + self._limit.every
        if len(self._empty_at) > _MOST_JOBS:
            self._empty_at.popitem(last=False)
        if over > 0:
            raise TooManyPolls(max(1, ceil(over)))
