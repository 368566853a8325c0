"""Records reports about work done outside this library's workers: a part of `AsyncJobs`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from typing import Any

from asyncjobs.core import lifecycle
from asyncjobs.core.handlers import JobType, Registry
from asyncjobs.core.job import Delivery, Detail, Job, JobError, JobId, JobStatus, Progress
from asyncjobs.errors import IllegalMove
from asyncjobs.records.repository import Repository

# Their jobs stand for other jobs, and no work is done for them.
_NOT_WORK = frozenset({Delivery.BATCH, Delivery.SCHEDULE})


class Reports(ABC):
    """Takes reports by job id; the first one starts the job."""

    registry: Registry

    @property
    @abstractmethod
    def _repository(self) -> Repository:
        """The access to the store of the open queue; raises `NotOpen` and `WrongEventLoop`."""

    async def update_progress(
        self, job_id: JobId, percent: int, /, message: str | None = None
    ) -> Job:
        """Report progress of work done elsewhere; see `JobQueue.update_progress`."""
        detail = None if message is None else Detail(message=message)
        progress = Progress(percent=percent, detail=detail)
        return await self._report(
            job_id, lambda job, _: lifecycle.report(job, progress, token=None)
        )

    async def complete(self, job_id: JobId, result: Any = None, /) -> Job:
        """Record the result of work done elsewhere; see `JobQueue.complete`."""
        job = _working(await self._repository.find(job_id))
        kind: JobType[Any, Any] = self.registry.find(job.type)
        text = kind.dump_result(result)
        return await self._report(
            job_id, lambda job, now: lifecycle.complete(job, now, token=None, result=text)
        )

    async def fail(self, job_id: JobId, message: str, /, *, code: str = "job_failed") -> Job:
        """Record the failure of work done elsewhere; see `JobQueue.fail`."""
        error = JobError(code=code, message=message)
        return await self._report(
            job_id, lambda job, now: lifecycle.fail(job, now, token=None, error=error)
        )

    async def stop(self, job_id: JobId, /) -> Job:
        """Record that work done elsewhere has stopped after a cancel request.

        Raises as `update_progress`, and `IllegalMove` if no stop was requested.
        """
        return await self._report(job_id, lambda job, now: lifecycle.stop(job, now, token=None))

    async def _report(self, job_id: JobId, move: Callable[[Job, datetime], Job]) -> Job:
        repository = self._repository
        job = _working(await repository.find(job_id))
        if job.status is JobStatus.PENDING and job.delivery is Delivery.EXTERNAL:
            try:
                job = await repository.advance(
                    job, lambda job, now: lifecycle.start(job, now, None)
                )
            except IllegalMove:  # another reporter has started it
                job = await repository.find(job_id)
        return await repository.advance(job, move)


def _working(job: Job) -> Job:
    """Return the job; raise `IllegalMove` for a batch and for the record of a schedule."""
    if job.delivery in _NOT_WORK:
        raise IllegalMove(job.id, "take reports", job.status, "it stands for other jobs")
    return job
