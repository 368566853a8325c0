"""Submits batches of jobs, adds to them, and runs jobs again: a part of `AsyncJobs`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar, Unpack, overload

from asyncjobs.core import batches
from asyncjobs.core.handlers import JobType, Registry
from asyncjobs.core.job import Delivery, Job, JobId, JobStatus
from asyncjobs.core.submission import (
    Accepted,
    BatchTerms,
    Caller,
    EnqueueOptions,
    Owner,
    Terms,
    check_payloads,
    checked_options,
    owned_by,
    submit_again,
)
from asyncjobs.handles import BatchHandle, FollowedQueue
from asyncjobs.protocols import JobHandle, Selection
from asyncjobs.runtime.acceptance import (
    accept_batch,
    add_to_batch,
    expected_duration,
    retry_batch,
)
from asyncjobs.runtime.batches import pages_of
from asyncjobs.runtime.hooks import Hooks
from asyncjobs.runtime.runtime import Runtime

P = TypeVar("P")


class Batching(FollowedQueue, ABC):
    """Submits many jobs under one id, and follows, extends and repeats them."""

    registry: Registry
    hooks: Hooks

    @property
    @abstractmethod
    def _running(self) -> Runtime:
        """The runtime of the open queue; raises `NotOpen` and `WrongEventLoop`."""

    @overload
    async def enqueue_batch(
        self, handler: JobType[P, Any], payloads: Iterable[P], /, **terms: Unpack[BatchTerms]
    ) -> BatchHandle: ...

    @overload
    async def enqueue_batch(
        self, handler: str, payloads: Iterable[Any], /, **terms: Unpack[BatchTerms]
    ) -> BatchHandle: ...

    async def enqueue_batch(
        self,
        handler: JobType[Any, Any] | str,
        payloads: Iterable[Any],
        /,
        *,
        title: str | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        options: EnqueueOptions | None = None,
        connection: object = None,
    ) -> BatchHandle:
        """Store a batch and a job for each payload; return its handle.

        The batch is followed and cancelled by its id like a job. It completes when all of its jobs
        have completed, and fails when all have ended and one did not. `title`, or that of the
        `options`, describes the batch, which also has the tags, the metadata and the callback URL.
        The batch has the deadline of its handler, and so have its jobs. Without payloads it
        completes at once.

        All payloads are checked first: an invalid one raises `InvalidPayload` or `PayloadTooLarge`,
        and so do more than 100,000; then nothing is stored. The jobs are stored after the batch,
        and may begin before all are. If this fails midway, repeat it with the same
        `idempotency_key`: it stores the rest. Without a repetition within five minutes the batch
        fails with the code `batch_incomplete`, and a later one returns it as it has ended. Raises
        `ConfigurationError` if the store cannot count jobs, and otherwise what `enqueue` raises.
        """
        kind = self.registry.find(handler)
        check_payloads(payloads)
        terms = checked_options(options)
        if title is not None:
            terms = replace(terms, title=title)
        caller = Caller(user_id, idempotency_key)
        accepted = await accept_batch(self._running, kind, [*payloads], caller, terms, connection)
        return BatchHandle(self, accepted.job)

    async def accept_batch(
        self,
        handler: JobType[P, Any] | str,
        payloads: Iterable[P],
        caller: Caller,
        options: EnqueueOptions,
        /,
    ) -> Accepted:
        """Enqueue a batch, and return whether it existed already."""
        kind = self.registry.find(handler)
        return await accept_batch(self._running, kind, [*payloads], caller, options)

    async def batch(
        self, batch_id: JobId, /, *, user_id: str | Owner | None = Owner.ANY
    ) -> BatchHandle:
        """Return the handle of a batch; raise `UnknownJob`, or `IllegalMove` for another job.

        Raises `UnknownJob` also if it has another owner than a given `user_id`, as `find` does.
        """
        job = owned_by(user_id, await self._running.repository.find(batch_id))
        batches.counts_of(job)
        return BatchHandle(self, job)

    async def add_to_batch(
        self, batch_id: JobId, handler: JobType[P, Any] | str, payloads: Iterable[P], /
    ) -> Job:
        """Add jobs of any handler to a batch; return the batch with its new total.

        The jobs have the owner of the batch, and end by its deadline. Raises `IllegalMove` if the
        batch has ended, was cancelled, or has passed its deadline, and otherwise what
        `enqueue_batch` raises. After `StoreUnavailable` jobs may be missing, and the batch may fail
        as incomplete: a repetition adds all jobs again.
        """
        kind = self.registry.find(handler)
        check_payloads(payloads)
        return await add_to_batch(self._running, batch_id, kind, [*payloads])

    async def jobs_of_batch(
        self, batch_id: JobId, /, *, status: JobStatus | None = None
    ) -> AsyncIterator[Job]:
        """Yield the jobs of a batch, the newest first, without their payloads and results."""
        which = Selection(batch=batch_id, status=status)
        async with aclosing(pages_of(self._running.repository, which)) as pages:
            async for page in pages:
                for job in page:
                    yield job

    async def retry(self, job_id: JobId, /) -> JobHandle[Any]:
        """Run an ended job again as a new job, whose `retry_of` is the id of the old one.

        The type need not be registered here: payload, owner and limits are those of the old job. A
        job of a batch runs again outside the batch. For a batch, the new job is a batch of those
        jobs of the old one that failed or were cancelled.

        As long as the new job exists, another call returns it as it is now, and stores the jobs of
        a batch that an interrupted call has not stored. To run it once more, retry the new job.
        Raises `UnknownJob`, and `IllegalMove` if the job has not ended, or no job of the batch
        failed or was cancelled.
        """
        runtime = self._running
        old = await runtime.repository.find(job_id)
        if old.delivery is Delivery.BATCH:
            return BatchHandle(self, await retry_batch(runtime, old))
        terms = Terms(runtime.repository.now(), old.delivery, expected_duration(runtime, old))
        with self.hooks.spans.submitting(old.type, old.queue, None) as traceparent:
            submission = submit_again(old, terms, traceparent)
            [job] = await runtime.accept([submission], submission.created_at)
        return JobHandle(self, job)
