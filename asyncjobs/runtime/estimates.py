"""Estimates how long jobs of a type take, from the jobs completed lately."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from math import ceil, floor, inf, log10

import anyio

from asyncjobs.core.job import Job, JobStatus
from asyncjobs.errors import AsyncJobsError
from asyncjobs.protocols import Page, Selection
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.logging import log
from asyncjobs.records.waiting import Signal, event_loop_clock

#: Reads up to that many of the selected jobs, the latest first.
Latest = Callable[[Selection, int], Awaitable[Page]]

_SAMPLE = 50

# Four in five jobs are done by then, so a client that polls after this time mostly gets the result.
_QUANTILE = 0.8

# The handler's estimate counts as this many jobs. With fewer, the first trivial job would replace
# it; with many more, a wrong estimate would persist.
_PRIOR_WEIGHT = 5

_SIGNIFICANT_DIGITS = 2

_STALE_AFTER = 30.0

# The pause between two reads of the store, in seconds.
_PAUSE = 1.0


class Estimates:
    """The estimates of this process by type; reading them never waits for the store."""

    def __init__(self, latest: Latest, feed: ChangeFeed) -> None:
        self._latest = latest
        self._learned: dict[str, Sequence[timedelta]] = {}
        self._fresh_until: dict[str, float] = {}
        self._wanted: set[str] = set()
        self._signal = Signal()
        self._clock = event_loop_clock()
        feed.on_any(self._hint)

    def of(self, kind: str, prior: timedelta | None) -> timedelta | None:
        """Return how long most jobs of a type take, or `prior`; see `most_take`.

        An old estimate is computed again in the background.
        """
        if self._fresh_until.get(kind, -inf) < self._clock():
            self._wanted.add(kind)
            self._signal.set()
        return most_take(self._learned.get(kind, ()), prior)

    async def run(self) -> None:
        """Compute the requested estimates until cancelled."""
        while True:
            await self._signal.wait()
            while self._wanted:
                await self._learn(self._wanted.pop())
            await anyio.sleep(_PAUSE)

    async def _learn(self, kind: str) -> None:
        self._fresh_until[kind] = self._clock() + _STALE_AFTER
        try:
            page = await self._latest(Selection(type=kind, status=JobStatus.COMPLETED), _SAMPLE)
        except AsyncJobsError as error:  # the store is down, or cannot list
            log.debug("Durations of %s could not be read: %s", kind, error)
        else:
            self._learned[kind] = durations(page.jobs)

    def _hint(self, job: Job | None) -> None:
        if job is not None and job.status is JobStatus.COMPLETED:
            self._fresh_until.pop(job.type, None)


def durations(jobs: Iterable[Job]) -> Sequence[timedelta]:
    """Return how long each of these jobs ran, the shortest first."""
    return sorted(
        max(job.completed_at - job.started_at, timedelta(0))
        for job in jobs
        if job.started_at is not None and job.completed_at is not None
    )


def most_take(durations: Sequence[timedelta], prior: timedelta | None) -> timedelta | None:
    """Return the time within which most jobs are done, given sorted durations.

    `prior` is the handler's estimate. It counts as several jobs of that duration, until the
    measured durations outweigh it. A measured duration is rounded up to two digits, and to whole
    seconds; the prior is returned unchanged. Returns None if nothing is known.
    """
    weight = 0 if prior is None else _PRIOR_WEIGHT
    total = len(durations) + weight
    if not total:
        return None
    place = min(int(total * _QUANTILE), total - 1)
    # The prior's place among the durations; building a list of both would cost time at every poll.
    first = len(durations) if prior is None else bisect_left(durations, prior)
    if place < first:
        return _rounded(durations[place])
    return prior if place < first + weight else _rounded(durations[place - weight])


def _rounded(taken: timedelta) -> timedelta:
    seconds = max(ceil(taken.total_seconds()), 1)
    unit: int = 10 ** max(floor(log10(seconds)) + 1 - _SIGNIFICANT_DIGITS, 0)
    return timedelta(seconds=ceil(seconds / unit) * unit)
