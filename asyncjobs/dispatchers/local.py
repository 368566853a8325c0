"""Runs jobs in this process: a bounded number at once, and keeps the next few in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

import anyio

from asyncjobs.core.job import Delivery, Job, JobId
from asyncjobs.errors import ConfigurationError
from asyncjobs.protocols import Begin
from asyncjobs.records.waiting import Signal


class LocalDispatcher:
    """The dispatcher of a process that runs its own jobs.

    A job accepted here starts here without being taken from the store first, as long as there is
    room: `concurrency` slots and as many places to wait for one. Further jobs stay in the store for
    any process with room.
    """

    delivery = Delivery.PULL

    def __init__(self, concurrency: int = 10) -> None:
        if concurrency < 1:
            raise ConfigurationError(f"The concurrency must be at least 1, got {concurrency}.")
        self.concurrency = concurrency
        # In the order in which they came.
        self._waiting: dict[JobId, Job] = {}
        self._running: set[JobId] = set()
        self._again: dict[JobId, Job] = {}
        self._reserved = 0
        # Counts the openings.
        self._life = 0
        self._begin: Begin | None = None
        self._freed = Signal()
        self._idle = anyio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None

    @property
    def room(self) -> int:
        if self._begin is None:
            return 0
        return 2 * self.concurrency - len(self._running) - len(self._waiting) - self._reserved

    def reserve(self, most: int, /) -> int:
        granted = max(0, min(most, self.room))
        self._reserved += granted
        return granted

    def release(self, places: int, /) -> None:
        # The dispatch of these jobs follows at once, and finds the released places. Without a
        # dispatch, other callers may be waiting for them.
        self._reserved = max(0, self._reserved - places)
        self._freed.set()

    def claim(self, job_id: JobId, /) -> Callable[[], None] | None:
        if self.room < 1 or len(self._running) >= self.concurrency:
            return None
        self._occupy(job_id)
        return partial(self._free, self._life, job_id)

    def open(self, begin: Begin) -> None:
        # Nothing is kept from an earlier opening, which may have been in a process that forked.
        self._begin = begin
        self._life += 1
        self._waiting.clear()
        self._again.clear()
        self._running = set()
        self._reserved = 0
        self._freed, self._idle = Signal(), anyio.Event()
        self._idle.set()

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        for job in jobs:
            self.offer(job)

    def offer(self, job: Job) -> bool:
        if job.id in self._running:
            self._again[job.id] = job  # a retry, while the last attempt is about to free its slot
            return True
        if job.id in self._waiting:
            return True  # it has waited here so long that it was taken again
        if self._begin is None or not self.room:
            return False
        if len(self._running) < self.concurrency:
            self._start(job, self._begin)
        else:
            self._waiting[job.id] = job
        return True

    async def wait_for_room(self) -> None:
        while not self.room:
            await self._freed.wait()

    def close(self) -> Sequence[Job]:
        self._begin = None
        left = tuple(self._waiting.values())
        self._waiting.clear()
        return left

    async def wait_until_idle(self) -> None:
        await self._idle.wait()

    def _start(self, job: Job, begin: Begin) -> None:
        self._occupy(job.id)
        begin(job, partial(self._free, self._life, job.id))

    def _occupy(self, job_id: JobId) -> None:
        if not self._running:
            self._idle = anyio.Event()
        self._running.add(job_id)

    def _free(self, life: int, job_id: JobId) -> None:
        """Record that a slot is free, and give it to the next waiting job."""
        if life != self._life:
            return  # a thread that outlived its queue, which has been opened again
        again = self._again.pop(job_id, None)
        if again is not None and self._begin is not None:
            self._waiting[job_id] = again
        self._running.discard(job_id)
        if self._waiting and self._begin is not None:
            self._start(self._waiting.pop(next(iter(self._waiting))), self._begin)
        if not self._running:
            self._idle.set()
        self._freed.set()
