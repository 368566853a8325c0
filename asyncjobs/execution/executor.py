"""Runs one attempt at a job: start, handler under its limits, one recorded outcome."""

from __future__ import annotations

import inspect
import logging
import random
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from typing import Any, ClassVar, TypeVar

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from asyncjobs.core import lifecycle
from asyncjobs.core.handlers import Handler, Registry
from asyncjobs.core.job import Job, Lease
from asyncjobs.errors import (
    IllegalMove,
    JobCancelled,
    LostLease,
    StoreError,
    UnknownJob,
)
from asyncjobs.execution.attempt import Attempt, Cause
from asyncjobs.execution.cancellation import belongs_to_the_loop, forget_native_cancel, loop_runs
from asyncjobs.execution.context import JobContext
from asyncjobs.execution.leases import Heartbeat
from asyncjobs.execution.outcomes import (
    Completed,
    Interrupted,
    Outcome,
    failure_of,
    outcome_of,
)
from asyncjobs.execution.subprocesses import ChildProcesses, ProcessDied
from asyncjobs.execution.threads import in_new_thread
from asyncjobs.protocols import Traced
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.logging import log_fields, working_on
from asyncjobs.records.repository import Repository
from asyncjobs.settings import Settings

log = logging.getLogger("asyncjobs")

T = TypeVar("T")


class Executor:
    """Runs attempts in this process and fences what they write."""

    def __init__(
        self,
        registry: Registry,
        hooks: Traced,
        repository: Repository,
        feed: ChangeFeed,
        settings: Settings,
        worker: str,
    ) -> None:
        self._registry = registry
        self._hooks = hooks
        self._repository = repository
        self._feed = feed
        self._settings = settings
        self._worker = worker
        self.heartbeat = Heartbeat(repository, settings)
        self.processes = ChildProcesses()
        self._stopping = False

    async def run(self, job: Job) -> None:
        """Run the job's next attempt, unless somebody else has begun it; never raises.

        Returns when the handler has really ended, a thread's included.
        """
        handler = self._registry.handler(job.type)
        if handler is None:
            log.warning(
                "No handler for type %r here; job left to others", job.type, extra=log_fields(job)
            )
            return
        if self._stopping:
            return  # whoever delivered it did so too late; it comes up elsewhere
        with self.heartbeat.expecting():
            attempt = await self._start(job)
            if attempt is None:
                return
            await self._attempt(attempt, handler)
        if attempt.thread is not None and attempt.in_thread:
            await attempt.thread.ended()

    def interrupt_all(self) -> None:
        """Break off every attempt, to give the jobs back."""
        self._stopping = True
        for attempt in self.heartbeat:
            attempt.interrupt(Cause.SHUTDOWN)

    async def _attempt(self, attempt: Attempt, handler: Handler[Any, Any]) -> None:
        with ExitStack() as watch:
            watch.enter_context(working_on(attempt.job))
            watch.enter_context(self._feed.listening(attempt.job.id, attempt.adopt))
            watch.enter_context(self.heartbeat.attending(attempt))
            if self._stopping:
                attempt.interrupt(Cause.SHUTDOWN)
            try:
                ending = await self._work(attempt, handler)
            except BaseException:  # whoever runs this is cancelled: as good as a shutdown
                attempt.interrupt(Cause.SHUTDOWN)
                await self._record(attempt, Interrupted(Cause.SHUTDOWN))
                raise
            await self._record(attempt, ending)

    async def _start(self, job: Job) -> Attempt | None:
        """Start the job; while the store is away, keep trying for as long as others leave it."""
        token = uuid.uuid4().hex
        give_up = anyio.current_time() + self._settings.redelivery.total_seconds() / 2
        while True:
            try:
                return await self._start_once(job, token)
            except StoreError as error:
                log.warning("Job could not be started: %s", error, extra=log_fields(job))
            if self._stopping or anyio.current_time() >= give_up:
                return None
            await anyio.sleep(self._settings.poll_interval.total_seconds())

    async def _start_once(self, job: Job, token: str) -> Attempt | None:
        def begin(waiting: Job, now: datetime) -> Job:
            until = now + self._settings.lease
            return lifecycle.start(
                waiting, now, Lease(worker=self._worker, token=token, until=until)
            )

        try:
            started = await self._repository.advance(job, begin)
        except (IllegalMove, UnknownJob):
            # A duplicate delivery, or a job that ended before it began. Or its deadline has passed
            # while it waited: whoever reads it, records that.
            [found] = await self._repository.get([job.id])
            if found is None or found.lease is None or found.lease.token != token:
                return None
            started = found  # here, by a write whose answer was lost
        return Attempt(started, token, self._settings.lease)

    async def _work(self, attempt: Attempt, handler: Handler[Any, Any]) -> Outcome:
        job = attempt.job
        left = (lifecycle.attempt_end(job) - self._repository.now()).total_seconds()
        with (
            anyio.CancelScope(deadline=anyio.current_time() + left) as scope,
            attempt.within(scope),
        ):
            try:
                await checkpoint_if_cancelled()  # meanwhile; no thread is begun then
                return Completed(await self._perform(handler, attempt))
            except ProcessDied as error:
                log.warning("%s", error, extra=log_fields(job))
                attempt.interrupt(Cause.DIED)
            except BaseException as error:
                stopping = attempt.cause is not None or scope.cancel_called
                if belongs_to_the_loop(error, stopping=stopping):
                    raise
                if not stopping:
                    forget_native_cancel()
                    return failure_of(job, error)
                if not isinstance(error, JobCancelled):
                    log.warning(
                        "The handler raised while it was stopped",
                        exc_info=error,
                        extra=log_fields(job),
                    )
        if attempt.cause is None or attempt.in_thread:
            attempt.interrupt(Cause.TIMEOUT)
        cause = attempt.cause or Cause.TIMEOUT
        if handler.import_path is not None and attempt.thread is not None:
            await attempt.thread.ended()  # very soon: its process is killed
        elif cause is Cause.TIMEOUT and attempt.thread and lifecycle.has_attempts_left(job):
            # Two attempts should not work at once, as far as this process can help it.
            with anyio.move_on_after(self._settings.lease.total_seconds()):
                await attempt.thread.ended()
        return Interrupted(cause)

    async def _perform(self, handler: Handler[Any, Any], attempt: Attempt) -> bytes:
        """Call the handler where it runs; return the result as JSON."""
        job = attempt.job
        with self._hooks.spans.attempting(job, attempt.told_to_stop) as traceparent:
            if traceparent != job.traceparent:
                job = job.changed(traceparent=traceparent)
            if handler.import_path is not None:
                work = partial(self.processes.run, handler, job, attempt.gauge)
                return await _in_thread(attempt, work)
            payload = handler.load_payload(job.payload_json)
            context = JobContext(job, attempt.gauge)
            return handler.dump_result(await _call(handler, payload, context, attempt))

    #: In whatever runs below this, a handler is at work on what is `job` there.
    CALLER: ClassVar = _perform.__code__

    async def _record(self, attempt: Attempt, ending: Outcome) -> None:
        """Write the outcome; while the store is away, keep trying as long as the lease holds."""
        if not loop_runs():
            return  # it ended without ending its tasks; the lease will lapse
        fields = log_fields(attempt.job)
        if ending == Interrupted(Cause.LOST):
            log.warning("The lease was lost; how the attempt ended is not recorded", extra=fields)
            return
        asked_to_stop = attempt.job.cancel_requested_at is not None
        if ending == Interrupted(Cause.SHUTDOWN) and attempt.in_thread and asked_to_stop:
            log.warning("A thread goes on that was asked to stop", extra=fields)
            return  # when the lease lapses, this process and with it the thread are gone
        move = outcome_of(attempt, ending, random.random())  # noqa: S311  # jitter, no secret
        with anyio.CancelScope(shield=True):
            while True:
                try:
                    await self._repository.advance(attempt.job, move)
                except (IllegalMove, LostLease, UnknownJob) as refused:
                    log.warning("The outcome was refused: %s", refused, extra=fields)
                except StoreError as error:
                    log.warning("The outcome could not be written: %s", error, extra=fields)
                    if not attempt.lapsed():
                        await anyio.sleep(self._settings.poll_interval.total_seconds())
                        continue
                return


async def _call(
    handler: Handler[Any, Any], payload: Any, context: JobContext, attempt: Attempt
) -> Any:
    if handler.asynchronous:
        return await handler.function(payload, context)
    value = await _in_thread(attempt, partial(_contained, handler, payload, context))
    if inspect.isawaitable(value):  # as a decorator makes of an `async def`
        attempt.back_on_the_loop()
        return await value
    return value


async def _in_thread(attempt: Attempt, function: Callable[[], T]) -> T:
    call = in_new_thread(function, name=f"asyncjobs {attempt.job.id}")
    attempt.thread = call
    return await call.result()


def _contained(handler: Handler[Any, Any], payload: Any, context: JobContext) -> Any:
    """Call a function in its thread; what means something to an event loop must not get out."""
    try:
        return handler.function(payload, context)
    except (Exception, JobCancelled):
        raise
    except BaseException as error:
        raise RuntimeError(f"The handler raised {type(error).__name__}.") from error
