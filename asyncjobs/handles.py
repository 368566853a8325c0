"""The operations of a queue, and what `enqueue` returns: a job in its queue."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable
from typing import Any, Generic, Protocol, TypeVar, assert_never, cast

from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import Job, JobId, JobStatus
from asyncjobs.core.output import DEFAULT_STREAM, OutputItem
from asyncjobs.errors import JobUnsuccessful
from asyncjobs.settings import Seconds

P = TypeVar("P")
R = TypeVar("R")


class FollowedQueue(Protocol):
    """The operations of a queue that a handle needs; see `JobQueue`."""

    @abstractmethod
    async def cancel(self, job_id: JobId, /, *, version: int | None = None) -> Job: ...

    @abstractmethod
    def subscribe(self, job_id: JobId, /) -> AsyncIterator[Job]: ...

    @abstractmethod
    async def wait(self, job_id: JobId, /, *, timeout: Seconds | None = None) -> Job: ...

    @abstractmethod
    def output(
        self, job_id: JobId, stream: str = ..., *, after: int | None = None
    ) -> AsyncIterator[OutputItem]: ...


class BatchQueue(FollowedQueue, Protocol):
    """The operations of a queue that the handle of a batch needs; see `AsyncJobs`."""

    async def add_to_batch(
        self, batch_id: JobId, handler: Any, payloads: Iterable[Any], /
    ) -> Job: ...

    def jobs_of_batch(
        self, batch_id: JobId, /, *, status: JobStatus | None = None
    ) -> AsyncIterator[Job]: ...

    async def retry(self, job_id: JobId, /) -> JobHandle[Any]: ...


class JobHandle(Generic[R]):
    """One job of a queue, as returned by `enqueue`. Iterate over it for the job's states.

    `job` is the job as it was accepted. The methods read the store each time.
    """

    __slots__ = ("_kind", "_queue", "job")

    def __init__(self, queue: FollowedQueue, job: Job, kind: JobType[Any, R] | None = None) -> None:
        self.job = job
        self._queue = queue
        self._kind = kind

    def __repr__(self) -> str:
        return f"<JobHandle {self.job.id} ({self.job.type})>"

    @property
    def id(self) -> JobId:
        """The job's id."""
        return self.job.id

    def belongs_to(self, queue: object) -> bool:
        """Return whether the handle was made by this queue."""
        return self._queue is queue

    async def wait(self, *, timeout: Seconds | None = None) -> Job:
        """Return the job when it has ended, or its current state after `timeout`.

        Raises `UnknownJob` if its retention has ended.
        """
        return await self._queue.wait(self.job.id, timeout=timeout)

    async def result(self, *, timeout: Seconds | None = None) -> R:
        """Wait for the end of the job and return its result, in the handler's return type.

        Raises `JobUnsuccessful` if the job failed or was cancelled, `TimeoutError` if it has not
        ended after `timeout`, `InvalidResult` if the result no longer fits the type, and
        `UnknownJob` if the job's retention has ended. None of these stops the job.
        """
        job = await self.wait(timeout=timeout)
        match job.status:
            case JobStatus.PENDING | JobStatus.PROCESSING:
                raise TimeoutError(f"Job {job.id} ({job.type}) is {job.status} after {timeout} s.")
            case JobStatus.FAILED | JobStatus.CANCELLED:
                raise JobUnsuccessful(job)
            case JobStatus.COMPLETED if self._kind is not None:
                return self._kind.result_of(job)
            case JobStatus.COMPLETED:
                return cast("R", job.result)
            case _:
                assert_never(job.status)

    async def cancel(self) -> Job:
        """Cancel a waiting job or ask a running one to stop; see `JobQueue.cancel`."""
        return await self._queue.cancel(self.job.id)

    def output(
        self, stream: str = DEFAULT_STREAM, *, after: int | None = None
    ) -> AsyncIterator[OutputItem]:
        """Yield the items that the job emits, to its end; see `AsyncJobs.output`."""
        return self._queue.output(self.job.id, stream, after=after)

    def __aiter__(self) -> AsyncIterator[Job]:
        """Yield the job now and at each visible change; see `JobQueue.subscribe`."""
        return self._queue.subscribe(self.job.id)


class BatchHandle(JobHandle[dict[str, int]]):
    """One batch of a queue, as returned by `enqueue_batch`. Iterate over it for its states.

    `job` is the job that stands for the batch, as it was accepted; `job.counts` has the numbers of
    the batch's jobs. The result of a completed batch has its `total`.
    """

    __slots__ = ("_batches",)

    def __init__(self, queue: BatchQueue, job: Job) -> None:
        super().__init__(queue, job)
        self._batches = queue

    def __repr__(self) -> str:
        return f"<BatchHandle {self.job.id}>"

    async def add(self, handler: JobType[P, Any] | str, payloads: Iterable[P], /) -> Job:
        """Add jobs of any handler; return the batch with its new total.

        Raises as `AsyncJobs.add_to_batch`.
        """
        return await self._batches.add_to_batch(self.id, handler, payloads)

    def jobs(self, *, status: JobStatus | None = None) -> AsyncIterator[Job]:
        """Yield the jobs of the batch, the newest first, without their payloads and results."""
        return self._batches.jobs_of_batch(self.id, status=status)

    async def retry_failed(self) -> BatchHandle:
        """Run the failed and cancelled jobs of an ended batch again, as a new batch.

        As long as the new batch exists, another call returns it and makes no other; it completes
        what an interrupted call has begun. Raises `IllegalMove` if the batch has not ended, or no
        job failed or was cancelled.
        """
        return BatchHandle(self._batches, (await self._batches.retry(self.id)).job)


class JobQueue(Protocol):
    """The operations of a queue that applications use."""

    async def enqueue(self, handler: Any, payload: Any, /) -> JobHandle[Any]:
        """Store a job durably, then dispatch it.

        Raises `InvalidPayload`, `PayloadTooLarge`, `UnknownType`, `IdempotencyConflict` or
        `StoreUnavailable`. In each case this call made no job, except that one may exist after
        `StoreUnavailable`.
        """
        ...

    async def get(self, job_id: JobId, /) -> Job | None:
        """Return the job as it is now; None if the id never existed or the job was deleted."""
        ...

    async def update_progress(
        self, job_id: JobId, percent: int, /, message: str | None = None
    ) -> Job:
        """Report progress of work done elsewhere; the first report starts the job.

        "Elsewhere" means outside this library's workers, for a type of `AsyncJobs.external`.

        Raises `UnknownJob`, `IllegalMove`, or `LostLease` if one of our workers holds the job.
        """
        ...

    async def complete(self, job_id: JobId, result: Any = None, /) -> Job:
        """Record the result of work done elsewhere; raises as `update_progress`.

        A result that does not fit the type raises `InvalidResult` and changes nothing.
        """
        ...

    async def fail(self, job_id: JobId, message: str, /, *, code: str = "job_failed") -> Job:
        """Record the failure of work done elsewhere; raises as `update_progress`."""
        ...

    async def cancel(self, job_id: JobId, /, *, version: int | None = None) -> Job:
        """Cancel a waiting job, ask a running one to stop, leave a finished one as it is.

        May be repeated. If a `version` is given and the job is at another one, nothing is changed
        and `PreconditionFailed` is raised. Comparing and writing are one atomic step. Raises
        `UnknownJob`.
        """
        ...

    def subscribe(self, job_id: JobId, /) -> AsyncIterator[Job]:
        """Yield the job now, then at each visible change; end after its terminal state.

        A slow consumer misses states in between, never the newest. Raises `UnknownJob`. Ends
        without a terminal state if the job is deleted or the queue closes meanwhile.
        """
        ...

    async def wait(self, job_id: JobId, /, *, timeout: Seconds | None = None) -> Job:
        """Return the job when it is terminal, or its current state after `timeout`.

        Raises `UnknownJob`.
        """
        ...
