"""`AsyncJobs`: the supplied job queue, made of a store, a dispatcher and the registered types."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar, Unpack

import anyio

from asyncjobs import lifecycle
from asyncjobs.errors import IdempotencyConflict, IllegalMove
from asyncjobs.feed import Watch
from asyncjobs.model import Delivery, Detail, Job, JobError, JobId, JobStatus, Progress
from asyncjobs.opening import Opening
from asyncjobs.protocols import Listing, Page, Selection
from asyncjobs.registry import JobType
from asyncjobs.submission import (
    By,
    Caller,
    EnqueueOptions,
    Terms,
    make_submission,
    same_payload,
    submit_again,
)

log = logging.getLogger("asyncjobs")

P = TypeVar("P")


@dataclass(frozen=True)
class Accepted:
    """A job that was asked for; `replayed` where its idempotency key had made it before."""

    job: Job
    replayed: bool


class AsyncJobs(Opening):
    """A job queue: register handlers on it, enter it with `async with`, enqueue.

    `store` is a URL (`sqlite:///jobs.db`, `memory://`) or a store. `dispatcher` is one, or the name
    of one: "local" runs jobs in this process, "worker" leaves them to `asyncjobs worker` processes.
    `policy` holds the limits of types that set none of their own. `callbacks` tells the URLs that
    jobs name of their ends (`asyncjobs.webhooks.Webhooks` does). One object is open once per
    process; it can be opened again after it was closed, and in a forked child.
    """

    async def enqueue(
        self,
        handler: JobType[P, Any] | str,
        payload: P,
        /,
        *,
        options: EnqueueOptions | None = None,
        connection: object = None,
        **by: Unpack[By],
    ) -> Job:
        """Store a job durably, then dispatch it; see `JobQueue.enqueue`.

        `user_id` is the job's owner, `By` says what `idempotency_key` does.

        With a `connection` to the store's own database, the job is inserted by the transaction that
        is under way there, and exists if and only if that commits; raises `UnusableConnection`
        where it cannot be. Which kinds of connection there are, the store says. A callback URL that
        will not be called raises `InvalidCallback`.
        """
        terms = options or EnqueueOptions()
        accepted = await self.accept(handler, payload, Caller(**by), terms, connection)
        return accepted.job

    async def accept(
        self,
        handler: JobType[P, Any] | str,
        payload: P,
        caller: Caller,
        options: EnqueueOptions,
        connection: object = None,
        /,
    ) -> Accepted:
        """Enqueue, and tell whether the job was there already."""
        engine = self._running
        kind = self.registry.find(handler)
        if options.callback_url is not None:
            engine.callbacks.check(options.callback_url)
        now = engine.ledger.now()
        terms = Terms(now, engine.dispatcher.delivery, self.expected_duration(kind))
        spans, queue = self.hooks.spans, kind.policy.queue
        with spans.submitting(kind.name, queue, options.traceparent) as traceparent:
            if traceparent != options.traceparent:
                options = replace(options, traceparent=traceparent)
            submission = make_submission(kind, payload, caller, options, terms)
            job = await engine.accept(submission, options.begins(now), connection)
        if job.id == submission.id:
            return Accepted(job, replayed=False)
        if not same_payload(kind, job, submission):
            raise IdempotencyConflict(caller.idempotency_key or "", job.id)
        return Accepted(job, replayed=True)

    async def get(self, job_id: JobId, /) -> Job | None:
        """Return the job as it stands; None for an id that never was, or is forgotten."""
        [job] = await self._running.ledger.get([job_id])
        return job

    async def find(self, job_id: JobId, /) -> Job:
        """Return the job as it stands; raise `UnknownJob` where `get` returns None."""
        return await self._running.ledger.find(job_id)

    @property
    def can_list(self) -> bool:
        """Whether the store can list jobs."""
        return isinstance(self._store, Listing)

    async def list(self, which: Selection, /, *, limit: int = 50, after: str | None = None) -> Page:
        """Return jobs, the newest first, without their payloads and results.

        `after` is the `next` of the page before. Raises `ConfigurationError` where the store cannot
        list jobs, and `InvalidQuery` for an `after` that was no page's `next`.
        """
        return await self._running.ledger.list(which, limit=limit, after=after)

    async def position(self, job: Job, /) -> int | None:
        """Tell how far in front of its queue a job waits; 1 is next.

        None where it does not wait for one of our workers, where a thousand jobs are before it, and
        where the store cannot tell.
        """
        return await self._running.ledger.position(job)

    async def oldest_waiting(self) -> Mapping[str, timedelta]:
        """Tell for how long the first job of each handler's queue waits that could have begun.

        Nothing where the store cannot tell. Of jobs that another engine is to begin, each process
        knows those that it looked after lately: the greatest of their answers counts, and comes up
        to `Settings.redelivery` late.
        """
        return await self._running.oldest(self.registry.queues)

    @property
    def watchers(self) -> int:
        """How many follow a job in this process: events, held requests, `subscribe`, `wait`."""
        return self._running.watchers if self.is_open else 0

    def expected_duration(self, what: JobType[Any, Any] | Job, /) -> timedelta | None:
        """Say how long a job takes: as most of its type did lately, else as was estimated."""
        kind = what.type if isinstance(what, Job) else what.name
        learned = self._running.estimates.of(kind)
        if learned is not None:
            return learned
        return what.estimated_duration if isinstance(what, Job) else what.estimate

    async def update_progress(
        self, job_id: JobId, percent: int, /, message: str | None = None
    ) -> Job:
        """Report for work done outside our runner; see `JobQueue.update_progress`."""
        detail = None if message is None else Detail(message=message)
        progress = Progress(percent=percent, detail=detail)
        return await self._report(
            job_id, lambda job, _: lifecycle.report(job, progress, token=None)
        )

    async def complete(self, job_id: JobId, result: Any = None, /) -> Job:
        """Record the result of work done outside our runner; see `JobQueue.complete`."""
        job = await self._running.ledger.find(job_id)
        kind: JobType[Any, Any] = self.registry.find(job.type)
        text = kind.dump_result(result)
        return await self._report(
            job_id, lambda job, now: lifecycle.complete(job, now, token=None, result=text)
        )

    async def fail(self, job_id: JobId, message: str, /, *, code: str = "job_failed") -> Job:
        """Record the failure of work done outside our runner; see `JobQueue.fail`."""
        error = JobError(code=code, message=message)
        return await self._report(
            job_id, lambda job, now: lifecycle.fail(job, now, token=None, error=error)
        )

    async def stop(self, job_id: JobId, /) -> Job:
        """Record that work done outside our runner has stopped after a cancel request.

        Raises as `update_progress`, and `IllegalMove` where nobody asked for it.
        """
        return await self._report(job_id, lambda job, now: lifecycle.stop(job, now, token=None))

    async def cancel(self, job_id: JobId, /) -> Job:
        """Cancel a waiting job, ask a running one to stop; see `JobQueue.cancel`."""
        ledger = self._running.ledger
        job = await ledger.find(job_id)
        if job.status.terminal or job.cancel_requested_at is not None:
            return job
        try:
            return await ledger.advance(job, lifecycle.cancel)
        except IllegalMove:  # it ended, or was asked by somebody else, in between
            return await ledger.find(job_id)

    async def retry(self, job_id: JobId, /) -> Job:
        """Run a job that has ended again, as a new job: `retry_of` points at the old one.

        The type need not be registered here: payload, owner and limits are those of the old job.
        Each call makes one more. Raises `UnknownJob`, and `IllegalMove` where it has not ended.
        """
        engine = self._running
        old = await engine.ledger.find(job_id)
        terms = Terms(engine.ledger.now(), old.delivery, self.expected_duration(old))
        with self.hooks.spans.submitting(old.type, old.queue, None) as traceparent:
            submission = submit_again(old, terms, traceparent)
            return await engine.accept(submission, submission.created_at)

    def subscribe(self, job_id: JobId, /) -> Watch:
        """Yield the job now and at each visible change, to its end; see `JobQueue.subscribe`."""
        return self._running.ledger.watch(job_id)

    async def wait(self, job_id: JobId, /, *, timeout: float | None = None) -> Job:
        """Return the job when it is terminal, or as it stands after `timeout` seconds."""
        updates = self.subscribe(job_id)
        job = await updates.first()
        with anyio.move_on_after(timeout):
            async for newest in updates:
                job = newest
        return job

    async def next_change(
        self, job_id: JobId, /, *, after: int | None = None, timeout: float | None = None
    ) -> Job:
        """Return the job when its version is not `after` any more, or is terminal.

        Returns it as it stands after `timeout` seconds; `after` is the present version unless
        given. Raises `UnknownJob`.
        """
        updates = self.subscribe(job_id)
        job = await updates.first()
        if job.version == (job.version if after is None else after):
            with anyio.move_on_after(timeout):
                job = await anext(updates, job)
        return job

    async def run(self, job_id: JobId, /) -> None:
        """Run one attempt of a job in this process, for an engine that delivered its id.

        Does nothing for a job that is unknown, already begun or ended: deliveries may be doubled.
        """
        job = await self.get(job_id)
        if job is None:
            log.warning("An unknown job was delivered: %s", job_id, extra={"job_id": job_id})
        elif job.status is JobStatus.PENDING:
            await self._running.runner.run(job)

    async def _report(self, job_id: JobId, move: Callable[[Job, datetime], Job]) -> Job:
        ledger = self._running.ledger
        job = await ledger.find(job_id)
        if job.status is JobStatus.PENDING and job.delivery is Delivery.EXTERNAL:
            try:
                job = await ledger.advance(job, lambda job, now: lifecycle.start(job, now, None))
            except IllegalMove:  # another reporter has started it
                job = await ledger.find(job_id)
        return await ledger.advance(job, move)
