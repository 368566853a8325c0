"""Keeps jobs in this process: the reference for what a store does. Durability: process."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from heapq import heappop, heappush
from itertools import count, islice
from types import TracebackType
from typing import Self

import anyio.lowlevel

from asyncjobs.core.encoding import sequence_of
from asyncjobs.core.job import Job, JobId
from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import Change, InlineReads, Listing, Page, Selection

_Key = tuple[str | None, str, str]
_Heap = list[tuple[datetime, int, JobId]]

# Of a cursor, which is a job's place in the order of insertion.
_DIGITS = 19


class MemoryStore:
    """A store that lives as long as its object; closing it forgets nothing.

    Jobs are frozen and hold their payloads as text, so handing them out shares nothing that could
    change. Every method lets other tasks run first, as a store that is far away would.
    """

    powers: frozenset[type] = frozenset({InlineReads, Listing})

    def __init__(self) -> None:
        self._jobs: dict[JobId, Job] = {}
        self._keys: dict[_Key, JobId] = {}
        # Per lane a heap of (due_at, order of insertion, id). An entry counts only while the job
        # still has that lane and moment; what was overtaken is dropped when it surfaces.
        self._due: dict[str, _Heap] = {}
        self._order: dict[JobId, int] = {}
        self._counter = count()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    async def insert(self, jobs: Sequence[Job], /) -> Sequence[Job]:
        await anyio.lowlevel.checkpoint()
        return [self._insert(job) for job in jobs]

    async def get(self, ids: Sequence[JobId], /) -> Sequence[Job | None]:
        await anyio.lowlevel.checkpoint()
        return [self._jobs.get(job_id) for job_id in ids]

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        await anyio.lowlevel.checkpoint()
        return [self._replace(change) for change in changes]

    async def take(
        self, lanes: Sequence[str], /, *, now: datetime, until: datetime, limit: int
    ) -> Sequence[Job]:
        await anyio.lowlevel.checkpoint()
        # By id: a job that was written twice with the same moment has two entries that count.
        due: dict[JobId, Job] = {}
        while len(due) < limit and (job := self._next_due(lanes, now)) is not None:
            due[job.id] = job
        taken = [job.changed(due_at=until) for job in due.values()]
        for job in taken:
            self._put(job)
        return taken

    async def delete(self, ids: Sequence[JobId], /) -> Sequence[bool]:
        await anyio.lowlevel.checkpoint()
        return [self._delete(job_id) for job_id in ids]

    async def list(self, which: Selection, /, *, limit: int, after: str | None = None) -> Page:
        await anyio.lowlevel.checkpoint()
        before = sequence_of(after, _DIGITS)
        # In the order of insertion, since a dict keeps it and no id is inserted twice.
        newest = (
            (order, job)
            for job_id, order in reversed(self._order.items())
            if (before is None or order < before) and _fits(job := self._jobs[job_id], which)
        )
        found = [*islice(newest, limit + 1)]
        jobs = [job.narrow() for _, job in found[:limit]]
        return Page(jobs, str(found[limit - 1][0]) if len(found) > limit else None)

    async def count_before(self, job: Job, /, *, until: datetime, most: int) -> int:
        await anyio.lowlevel.checkpoint()
        mine = self._order.get(job.id, 0)
        waiting = (
            None
            for due_at, order, job_id in self._due.get(job.lane, ())
            if order < mine
            and due_at <= until
            and _stands(self._jobs.get(job_id), job.lane, due_at)
        )
        return sum(1 for _ in islice(waiting, most))

    async def first_due(self, lanes: Sequence[str], /) -> Sequence[datetime | None]:
        await anyio.lowlevel.checkpoint()
        return [heap[0][0] if (heap := self._live(lane)) else None for lane in lanes]

    def _insert(self, job: Job) -> Job:
        key = _key(job)
        taken_by = self._keys.get(key) if key else None
        stored = self._jobs.get(taken_by or job.id)
        if stored is not None:
            return stored
        if key is not None:
            self._keys[key] = job.id
        self._order[job.id] = next(self._counter)
        self._put(job)
        return job

    def _replace(self, change: Change) -> bool:
        stored = self._jobs.get(change.job.id)
        if stored is None or stored.revision != change.expected_revision:
            return False
        self._put(stored.updated(change.job))
        return True

    def _put(self, job: Job) -> None:
        self._jobs[job.id] = job
        if job.due_at is not None:
            entry = (job.due_at, self._order[job.id], job.id)
            heappush(self._due.setdefault(job.lane, []), entry)

    def _next_due(self, lanes: Sequence[str], now: datetime) -> Job | None:
        """Remove and return the job that has been due for longest, over all lanes."""
        heads = [(heap[0], lane) for lane in lanes if (heap := self._live(lane))]
        if not heads:
            return None
        (due_at, _, job_id), lane = min(heads)
        if due_at > now:
            return None
        heappop(self._due[lane])
        return self._jobs[job_id]

    def _delete(self, job_id: JobId) -> bool:
        job = self._jobs.pop(job_id, None)
        self._order.pop(job_id, None)
        if job is not None and (key := _key(job)) is not None:
            del self._keys[key]
        return job is not None

    def _live(self, lane: str) -> _Heap:
        heap = self._due.get(lane, [])
        while heap:
            due_at, _, job_id = heap[0]
            if _stands(self._jobs.get(job_id), lane, due_at):
                break
            heappop(heap)
        return heap


def _stands(job: Job | None, lane: str, due_at: datetime) -> bool:
    """Tell whether an entry of a lane's heap still says what is true of its job."""
    return job is not None and job.lane == lane and job.due_at == due_at


def _fits(job: Job, which: Selection) -> bool:
    return (
        which.user_id in (None, job.user_id)
        and which.type in (None, job.type)
        and which.status in (None, job.status)
    )


def _key(job: Job) -> _Key | None:
    if job.idempotency_key is None:
        return None
    return job.user_id, job.type, job.idempotency_key


def from_url(url: str) -> MemoryStore:
    """Make a store for `memory://`."""
    if url != "memory://":
        raise ConfigurationError(f"The memory store's URL is memory://, got {url!r}.")
    return MemoryStore()
