"""Writes what an attempt records while it runs, fenced by its lease or its number."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import anyio
from anyio import from_thread
from anyio.lowlevel import EventLoopToken

from asyncjobs.core import lifecycle
from asyncjobs.core.files import superseded
from asyncjobs.core.job import Job, JobFile
from asyncjobs.errors import IllegalMove, JobCancelled, LostLease, StoreError, UnknownJob
from asyncjobs.execution.attempt import Attempt, Cause
from asyncjobs.execution.files import Recorded
from asyncjobs.records.repository import Repository


class AttemptRecorder:
    """The recorder of one attempt."""

    def __init__(
        self, attempt: Attempt, repository: Repository, pause: float, loop: EventLoopToken
    ) -> None:
        """Write in the event loop that runs the attempt.

        While the store is away and the lease holds, try again after `pause` seconds.
        """
        self._attempt = attempt
        self._repository = repository
        self._pause = pause
        self._loop = loop

    async def announce(self, file: JobFile, limit: int) -> None:
        token = self._attempt.token
        await self._advance(
            lambda job, _: lifecycle.announce_file(job, file, token=token, limit=limit)
        )

    async def record(self, file: JobFile) -> Recorded:
        token, before = self._attempt.token, self._attempt.job

        def move(job: Job, now: datetime) -> Job:
            nonlocal before
            before = job
            return lifecycle.record_file(job, now, file, token=token)

        job = await self._advance(move)
        stored = next(one for one in job.files if one.key == file.key)
        return Recorded(stored, tuple(superseded(before.files, job.files)))

    def announce_and_block(self, file: JobFile, limit: int) -> None:
        from_thread.run(partial(self.announce, file, limit), token=self._loop)

    def record_and_block(self, file: JobFile) -> Recorded:
        return from_thread.run(partial(self.record, file), token=self._loop)

    async def _advance(self, move: Callable[[Job, datetime], Job]) -> Job:
        """Write the move; both moves may be made again if the answer of a write was lost."""
        attempt = self._attempt
        while True:
            try:
                moved = await self._repository.advance(attempt.job, move)
            except (IllegalMove, LostLease, UnknownJob) as error:
                attempt.interrupt(Cause.LOST)
                raise JobCancelled(attempt.job.id) from error
            except StoreError:
                if attempt.lapsed() or attempt.gauge.stopping:
                    raise
                await anyio.sleep(self._pause)
            else:
                attempt.adopt(moved)
                return moved


async def begin_epoch(repository: Repository, attempt: Attempt, pause: timedelta) -> None:
    """Refuse further output of earlier attempts, before the handler of this one runs.

    While the store is away and the lease holds, this is tried again after each `pause`.
    """
    job = attempt.job
    while True:
        try:
            await repository.begin_epoch(job.id, job.attempt)
        except StoreError:
            if attempt.lapsed() or attempt.gauge.stopping:
                raise
            await anyio.sleep(pause.total_seconds())
        else:
            return
