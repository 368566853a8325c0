"""Handles lapsed leases, missed deadlines, lost dispatches and old results.

One loop takes the jobs that are due in the maintenance lane; `lifecycle` decides what has become of
each of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from datetime import timedelta

import anyio

from asyncjobs.core import lifecycle
from asyncjobs.core.handlers import Registry
from asyncjobs.core.job import MAINTENANCE_LANE, Job, JobStatus, suspects_lane
from asyncjobs.errors import StoreError
from asyncjobs.execution.fetcher import Fetcher
from asyncjobs.records.logging import log, log_fields
from asyncjobs.records.repository import JobWrite, Repository
from asyncjobs.runtime.dispatch import DispatchRetrier
from asyncjobs.settings import Settings

_MAX_BATCH_SIZE = 200

_MAX_PAGES = 20

# The share of `redelivery` after which a job is sent again that reached a worker without its
# handler.
_UNHANDLED_SHARE = 1 / 3

# A lane whose jobs have been due for this long has too few workers, or none.
_NEGLECTED = timedelta(minutes=1)


class Maintenance:
    """The maintenance loop, one per process; any number of processes may share a store."""

    def __init__(
        self,
        registry: Registry,
        repository: Repository,
        retrier: DispatchRetrier,
        settings: Settings,
        fetcher: Callable[[], Fetcher | None],
        room: Callable[[], int],
    ) -> None:
        """Store the collaborators; `room` returns how many jobs may be deleted now."""
        self._registry = registry
        self._repository = repository
        self._retrier = retrier
        self._settings = settings
        self._fetcher = fetcher
        self._room = room
        self._looked_at_neglected = -math.inf
        self._unhandled_types: set[str] = set()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                while await self.sweep() == _MAX_BATCH_SIZE:
                    pass
                if neglected := self._unserved():
                    await self.sweep_neglected(neglected)
            except StoreError as error:
                log.warning("Maintenance failed and will be retried: %s", error)
            await anyio.sleep(self._settings.sweep_interval.total_seconds())

    async def sweep(self) -> int:
        """Handle due jobs; return how many there were."""
        until = self._repository.now() + self._settings.redelivery
        # A process that cannot send leaves unhandled jobs to processes that can.
        lanes = [MAINTENANCE_LANE]
        if self._retrier.pushes:
            lanes.append(lifecycle.UNHANDLED_LANE)
        jobs = await self._repository.take(lanes, until=until, limit=_MAX_BATCH_SIZE)
        now = self._repository.now()
        # Jobs for which the hooks have no room come up again after `redelivery`.
        forgettable = [job for job in jobs if lifecycle.forgettable(job, now)][: self._room()]
        if forgettable:
            await self._repository.forget(forgettable)
        await self._move_overdue(jobs)
        waiting = [job for job in jobs if job.status is JobStatus.PENDING and job.deadline > now]
        # Written first: a start would find another revision than that of the message's job.
        unhandled = [job for job in waiting if job.lane == lifecycle.UNHANDLED_LANE]
        if unhandled:
            await self._repository.replace(
                [JobWrite(job, lifecycle.requeue(job, until)) for job in unhandled]
            )
        if waiting:
            await self._retrier.dispatch_again(waiting, now)
        return len(jobs)

    async def leave_to_others(self, job: Job) -> None:
        """Schedule an early dispatch for a job that an engine delivered here without its handler.

        A worker that answers is running, so the engine is not behind and the repeat does not fill
        its queue.
        """
        log.log(
            logging.DEBUG if job.type in self._unhandled_types else logging.WARNING,
            "No handler for type %r in this worker; its jobs are sent to other workers",
            job.type,
            extra=log_fields(job),
        )
        self._unhandled_types.add(job.type)
        until = self._repository.now() + self._settings.redelivery * _UNHANDLED_SHARE
        await self._repository.replace([JobWrite(job, lifecycle.leave_unhandled(job, until))])

    async def sweep_neglected(self, lanes: Sequence[str]) -> None:
        """Enforce the deadlines of jobs that wait in lanes without active workers.

        Jobs that may still run are put back in their former order when all have been seen.
        """
        jobs: list[Job] = []
        for _ in range(_MAX_PAGES):
            page = await self._repository.take(
                lanes,
                until=self._repository.now() + self._settings.redelivery,
                limit=_MAX_BATCH_SIZE,
                overdue_by=_NEGLECTED,
            )
            await self._move_overdue(page)
            # Only the state is written back, so the payloads of thousands of jobs need not stay in
            # memory.
            jobs.extend(job.changed(payload_json=b"") for job in page)
            if len(page) < _MAX_BATCH_SIZE:
                break
        now = self._repository.now()
        alive = [JobWrite(job, lifecycle.requeue(job)) for job in jobs if now < job.deadline]
        await self._repository.replace(alive)

    def _unserved(self) -> Sequence[str]:
        """Return the lanes to check for late jobs: those that this process does not take from.

        If its worker has been too busy to take jobs, all lanes are returned. They are returned
        rarely: the check is wasted if other workers serve these lanes and are merely behind.
        """
        if anyio.current_time() - self._looked_at_neglected < _NEGLECTED.total_seconds():
            return ()
        self._looked_at_neglected = anyio.current_time()
        queues = self._registry.queues
        lanes = [*queues, *map(suspects_lane, queues)]
        fetcher = self._fetcher()
        if fetcher is None or not fetcher.took_within(_NEGLECTED):
            return lanes
        return [lane for lane in lanes if not fetcher.serves(lane)]

    async def _move_overdue(self, jobs: Sequence[Job]) -> None:
        now = self._repository.now()
        steps = [JobWrite(job, moved) for job in jobs if (moved := lifecycle.overdue(job, now))]
        # A refused change means that another process has moved the job.
        await self._repository.replace(steps)
