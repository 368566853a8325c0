"""Follows batches: counts their jobs, cancels them, and ends the batch with the last job.

A job of a batch that changes in this process wakes the loop. A batch that has not ended is also due
in a lane, so that after a crash another process follows it. Reading a batch costs the same however
many jobs it has: the store counts them.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core import batches, lifecycle
from asyncjobs.core.job import BATCHES_LANE, Delivery, Job, JobId, JobStatus
from asyncjobs.core.labels import label_of_batch
from asyncjobs.errors import StoreError, UnreadableJob
from asyncjobs.protocols import Selection
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.logging import log, log_fields
from asyncjobs.records.repository import JobWrite, Repository
from asyncjobs.records.waiting import Signal
from asyncjobs.settings import Settings

# The shortest time between two looks at the batches whose jobs change, in seconds.
_PAUSE = 0.5

_MAX_LOOK_SIZE = 200
_PAGE_SIZE = 200


class Batches:
    """The loop that follows batches: one per process; any number may share a store."""

    def __init__(self, repository: Repository, feed: ChangeFeed, settings: Settings) -> None:
        self._repository = repository
        self._settings = settings
        self._wake = Signal()
        # Batches to look at next; a dict keeps their order.
        self._changed: dict[JobId, None] = {}
        self._cancelling: set[JobId] = set()
        self._took_at = -math.inf
        if repository.counts:
            feed.on_any(self._hint)

    async def run(self) -> None:
        """Follow batches until cancelled."""
        self._cancelling, self._took_at = set(), -math.inf
        async with anyio.create_task_group() as tasks:
            while True:
                try:
                    await self._look_once(tasks)
                except StoreError as error:
                    log.warning("Batches could not be read from the store: %s", error)
                await anyio.sleep(min(_PAUSE, self._interval))
                due_in = self._interval - (anyio.current_time() - self._took_at)
                await self._wake.wait(max(0.0, due_in))

    async def look(self) -> None:
        """Bring all batches up to date that are due, or whose jobs have changed in this process."""
        if not self._repository.counts:
            return
        self._took_at = -math.inf
        again = True
        while again:
            async with anyio.create_task_group() as tasks:
                await self._look_once(tasks)
            again = bool(self._changed)

    def _hint(self, job: Job | None) -> None:
        """Wake the loop if a job of a batch has changed here, or a batch was asked to stop."""
        if job is None:
            return
        batch = job.batch
        if batch is None:
            if job.delivery is not Delivery.BATCH or job.cancel_requested_at is None:
                return
            batch = job.id
        self._changed[batch] = None
        self._wake.set()

    @property
    def _interval(self) -> float:
        return self._settings.sweep_interval.total_seconds()

    async def _look_once(self, tasks: TaskGroup) -> None:
        changed, self._changed = self._changed, {}
        ids = [*changed]
        try:
            while ids:
                await self._follow(await self._read(ids[:_MAX_LOOK_SIZE]), tasks)
                del ids[:_MAX_LOOK_SIZE]
        except BaseException:
            self._changed.update(dict.fromkeys(ids))
            raise
        if anyio.current_time() - self._took_at >= self._interval:
            await self._follow_due(tasks)
            self._took_at = anyio.current_time()

    async def _follow_due(self, tasks: TaskGroup) -> None:
        while True:
            until = self._repository.now() + self._settings.sweep_interval
            jobs = await self._repository.take([BATCHES_LANE], until=until, limit=_MAX_LOOK_SIZE)
            await self._follow(jobs, tasks)
            if len(jobs) < _MAX_LOOK_SIZE:
                return

    async def _follow(self, jobs: Sequence[Job], tasks: TaskGroup) -> None:
        """Write the state that their jobs give to batches, as read before."""
        jobs = [job for job in jobs if job.delivery is Delivery.BATCH and not job.status.terminal]
        if not jobs:
            return
        # Read after the batches, so that no later look writes an earlier state.
        tallies = await self._repository.tally([label_of_batch(job.id) for job in jobs])
        steps: list[JobWrite] = []
        for job, tally in zip(jobs, tallies, strict=True):
            failed: Sequence[Job] = ()
            if batches.lacks_failures(job, tally):
                failed = await self._failed_of(job)
            now = self._repository.now()
            look_at = now + self._settings.sweep_interval
            moved = batches.follow(job, tally, failed, now, look_at)
            if moved is not None:
                steps.append(JobWrite(job, moved))
            latest = moved or job
            if latest.cancel_requested_at and not latest.status.terminal:
                self._begin_to_cancel(latest, tasks)
        written = await self._repository.replace(steps)
        for step, done in zip(steps, written, strict=True):
            if not done:  # jobs were added, or another process was faster
                self._changed[step.job.id] = None
                self._wake.set()

    async def _failed_of(self, job: Job) -> Sequence[Job]:
        """Return failed jobs of a batch in the order in which they ended, of many only some."""
        which = Selection(batch=job.id, status=JobStatus.FAILED)
        page = await self._repository.list(which, limit=_PAGE_SIZE)
        oldest_first = page.jobs[::-1]
        return sorted(oldest_first, key=lambda one: one.completed_at or one.created_at)

    def _begin_to_cancel(self, job: Job, tasks: TaskGroup) -> None:
        if job.id not in self._cancelling:
            self._cancelling.add(job.id)
            tasks.start_soon(self._cancel_all, job)

    async def _cancel_all(self, job: Job) -> None:
        """Cancel the jobs of a batch, page by page. The next look repeats what fails here."""
        try:
            for status in (JobStatus.PENDING, JobStatus.PROCESSING):
                which = Selection(batch=job.id, status=status)
                async with aclosing(pages_of(self._repository, which)) as pages:
                    async for page in pages:
                        await self._cancel(page)
        except StoreError as error:
            log.warning(
                "Jobs of a batch are not all cancelled yet: %s", error, extra=log_fields(job)
            )
        finally:
            self._cancelling.discard(job.id)

    async def _cancel(self, page: Sequence[Job]) -> None:
        asked = [job.id for job in page if job.cancel_requested_at is None]
        if not asked:
            return
        # Whole jobs: the listed ones have no payloads, which hooks may read.
        whole = await self._read(asked)
        now = self._repository.now()
        await self._repository.replace(
            [
                JobWrite(job, lifecycle.cancel(job, now))
                for job in whole
                if not job.status.terminal and job.cancel_requested_at is None
            ]
        )

    async def _read(self, ids: Sequence[JobId]) -> Sequence[Job]:
        """Return those of the jobs that exist and can be read."""
        try:
            return [job for job in await self._repository.get(ids) if job is not None]
        except UnreadableJob as error:
            if len(ids) == 1:
                log.warning("A job of a batch could not be read: %s", error)
                return []
            return [job for one in ids for job in await self._read([one])]


async def pages_of(repository: Repository, which: Selection) -> AsyncGenerator[Sequence[Job]]:
    """Yield all selected jobs, the newest first, without payloads and results, page by page."""
    after: str | None = None
    while True:
        page = await repository.list(which, limit=_PAGE_SIZE, after=after)
        yield page.jobs
        if (after := page.next) is None:
            return
