"""How long jobs of a type take, learned from those that were completed lately."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from math import inf

import anyio

from asyncjobs.core.job import Job, JobStatus
from asyncjobs.errors import AsyncJobsError
from asyncjobs.protocols import Page, Selection
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.logging import log
from asyncjobs.records.waiting import Signal, event_loop_clock

#: Reads that many of the jobs that fit, the latest first.
Latest = Callable[[Selection, int], Awaitable[Page]]

_SAMPLE = 50

# Four in five jobs are done by then: who asks after that time mostly gets the result.
_QUANTILE = 0.8

_STALE_AFTER = 30.0

# Where jobs end all the time, one look a second is enough.
_PAUSE = 1.0


class Estimates:
    """What this process has learned, type by type; reading it never waits for the store."""

    def __init__(self, latest: Latest, feed: ChangeFeed) -> None:
        self._latest = latest
        self._learned: dict[str, timedelta | None] = {}
        self._fresh_until: dict[str, float] = {}
        self._wanted: set[str] = set()
        self._signal = Signal()
        self._clock = event_loop_clock()
        feed.on_any(self._hint)

    def of(self, kind: str) -> timedelta | None:
        """Return what most jobs of a type take, None where nothing is known; learn anew if old."""
        if self._fresh_until.get(kind, -inf) < self._clock():
            self._wanted.add(kind)
            self._signal.set()
        return self._learned.get(kind)

    async def run(self) -> None:
        """Learn what was asked for, until cancelled."""
        while True:
            await self._signal.wait()
            while self._wanted:
                await self._learn(self._wanted.pop())
            await anyio.sleep(_PAUSE)

    async def _learn(self, kind: str) -> None:
        self._fresh_until[kind] = self._clock() + _STALE_AFTER
        try:
            page = await self._latest(Selection(type=kind, status=JobStatus.COMPLETED), _SAMPLE)
        except AsyncJobsError as error:  # the store is away, or cannot list
            log.debug("Durations of %s could not be read: %s", kind, error)
        else:
            self._learned[kind] = most_take(page.jobs)

    def _hint(self, job: Job | None) -> None:
        if job is not None and job.status is JobStatus.COMPLETED:
            self._fresh_until.pop(job.type, None)


def most_take(jobs: Sequence[Job]) -> timedelta | None:
    """Return the time within which most of these jobs were completed, once begun."""
    durations = sorted(
        max(job.completed_at - job.started_at, timedelta(0))
        for job in jobs
        if job.started_at is not None and job.completed_at is not None
    )
    if not durations:
        return None
    return durations[min(int(len(durations) * _QUANTILE), len(durations) - 1)]
