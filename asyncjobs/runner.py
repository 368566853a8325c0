"""Runs one attempt at a job: start, handler under its limits, one recorded outcome."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, cast

import anyio

from asyncjobs import lifecycle
from asyncjobs.attempt import Attempt, Cause, Heartbeat
from asyncjobs.context import JobContext, log_fields, log_transition, progress_of, text, working_on
from asyncjobs.errors import (
    IllegalMove,
    InvalidPayload,
    InvalidResult,
    JobCancelled,
    JobFailed,
    LostLease,
    StoreError,
    UnknownJob,
)
from asyncjobs.feed import Feed
from asyncjobs.ledger import Ledger
from asyncjobs.model import Job, JobError, JobStatus, Lease
from asyncjobs.registry import Handler, Registry
from asyncjobs.settings import Settings
from asyncjobs.threads import in_new_thread

log = logging.getLogger("asyncjobs")


@dataclass(frozen=True)
class Completed:
    """The handler returned a value that can be stored."""

    result: bytes


@dataclass(frozen=True)
class Failed:
    """The handler raised; on purpose (final) or not."""

    error: JobError
    final: bool


@dataclass(frozen=True)
class BrokenOff:
    """The handler was stopped before its end."""

    cause: Cause


Ending = Completed | Failed | BrokenOff


class Runner:
    """Runs attempts in this process and fences what they write."""

    def __init__(
        self, registry: Registry, ledger: Ledger, feed: Feed, settings: Settings, worker: str
    ) -> None:
        self._registry = registry
        self._ledger = ledger
        self._feed = feed
        self._settings = settings
        self._worker = worker
        self.heartbeat = Heartbeat(ledger, settings)

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
        try:
            attempt = await self._start(job)
        except StoreError as error:
            log.warning("Job could not be started: %s", error, extra=log_fields(job))
            return
        if attempt is None:
            return
        with ExitStack() as watch:
            watch.enter_context(working_on(attempt.job))
            watch.enter_context(self._feed.listening(job.id, attempt.adopt))
            watch.enter_context(self.heartbeat.attending(attempt))
            try:
                ending = await self._work(attempt, handler)
            except BaseException:  # whoever runs this is cancelled: as good as a shutdown
                await self._record(attempt, BrokenOff(Cause.SHUTDOWN))
                raise
            await self._record(attempt, ending)
        if attempt.thread is not None:
            await attempt.thread.ended()

    def interrupt_all(self) -> None:
        """Break off every attempt, to give the jobs back."""
        for attempt in self.heartbeat:
            attempt.interrupt(Cause.SHUTDOWN)

    async def _start(self, job: Job) -> Attempt | None:
        token = uuid.uuid4().hex

        def begin(waiting: Job, now: datetime) -> Job:
            until = now + self._settings.lease
            return lifecycle.start(
                waiting, now, Lease(worker=self._worker, token=token, until=until)
            )

        try:
            started = await self._ledger.advance(job, begin)
        except (IllegalMove, UnknownJob):
            # A duplicate delivery, or a job that ended before it began. Or its deadline has passed
            # while it waited: whoever reads it, records that.
            await self._ledger.get([job.id])
            return None
        log_transition(started)
        return Attempt(started, token, self._settings.lease)

    async def _work(self, attempt: Attempt, handler: Handler[Any, Any]) -> Ending:
        job = attempt.job
        left = (lifecycle.attempt_end(job) - self._ledger.now()).total_seconds()
        with (
            anyio.CancelScope(deadline=anyio.current_time() + left) as scope,
            attempt.within(scope),
        ):
            try:
                payload = handler.load_payload(job.payload_json)
                return Completed(handler.dump_result(await _call(handler, payload, attempt)))
            except BaseException as error:
                stopping = attempt.cause is not None or scope.cancel_called
                if _belongs_to_the_loop(error, stopping=stopping):
                    raise
                if not stopping:
                    return _failure(job, error)
                if not isinstance(error, JobCancelled):
                    log.warning(
                        "The handler raised while it was stopped",
                        exc_info=error,
                        extra=log_fields(job),
                    )
        if attempt.cause is None or attempt.in_thread:
            attempt.interrupt(Cause.TIMEOUT)
        cause = attempt.cause or Cause.TIMEOUT
        if cause is Cause.TIMEOUT and attempt.thread and lifecycle.has_attempts_left(job):
            # Two attempts should not work at once, as far as this process can help it.
            with anyio.move_on_after(self._settings.lease.total_seconds()):
                await attempt.thread.ended()
        return BrokenOff(cause)

    async def _record(self, attempt: Attempt, ending: Ending) -> None:
        """Write the outcome; while the store is away, keep trying as long as the lease holds."""
        if not _loop_runs():
            return  # it ended without ending its tasks; the lease will lapse
        fields = log_fields(attempt.job)
        if ending == BrokenOff(Cause.LOST):
            log.warning("The lease was lost; how the attempt ended is not recorded", extra=fields)
            return
        asked_to_stop = attempt.job.cancel_requested_at is not None
        if ending == BrokenOff(Cause.SHUTDOWN) and attempt.in_thread and asked_to_stop:
            log.warning("A thread goes on that was asked to stop", extra=fields)
            return  # when the lease lapses, this process and with it the thread are gone
        move = _outcome(attempt, ending, random.random())  # noqa: S311  # jitter, no secret
        with anyio.CancelScope(shield=True):
            while True:
                try:
                    log_transition(await self._ledger.advance(attempt.job, move))
                except (IllegalMove, LostLease, UnknownJob) as refused:
                    log.warning("The outcome was refused: %s", refused, extra=fields)
                except StoreError as error:
                    log.warning("The outcome could not be written: %s", error, extra=fields)
                    if not attempt.lapsed():
                        await anyio.sleep(self._settings.poll.total_seconds())
                        continue
                return


async def _call(handler: Handler[Any, Any], payload: Any, attempt: Attempt) -> Any:
    context = JobContext(attempt.job, attempt.gauge)
    if handler.asynchronous:
        return await handler.function(payload, context)
    function = partial(_contained, handler, payload, context)
    attempt.thread = in_new_thread(function, name=f"asyncjobs {attempt.job.id}")
    value = await attempt.thread.result()
    if inspect.isawaitable(value):  # as a decorator makes of an `async def`
        attempt.back_on_the_loop()
        return await value
    return value


def _contained(handler: Handler[Any, Any], payload: Any, context: JobContext) -> Any:
    """Call a function in its thread; what means something to an event loop must not get out."""
    try:
        return handler.function(payload, context)
    except (Exception, JobCancelled):
        raise
    except BaseException as error:
        raise RuntimeError(f"The handler raised {type(error).__name__}.") from error


def _belongs_to_the_loop(error: BaseException, *, stopping: bool) -> bool:
    """Tell whether an error is the event loop's way to end this task, not the handler's own.

    A handler may let out a cancellation that is not its own: of a future that it awaited, say.
    """
    if isinstance(error, KeyboardInterrupt):
        return True
    if isinstance(error, GeneratorExit):
        return not _loop_runs()  # a task that is still there when the loop ends is closed
    if not isinstance(error, anyio.get_cancelled_exc_class()):
        return False
    if stopping or anyio.current_effective_deadline() == -math.inf:
        return True
    try:
        task = asyncio.current_task()
    except RuntimeError:  # another event loop, which cancels nobody but by scopes
        return False
    return task is not None and task.cancelling() > 0


def _loop_runs() -> bool:
    try:
        anyio.current_time()
    except RuntimeError:
        return False
    return True


def _failure(job: Job, error: BaseException) -> Failed:
    """Choose what the client is told: what was raised on purpose, else a fixed sentence."""
    match _alone(error):
        case JobFailed() as error:
            log.info("The handler failed the job: %s", error, extra=log_fields(job))
            return Failed(_told(error.code, error.message), final=True)
        case InvalidPayload() as error:
            told = _told("invalid_payload", str(error))
        case InvalidResult() as error:
            told = _told("invalid_result", str(error))
        case _:
            log.warning("The handler raised", exc_info=error, extra=log_fields(job))
            message = f"The job failed unexpectedly (trace id {job.trace_id})."
            return Failed(JobError(code="internal_error", message=message), final=False)
    log.warning("%s", error, extra=log_fields(job))
    return Failed(told, final=True)


def _told(code: str, message: str) -> JobError:
    return JobError(code=text(code) or "", message=text(message) or "")


def _alone(error: BaseException) -> BaseException:
    """Take an error out of the group that a task group inside the handler made of it."""
    inner: tuple[BaseException, ...] = (error,)
    while len(inner) == 1 and isinstance(inner[0], BaseExceptionGroup):
        inner = cast("tuple[BaseException, ...]", inner[0].exceptions)
    return inner[0] if len(inner) == 1 else error


def _outcome(attempt: Attempt, ending: Ending, jitter: float) -> Callable[[Job, datetime], Job]:
    """Choose the move that records an ending, on whatever the job is when it is written."""
    token, latest = attempt.token, attempt.gauge.latest
    last = None if latest is None else progress_of(latest)

    def move(job: Job, now: datetime) -> Job:
        if last is not None and job.status is JobStatus.PROCESSING:
            job = lifecycle.catch_up(job, last)
        match ending:
            case Completed(result):
                return lifecycle.complete(job, now, token=token, result=result)
            case Failed(error, final=True):
                return lifecycle.fail(job, now, token=token, error=error)
            case Failed(error):
                return lifecycle.settle_failure(job, now, token=token, error=error, jitter=jitter)
            case BrokenOff(Cause.CANCEL):
                return lifecycle.stop(job, now, token=token)
            case BrokenOff(Cause.SHUTDOWN):
                return lifecycle.settle_release(job, now, token=token)
        return _timed_out(job, now, attempt, jitter)

    return move


def _timed_out(job: Job, now: datetime, attempt: Attempt, jitter: float) -> Job:
    if now >= job.deadline:
        return lifecycle.expire(job, now)
    if attempt.in_thread and job.cancel_requested_at is not None:
        # The thread goes on, so the job may not be called cancelled.
        return lifecycle.fail(job, now, token=attempt.token, error=lifecycle.TIMED_OUT)
    return lifecycle.settle_failure(
        job, now, token=attempt.token, error=lifecycle.TIMED_OUT, jitter=jitter
    )
