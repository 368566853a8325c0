"""Runs attempts in this process: starts them in batches, records how they ended in batches.

User code runs in one task per attempt, and in nothing that the runtime awaits: see `tasks`. What
that task leaves behind is a note on its `Attempt`; everything else happens in the loops below.
"""

from __future__ import annotations

import inspect
import math
import os
import random
import socket
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, ClassVar, TypeVar

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core import lifecycle
from asyncjobs.core.handlers import Handler, Registry
from asyncjobs.core.job import Delivery, Job, JobId, Lease
from asyncjobs.errors import IllegalMove, JobCancelled, LostLease, StoreError, UnknownJob
from asyncjobs.execution.attempt import Attempt, Cause
from asyncjobs.execution.cancellation import loop_runs
from asyncjobs.execution.context import JobContext, classified, progress_of
from asyncjobs.execution.dependencies import call
from asyncjobs.execution.leases import Heartbeat
from asyncjobs.execution.outcomes import (
    Facts,
    Move,
    Unrecorded,
    decide,
    error_to_keep,
    log_end,
    move_of,
)
from asyncjobs.execution.resources import Resources
from asyncjobs.execution.subprocesses import ChildProcesses
from asyncjobs.execution.tasks import start_task
from asyncjobs.execution.threads import in_new_thread
from asyncjobs.protocols import Traced
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.logging import log, log_fields, set_current_job
from asyncjobs.records.repository import JobWrite, Repository
from asyncjobs.records.waiting import Signal
from asyncjobs.settings import Settings

T = TypeVar("T")

# One write of outcomes has at most so many jobs, and about so many bytes of results.
_MAX_BATCH_SIZE = 200
_MAX_BATCH_BYTES = 4 * 1024 * 1024

# A handler that is told to stop has so many seconds to end before its end is recorded without it,
# and is cancelled again after each: libraries lose cancellations now and then.
_LOOK_AGAIN_SECONDS = 1.0

# How often a cancelled caller of `run` looks whether its job is given back.
_LOOK_SECONDS = 0.02


@dataclass(eq=False)
class _Start:
    """A job that is about to be started, for which a slot is kept until `freed` is called."""

    job: Job
    handler: Handler[Any, Any]
    token: str
    give_up_at: float
    freed: Callable[[], None]
    is_suspect: bool = False
    unwanted: bool = False
    attempt: Attempt | None = None


class Executor:
    """Runs attempts in this process and fences what they write."""

    def __init__(
        self,
        registry: Registry,
        hooks: Traced,
        repository: Repository,
        feed: ChangeFeed,
        settings: Settings,
        tasks: TaskGroup,
        resources: Resources,
    ) -> None:
        self._registry = registry
        self._hooks = hooks
        self._repository = repository
        self._feed = feed
        self._settings = settings
        self._worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._tasks = tasks
        self._resources = resources
        self._context = copy_context()
        self.heartbeat = Heartbeat(repository, settings)
        self.processes = ChildProcesses(resources.import_path)
        self._starts: deque[_Start] = deque()
        self._in_flight: Sequence[_Start] = ()
        self._new_start = Signal()
        self._outbox: deque[tuple[Attempt, Move]] = deque()
        self._new_outcome = Signal()
        self._new_alarm = Signal()
        # Attempts that still have their slot, and what frees it.
        self._attempts: dict[Attempt, Callable[[], None]] = {}
        self._stopping = False
        #: Called when a suspect does not run here any more.
        self.on_suspect_end: Callable[[JobId], None] = lambda _: None
        self._no_starts = anyio.Event()
        self._no_starts.set()

    def begin(self, job: Job, freed: Callable[[], None]) -> None:
        """Run the job's next attempt; call `freed` when its slot is free again. Never raises.

        Does nothing for a job that has begun elsewhere. The slot is kept until the handler has
        really ended, a thread included, and its end is recorded or given up.
        """
        self._begin(job, freed)

    def _begin(self, job: Job, freed: Callable[[], None]) -> _Start | None:
        handler = self._registry.handler(job.type)
        if handler is None:
            log.warning(
                "No handler for type %r here; job left to others", job.type, extra=log_fields(job)
            )
        if handler is None or self._stopping:  # it was delivered too late; it comes up elsewhere
            freed()
            return None
        suspect = lifecycle.is_suspect(job)
        if suspect:
            freed = partial(self._free_suspect, job.id, freed)
        give_up_at = anyio.current_time() + self._settings.redelivery.total_seconds() / 2
        start = _Start(job, handler, uuid.uuid4().hex, give_up_at, freed, is_suspect=suspect)
        self._starts.append(start)
        self._no_starts = anyio.Event() if self._no_starts.is_set() else self._no_starts
        self._new_start.set()
        return start

    def _free_suspect(self, job_id: JobId, freed: Callable[[], None]) -> None:
        freed()
        self.on_suspect_end(job_id)

    async def run(self, job: Job) -> BaseException | None:
        """Run the job's next attempt as `begin` does; return when its slot is free again.

        Returns what the handler raised, unless that was for being told to stop. If the caller is
        cancelled, the attempt is interrupted and the job given back first. Raises
        `ResourcesUnavailable` if what handlers share does not open; the job then waits.
        """
        await self._resources.open()
        freed = anyio.Event()
        start = self._begin(job, freed.set)
        try:
            await freed.wait()
        except BaseException:
            with anyio.CancelScope(shield=True):
                while start is not None and self._interrupt(start):  # noqa: ASYNC110  # it has to be said again
                    await anyio.sleep(_LOOK_SECONDS)
            raise
        return None if start is None or start.attempt is None else start.attempt.raised

    def running(self) -> Sequence[Job]:
        """Return the jobs that run here; any thread may call it."""
        return [attempt.job for attempt in list(self._attempts)]

    def interrupt_all(self) -> None:
        """Interrupt every attempt, to give the jobs back; begin no other."""
        self._stopping = True
        for attempt in self.heartbeat:
            attempt.interrupt(Cause.SHUTDOWN)

    async def wait_until_none(self) -> None:
        """Return when no attempt is about to start, and the end of each is recorded."""
        await self._no_starts.wait()
        await self.heartbeat.wait_until_none()

    def abandon_all(self) -> int:
        """Break off by force the tasks that did not end; return how many there were."""
        left = [attempt for attempt in self._attempts if not attempt.task_ended]
        for attempt in left:
            log.warning(
                "Job %s (%s) did not stop when it was told to; its task is broken off",
                attempt.job.id,
                attempt.job.type,
                extra=log_fields(attempt.job),
            )
            attempt.abandon_task()
        return len(left)

    async def run_loops(self) -> None:
        """Start, time and record attempts until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_starting)
            tasks.start_soon(self._keep_time)
            tasks.start_soon(self._keep_recording)

    # starting

    async def _keep_starting(self) -> None:
        while True:
            while self._starts:
                batch = [self._starts.popleft() for _ in range(len(self._starts))]
                self._in_flight = batch
                again = await self._start_batch(batch)
                self._in_flight = ()
                self._starts.extendleft(reversed(again))
                if again:
                    await anyio.sleep(self._settings.poll_interval.total_seconds())
            self._no_starts.set()
            await self._new_start.wait()

    async def _start_batch(self, batch: Sequence[_Start]) -> list[_Start]:
        """Start jobs by one write; return those to be tried again, as the store was away."""
        now = self._repository.now()
        writes: list[tuple[_Start, JobWrite]] = []
        others: list[_Start] = []
        for one in batch:
            try:
                writes.append((one, JobWrite(one.job, self._started(one, one.job, now))))
            except IllegalMove:
                others.append(one)
        try:
            written = await self._repository.replace([write for _, write in writes])
        except StoreError as error:
            return self._start_later(batch, error)
        for (one, write), done in zip(writes, written, strict=True):
            if done:
                self._spawn(one, write.job)
            else:
                others.append(one)
        again: list[_Start] = []
        for one in others:
            try:
                await self._start_alone(one)
            except StoreError as error:
                again += self._start_later([one], error)
        return again

    def _start_later(self, starts: Sequence[_Start], error: StoreError) -> list[_Start]:
        log.warning("Jobs could not be started: %s", error, extra=log_fields(starts[0].job))
        now = anyio.current_time()
        kept = [one for one in starts if now < one.give_up_at and not self._stopping]
        for one in starts:
            if one not in kept:
                one.freed()
        return kept

    async def _start_alone(self, one: _Start) -> None:
        """Start a job that is not as it was when it was delivered; leave it if it has begun."""
        try:
            started = await self._repository.advance(one.job, partial(self._started, one))
        except (IllegalMove, UnknownJob):
            # A duplicate delivery, or a job that ended before it began. Or its deadline has passed
            # while it waited: the read below records that.
            [found] = await self._repository.get([one.job.id])
            if found is None or found.lease is None or found.lease.token != one.token:
                one.freed()
                return
            started = found  # here, by a write whose answer was lost
        self._spawn(one, started)

    def _started(self, one: _Start, job: Job, now: datetime) -> Job:
        alone = job.delivery is Delivery.PULL and lifecycle.is_suspect(job)
        if alone and not one.is_suspect:
            # It was lost elsewhere while it waited here. Another suspect may run in this process.
            raise IllegalMove(job.id, "start", job.status, "it waits to run alone")
        lease = Lease(worker=self._worker, token=one.token, until=now + self._settings.lease)
        return lifecycle.start(job, now, lease)

    # running

    def _spawn(self, one: _Start, job: Job) -> None:
        """Start the task of an attempt: the only thing of it that runs user code."""
        attempt = Attempt(job, one.handler, one.token, self._settings.lease, self._on_change)
        left = (lifecycle.attempt_end(job) - self._repository.now()).total_seconds()
        attempt.look_at = anyio.current_time() + left
        one.attempt = attempt
        self._attempts[attempt] = one.freed
        self._feed.listen(job.id, attempt.adopt)
        self.heartbeat.attend(attempt)
        self._new_alarm.set()
        if self._stopping or one.unwanted:
            attempt.interrupt(Cause.SHUTDOWN)
            attempt.end(error=JobCancelled(job.id))
            return
        context = self._context.copy()
        context.run(set_current_job, job)
        attempt.task = start_task(
            partial(self._handle, attempt),
            self._tasks,
            partial(attempt.end, error=JobCancelled(job.id)),  # cancelled before its first step
            name=f"asyncjobs {job.type} {job.id}",
            context=context,
        )

    async def _handle(self, attempt: Attempt) -> None:
        """Run the handler. Whatever it does, it ends here, and only a note of it is left."""
        try:
            result = await self._perform(attempt)
        except BaseException as error:  # noqa: BLE001  # KeyboardInterrupt and SystemExit as well
            attempt.end(error=classified(error))
        else:
            attempt.end(result=result)

    async def _perform(self, attempt: Attempt) -> bytes:
        """Call the handler on the loop, in a thread or in a process; return the result as JSON."""
        job, handler = attempt.job, attempt.handler
        with self._hooks.spans.attempting(job, attempt.told_to_stop) as traceparent:
            if traceparent != job.traceparent:
                job = job.changed(traceparent=traceparent)
            if handler.import_path is not None:
                work = partial(self.processes.run, handler, job, attempt.gauge)
                return await _in_thread(attempt, work)
            payload = handler.load_payload(job.payload_json)
            shared = self._resources
            context: JobContext[Any] = JobContext(job, attempt.gauge, shared.value, shared.queue)
            return handler.dump_result(await _call(handler, payload, context, attempt))

    #: In whatever runs below this, a handler is at work on what is `job` there.
    CALLER: ClassVar = _perform.__code__

    def _interrupt(self, start: _Start) -> bool:
        """Interrupt the attempt of a start; return whether its end is still to be recorded.

        Not another attempt of the job: once given back it may have begun here again.
        """
        if start in self._starts:
            self._starts.remove(start)
            start.freed()
            return False
        start.unwanted = True
        if start.attempt is None:
            return start in self._in_flight
        start.attempt.interrupt(Cause.SHUTDOWN)
        return not start.attempt.left

    # how attempts end

    async def _keep_time(self) -> None:
        """Look at each attempt when it is time: at its timeout, and while it does not stop."""
        while True:
            now = anyio.current_time()
            for attempt in tuple(self._attempts):
                if attempt.look_at <= now:
                    self._look_at(attempt, now)
            soonest = min((attempt.look_at for attempt in self._attempts), default=math.inf)
            pause = None if soonest == math.inf else max(0.0, soonest - anyio.current_time())
            await self._new_alarm.wait(pause)

    def _look_at(self, attempt: Attempt, now: float) -> None:
        """Interrupt an attempt at its timeout; cancel again one that does not stop."""
        attempt.look_at = now + _LOOK_AGAIN_SECONDS
        over = self._repository.now() >= lifecycle.attempt_end(attempt.job)
        if attempt.settled:
            attempt.abandon_task()
            attempt.look_at = math.inf
        elif attempt.cause is None or (attempt.cause is Cause.CANCEL and over):
            attempt.interrupt(Cause.TIMEOUT)
        else:
            attempt.cancel_task()
            self._on_change(attempt)

    def _on_change(self, attempt: Attempt) -> None:
        """Put an attempt into the outbox once it is known how it ended; called at every news."""
        if not loop_runs():
            return  # it ended without ending its tasks; the leases will lapse
        if attempt.cause is not None and not attempt.settled:
            self._look_soon(attempt)
        if not attempt.settled:
            self._settle(attempt)
        self._free(attempt)

    def _look_soon(self, attempt: Attempt) -> None:
        soon = anyio.current_time() + _LOOK_AGAIN_SECONDS
        if attempt.look_at > soon:
            attempt.look_at = soon
            self._new_alarm.set()

    def _settle(self, attempt: Attempt) -> None:
        facts = Facts(
            cause=attempt.cause,
            result=attempt.result,
            error=attempt.error,
            in_thread=attempt.in_thread,
            in_process=attempt.handler.import_path is not None,
            cancel_requested=attempt.job.cancel_requested_at is not None,
            attempts_left=lifecycle.has_attempts_left(attempt.job),
            waited=anyio.current_time() - attempt.interrupted_at,
            lease=self._settings.lease.total_seconds(),
        )
        outcome = decide(facts)
        if outcome is None:
            return
        attempt.settled = True
        with suppress(BaseException):  # it shows what the application's code has raised
            log_end(attempt.job, facts, outcome)
        if isinstance(outcome, Unrecorded):
            self._leave(attempt)
            return
        latest = attempt.gauge.latest
        last = None if latest is None else progress_of(latest)
        jitter = random.random()  # noqa: S311  # no secret
        raised = error_to_keep(attempt.job, facts, outcome, self._repository.now())
        attempt.raised = None if raised is None else facts.error
        move = move_of(outcome, token=attempt.token, jitter=jitter, last=last, raised=raised)
        self._outbox.append((attempt, move))
        self._new_outcome.set()

    def _leave(self, attempt: Attempt) -> None:
        """Let go of an attempt whose end is recorded, or will never be."""
        self.heartbeat.leave(attempt)
        self._feed.unlisten(attempt.job.id, attempt.adopt)
        attempt.left = True
        self._free(attempt)

    def _free(self, attempt: Attempt) -> None:
        if attempt.left and not attempt.working:
            freed = self._attempts.pop(attempt, None)
            if freed is not None:
                freed()

    # recording

    async def _keep_recording(self) -> None:
        """Write outcomes, as many at once as there are. A slot is kept until its outcome is in."""
        while True:
            while self._outbox:
                left = await self._record(self._next_batch())
                self._outbox.extendleft(reversed(left))
                if left:
                    await anyio.sleep(self._settings.poll_interval.total_seconds())
            await self._new_outcome.wait()

    def _next_batch(self) -> list[tuple[Attempt, Move]]:
        batch = [self._outbox.popleft()]
        size = len(batch[0][0].result or b"")
        while self._outbox and len(batch) < _MAX_BATCH_SIZE and size < _MAX_BATCH_BYTES:
            batch.append(self._outbox.popleft())
            size += len(batch[-1][0].result or b"")
        return batch

    async def _record(self, batch: Sequence[tuple[Attempt, Move]]) -> list[tuple[Attempt, Move]]:
        """Write some outcomes; return those to be tried again, as the store is away."""
        now = self._repository.now()
        writes: list[tuple[Attempt, Move, JobWrite]] = []
        alone: list[tuple[Attempt, Move]] = []
        for attempt, move in batch:
            # An earlier try may have been written, though its answer was lost: look first.
            moved = None if attempt.sent is not None else _moved(attempt, move, now)
            if moved is None:
                alone.append((attempt, move))
            else:
                attempt.sent = moved
                writes.append((attempt, move, JobWrite(attempt.job, moved)))
        try:
            written = await self._repository.replace([write for _, _, write in writes])
        except StoreError as error:
            return self._record_later(batch, error)
        for (attempt, move, _), done in zip(writes, written, strict=True):
            if done:
                self._leave(attempt)
            else:
                attempt.sent = None
                alone.append((attempt, move))
        left: list[tuple[Attempt, Move]] = []
        for attempt, move in alone:
            try:
                await self._record_alone(attempt, move)
            except StoreError as error:
                left += self._record_later([(attempt, move)], error)
        return left

    async def _record_alone(self, attempt: Attempt, move: Move) -> None:
        """Write one outcome on the job as it stands now, whatever was written in between."""
        try:
            job = await self._repository.find(attempt.job.id)
            if attempt.sent is not None and _same_write(job, attempt.sent):
                self._repository.acknowledge(JobWrite(attempt.job, job))
            else:
                attempt.sent = None
                await self._advance(attempt, job, move)
        except (IllegalMove, LostLease, UnknownJob) as refused:
            log.warning("The outcome was refused: %s", refused, extra=log_fields(attempt.job))
        self._leave(attempt)

    async def _advance(self, attempt: Attempt, job: Job, move: Move) -> None:
        while True:
            moved = move(job, self._repository.now())
            attempt.job, attempt.sent = job, moved
            [done] = await self._repository.replace([JobWrite(job, moved)])
            if done:
                return
            attempt.sent = None
            job = await self._repository.find(job.id)

    def _record_later(
        self, batch: Sequence[tuple[Attempt, Move]], error: StoreError
    ) -> list[tuple[Attempt, Move]]:
        fields = log_fields(batch[0][0].job)
        log.warning("%d outcomes could not be written: %s", len(batch), error, extra=fields)
        kept: list[tuple[Attempt, Move]] = []
        for attempt, move in batch:
            if attempt.lapsed():
                self._leave(attempt)
            else:
                kept.append((attempt, move))
        return kept


def _moved(attempt: Attempt, move: Move, now: datetime) -> Job | None:
    """Make the move on the job as this process knows it; None if it is not legal there."""
    try:
        return move(attempt.job, now)
    except (IllegalMove, LostLease):
        return None


def _same_write(found: Job, sent: Job) -> bool:
    """Return whether a stored job is what this process has sent before."""
    return (found.revision, found.status, found.completed_at, found.run_at) == (
        sent.revision,
        sent.status,
        sent.completed_at,
        sent.run_at,
    )


async def _call(
    handler: Handler[Any, Any], payload: Any, context: JobContext, attempt: Attempt
) -> Any:
    if handler.asynchronous:
        return await call(handler, payload, context)
    value = await _in_thread(attempt, partial(_contained, handler, payload, context))
    if inspect.isawaitable(value):  # as a decorator makes of an `async def`
        attempt.back_on_the_loop()
        return await value
    return value


async def _in_thread(attempt: Attempt, function: Callable[[], T]) -> T:
    call = in_new_thread(function, f"asyncjobs {attempt.job.id}", attempt.changed)
    attempt.thread = call
    return await call.result()


def _contained(handler: Handler[Any, Any], payload: Any, context: JobContext) -> Any:
    """Call a function in its thread; what means something to an event loop must not get out."""
    try:
        return call(handler, payload, context)
    except (Exception, JobCancelled):
        raise
    except BaseException as error:
        raise RuntimeError(f"The handler raised {type(error).__name__}.") from error
