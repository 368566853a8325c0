"""Tools for testing applications: run waiting jobs, and read submitted ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from anyio import to_thread
from anyio.lowlevel import current_token

from asyncjobs.core import lifecycle
from asyncjobs.core.handlers import JobType
from asyncjobs.core.job import Job, JobId, JobStatus, suspects_lane
from asyncjobs.errors import BlockingCall, ConfigurationError, JobUnsuccessful
from asyncjobs.protocols import Change, Selection
from asyncjobs.queue import AsyncJobs

T = TypeVar("T")

_PAGE_SIZE = 200


def run_jobs(jobs: AsyncJobs, *, raise_errors: bool = True) -> list[Job]:
    """Run the jobs that are due, and those that become due meanwhile, until none is.

    They run one after the other, the longest due first, as in production: with their dependencies,
    the lifespan of the handlers, threads and processes. Returns the jobs that ran, in order, in
    their state afterwards. An exception of a handler is raised here when its outcome is recorded;
    jobs that are still due then wait for the next call. For a job that failed without an exception,
    for example by its timeout, `JobUnsuccessful` is raised. With `raise_errors=False` nothing is
    raised.

    Delayed jobs and retries stay pending until their time has come by the clock of the queue. Jobs
    whose retention has ended are deleted. Batches end with their last job, but do not run and are
    not returned.

    If the queue is open, it is used in its event loop; otherwise it is opened to submit, as by
    `jobs.sync`. Raises `ConfigurationError` if handlers run by themselves, and in the event loop of
    the queue: use `run_jobs_async` there.
    """
    ran, error = _call(jobs, "run_jobs", partial(_run_due, jobs, raise_errors=raise_errors))
    if error is not None:
        raise error
    return ran


async def run_jobs_async(jobs: AsyncJobs, *, raise_errors: bool = True) -> list[Job]:
    """Do what `run_jobs` does, for `async def` tests."""
    if not _is_open_here(jobs):
        return await to_thread.run_sync(partial(run_jobs, jobs, raise_errors=raise_errors))
    ran, error = await _run_due(jobs, raise_errors=raise_errors)
    if error is not None:
        raise error
    return ran


def submitted_jobs(jobs: AsyncJobs, handler: JobType[Any, Any] | str | None = None) -> list[Job]:
    """Return all jobs, or those of one handler, with payloads, in the order of their submission.

    They have their current state. Raises `ConfigurationError` if the store cannot list jobs.
    """
    return _call(jobs, "submitted_jobs", partial(_submitted, jobs, handler))


async def submitted_jobs_async(
    jobs: AsyncJobs, handler: JobType[Any, Any] | str | None = None
) -> list[Job]:
    """Do what `submitted_jobs` does, for `async def` tests."""
    if not _is_open_here(jobs):
        return await to_thread.run_sync(partial(submitted_jobs, jobs, handler))
    return await _submitted(jobs, handler)


def _is_open_here(jobs: AsyncJobs) -> bool:
    loop = jobs.event_loop
    return loop is not None and loop.native_token is current_token().native_token


def _call(jobs: AsyncJobs, name: str, function: Callable[[], Awaitable[T]]) -> T:
    try:
        return jobs.sync.call(name, function)
    except BlockingCall:
        raise ConfigurationError(
            f"{name} would block the event loop in which the queue is open. "
            f"In `async def`, write `await {name}_async(...)`."
        ) from None


async def _run_due(
    jobs: AsyncJobs, *, raise_errors: bool
) -> tuple[list[Job], BaseException | None]:
    """Run due jobs; return the jobs that ran, and an error to raise."""
    if jobs.runs_handlers:
        raise ConfigurationError(
            "Handlers run automatically in this process, so run_jobs would miss jobs. "
            "Open the queue inside `with jobs.using(...)`, or with `run_handlers=False`."
        )
    ran: dict[JobId, Job] = {}
    left: list[Job] = []
    error: BaseException | None = None
    await jobs.sweep()
    try:
        while error is None and (job := await _next_due(jobs)) is not None:
            left.append(job)
            raised = await jobs.run(job.id)
            after = await jobs.get(job.id) or job
            if after.attempt > job.attempt:
                ran[job.id] = after
            if after.status is not JobStatus.PENDING or after.attempt > job.attempt:
                left.pop()
            if raise_errors:
                failed = after.status is JobStatus.FAILED
                error = raised or (JobUnsuccessful(after) if failed else None)
    finally:
        # Taken, but not begun: its handler is missing here, or its lifespan did not open.
        await jobs.store.replace([Change(lifecycle.requeue(job), job.revision) for job in left])
    return [await jobs.get(job.id) or job for job in ran.values()], error


async def _next_due(jobs: AsyncJobs) -> Job | None:
    """Take the job that has been due for the longest, after the hooks had time to submit jobs."""
    job = await _take(jobs)
    if job is None:
        await jobs.sweep()  # ends batches
        await jobs.until_hooks_called()
        job = await _take(jobs)
    return job


async def _take(jobs: AsyncJobs) -> Job | None:
    queues = jobs.registry.queues
    lanes = [*queues, *map(suspects_lane, queues)]
    now = jobs.clock.now()
    until = now + jobs.settings.redelivery
    taken = await jobs.store.take(lanes, now=now, until=until, limit=1)
    return taken[0] if taken else None


async def _submitted(jobs: AsyncJobs, handler: JobType[Any, Any] | str | None) -> list[Job]:
    kind = None if handler is None else jobs.registry.find(handler).name
    found: list[Job] = []
    after: str | None = None
    while True:
        page = await jobs.list(Selection(type=kind), limit=_PAGE_SIZE, after=after)
        whole = [await jobs.get(job.id) for job in page.jobs]
        found += [job for job in whole if job is not None]
        if page.next is None:
            return found[::-1]
        after = page.next
