"""Runs jobs in this process: a bounded number at once, the next few at hand."""

from __future__ import annotations

import contextvars
import logging
from collections import deque
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Self

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core.job import Delivery, Job, JobId
from asyncjobs.errors import ConfigurationError, NotOpen
from asyncjobs.protocols import Run
from asyncjobs.records.change_feed import Signal
from asyncjobs.records.logging import log_fields

log = logging.getLogger("asyncjobs")


class LocalDispatcher:
    """The dispatcher of a process that runs its own jobs.

    A job accepted here starts here without being taken from the store first, as long as there is
    room: `concurrency` slots and as many places to wait for one. Further jobs stay in the store
    for whoever has room first.
    """

    delivery = Delivery.PULL

    def __init__(self, concurrency: int = 10) -> None:
        if concurrency < 1:
            raise ConfigurationError(f"At least one job must run at a time, got {concurrency}.")
        self.concurrency = concurrency
        self._waiting: deque[Job] = deque()
        self._running: set[JobId] = set()
        self._again: dict[JobId, Job] = {}
        self._reserved = 0
        self._tasks: TaskGroup | None = None
        self._run: Run | None = None
        self._context = contextvars.copy_context()
        self._freed = Signal()
        self._idle = anyio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None

    @property
    def room(self) -> int:
        if self._tasks is None:
            return 0
        return 2 * self.concurrency - len(self._running) - len(self._waiting) - self._reserved

    @contextmanager
    def reservation(self) -> Generator[bool]:
        granted = self.room > 0
        self._reserved += granted
        try:
            yield granted
        finally:
            # The dispatch follows at once, and finds the place that is given up here. Where none
            # follows, somebody may be waiting for it.
            self._reserved -= granted
            self._freed.set()

    @asynccontextmanager
    async def running(self, run: Run) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            self._begin_anew(tasks, run)
            try:
                yield
            finally:
                self.close()

    async def dispatch(self, jobs: Sequence[Job], /) -> None:
        for job in jobs:
            self.offer(job)

    def offer(self, job: Job) -> bool:
        if job.id in self._running:
            self._again[job.id] = job  # a retry, while the last attempt is about to leave its slot
            return True
        if any(job.id == other.id for other in self._waiting):
            return True  # it has waited here for so long that it came up again
        if self._tasks is None or not self.room:
            return False
        if len(self._running) < self.concurrency:
            self._start(job, self._tasks)
        else:
            self._waiting.append(job)
        return True

    async def wait_for_room(self) -> None:
        while not self.room:
            await self._freed.wait()

    def close(self) -> Sequence[Job]:
        self._tasks = None
        left = tuple(self._waiting)
        self._waiting.clear()
        return left

    async def wait_until_idle(self) -> None:
        await self._idle.wait()

    def _begin_anew(self, tasks: TaskGroup, run: Run) -> None:
        """Forget what is of an earlier life, which may have been that of a process that forked."""
        self._tasks, self._run = tasks, run
        self._waiting.clear()
        self._again.clear()
        self._running = set()
        self._reserved = 0
        self._context = contextvars.copy_context()
        self._freed, self._idle = Signal(), anyio.Event()
        self._idle.set()

    def _start(self, job: Job, tasks: TaskGroup) -> None:
        if not self._running:
            self._idle = anyio.Event()
        self._running.add(job.id)
        # Not in the context of whoever submitted this job, or the one before it in this slot.
        self._context.copy().run(lambda: tasks.start_soon(self._slot, job))

    async def _slot(self, job: Job) -> None:
        if self._run is None:
            raise NotOpen("The dispatcher")
        try:
            await self._run(job)
        except Exception:
            # The next one may be luckier, and the application is not to blame.
            log.exception("A job broke off", extra=log_fields(job))
        finally:
            if (again := self._again.pop(job.id, None)) is not None and self._tasks is not None:
                self._waiting.append(again)
            # The next one first: in between, this would look idle to who waits for that.
            if self._waiting and self._tasks is not None:
                self._start(self._waiting.popleft(), self._tasks)
            self._running.discard(job.id)
            if not self._running:
                self._idle.set()
            self._freed.set()
