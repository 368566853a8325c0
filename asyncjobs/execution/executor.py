"""Runs attempts in this process: starts them in batches and records their outcomes in batches.

User code runs in one task per attempt, which the runtime never awaits: see `tasks`. The task only
records its end on its `Attempt`; everything else happens in the loops below.
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
from datetime import datetime
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, ClassVar, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import current_token

from asyncjobs.core import lifecycle
from asyncjobs.core.handlers import Handler, Registry
from asyncjobs.core.job import Delivery, Job, JobId, Lease
from asyncjobs.core.randomness import random_hex
from asyncjobs.errors import IllegalMove, JobCancelled, StoreError, UnknownJob
from asyncjobs.execution.attempt import Attempt, Cause
from asyncjobs.execution.cancellation import loop_runs
from asyncjobs.execution.context import JobContext, classified
from asyncjobs.execution.dependencies import call
from asyncjobs.execution.files import FileSaver
from asyncjobs.execution.leases import Heartbeat
from asyncjobs.execution.outbox import Outbox
from asyncjobs.execution.outcomes import (
    Facts,
    Unrecorded,
    decide,
    error_to_keep,
    log_end,
    move_of,
)
from asyncjobs.execution.output import Output, OutputWriter
from asyncjobs.execution.recorder import AttemptRecorder, begin_epoch
from asyncjobs.execution.resources import Resources
from asyncjobs.execution.starts import Doubts, Start, holds
from asyncjobs.execution.subprocesses import ChildProcesses
from asyncjobs.execution.tasks import start_task
from asyncjobs.execution.threads import in_new_thread
from asyncjobs.protocols import Traced
from asyncjobs.records.change_feed import ChangeFeed
from asyncjobs.records.logging import log, log_fields, set_current_job
from asyncjobs.records.repository import JobWrite, Repository
from asyncjobs.records.waiting import Signal, event_loop_clock
from asyncjobs.settings import Settings

T = TypeVar("T")

# A handler that was asked to stop is looked at again at this interval: its end may be recorded
# without it, and it is cancelled again, because libraries lose cancellations now and then.
_LOOK_AGAIN_SECONDS = 1.0

# How many alarms of attempts that have ended may be left before they are removed.
_MAX_STALE_ALARMS = 1000

# How often a cancelled caller of `run` checks whether its job is given back.
_LOOK_SECONDS = 0.02


class Executor:
    """Runs attempts in this process and fences their writes."""

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
        self._loop = current_token()
        self._clock = event_loop_clock()
        self.heartbeat = Heartbeat(repository, settings)
        self.processes = ChildProcesses(resources.import_path, repository.files)
        self._starts: deque[Start] = deque()
        self._in_flight: Sequence[Start] = ()
        self._new_start = Signal()
        self._outbox = Outbox(repository, settings, self._leave)
        # When to look at which attempt: a heap. An entry counts only if it equals the attempt's
        # `look_at`; moving an entry of a heap is slower than adding another one.
        self._alarms: list[tuple[float, int, Attempt]] = []
        self._alarm_count = count()
        self._wakes_at = math.inf
        self._new_alarm = Signal()
        # Attempts that still have their slot, and the functions that free it.
        self._attempts: dict[Attempt, Callable[[], None]] = {}
        self._stopping = False
        #: Called when a suspect no longer runs here.
        self.on_suspect_end: Callable[[JobId], None] = lambda _: None
        # Jobs that are being stored as started.
        self._prepared: set[Start] = set()
        self._no_start = Signal()
        self._doubts = Doubts(repository, settings)

    def begin(self, job: Job, freed: Callable[[], None]) -> None:
        """Run the job's next attempt; call `freed` when its slot is free again. Never raises.

        Only frees the slot if the job has begun elsewhere. The slot is kept until the handler has
        really ended, including its thread, and its end is recorded or given up.
        """
        self._begin(job, freed)

    def _begin(self, job: Job, freed: Callable[[], None]) -> Start | None:
        handler = self._registry.handler(job.type)
        if handler is None:
            log.warning(
                "No handler for type %r here; other workers run it", job.type, extra=log_fields(job)
            )
        if handler is None or self._stopping:  # delivered too late; the job comes up elsewhere
            freed()
            return None
        suspect = lifecycle.is_suspect(job)
        if suspect:
            freed = partial(self._free_suspect, job.id, freed)
        start = self._new_start_of(job, handler, freed)
        start.is_suspect = suspect
        self._starts.append(start)
        self._new_start.set()
        return start

    def _new_start_of(
        self, job: Job, handler: Handler[Any, Any], freed: Callable[[], None]
    ) -> Start:
        now = self._clock()
        # Well before `redelivery`, after which another worker may get the job.
        give_up_at = now + self._settings.redelivery.total_seconds() / 2
        return Start(job, handler, random_hex(), now, give_up_at, freed)

    def prepare(self, job: Job, freed: Callable[[], None]) -> tuple[Start, Job] | None:
        """Start a job that is not stored yet; return it in the started state, to be stored.

        The slot stays taken, and one of `launch`, `doubt` and `drop` must follow. If the job cannot
        be started here, returns None and frees the slot.
        """
        handler = self._registry.handler(job.type)
        if handler is None or self._stopping:
            freed()
            return None
        start = self._new_start_of(job, handler, freed)
        try:
            started = self._started(start, job, self._repository.now())
        except IllegalMove:
            freed()
            return None
        self._prepared.add(start)
        return start, started

    def launch(self, start: Start, stored: Job) -> None:
        """Run a job that `prepare` started, if it is stored with that start; else free its slot."""
        # Another job may have its idempotency key, or the pending job was stored.
        if holds(stored, start.token):
            self._spawn(start, stored)
        else:
            start.freed()
        self._settle_start(start)

    def drop(self, start: Start) -> None:
        """Free the slot of a job that `prepare` started and that was not stored."""
        start.freed()
        self._settle_start(start)

    def _settle_start(self, start: Start) -> None:
        self._prepared.discard(start)
        self._no_start.set()

    def doubt(self, start: Start) -> None:
        """Free the slot; check later whether the job was stored, and give it back then.

        Used when the store did not answer, or the caller was cancelled before it did.
        """
        self._doubts.add(start)
        self.drop(start)

    def _free_suspect(self, job_id: JobId, freed: Callable[[], None]) -> None:
        freed()
        self.on_suspect_end(job_id)

    async def run(self, job: Job) -> BaseException | None:
        """Run the job's next attempt like `begin`; return when its slot is free again.

        Returns the handler's error, unless the handler raised it because it was asked to stop. If
        the caller is cancelled, the attempt is interrupted and the job given back first. Raises
        `ResourcesUnavailable` if the lifespan does not open; the job then waits.
        """
        await self._resources.open()
        freed = anyio.Event()
        start = self._begin(job, freed.set)
        try:
            await freed.wait()
        except BaseException:
            # Shielded: the caller is cancelled, but must not return before the job is given back.
            # Repeated: a start that is being written becomes an attempt only later.
            with anyio.CancelScope(shield=True):
                while start is not None and self._interrupt(start):  # noqa: ASYNC110  # see above
                    await anyio.sleep(_LOOK_SECONDS)
            raise
        return None if start is None or start.attempt is None else start.attempt.raised

    def running(self) -> Sequence[Job]:
        """Return the jobs that run here; any thread may call it."""
        return [attempt.job for attempt in list(self._attempts)]

    def interrupt_all(self) -> None:
        """Interrupt every attempt to give its job back; begin no other."""
        # Starts that are being written now are interrupted as soon as they become attempts.
        self._stopping = True
        self._doubts.stop()
        for attempt in self.heartbeat:
            attempt.interrupt(Cause.SHUTDOWN)

    async def wait_until_none(self) -> None:
        """Return when no attempt is about to start and the end of each one is recorded."""
        # In this order: a start becomes a doubt or an attempt, and never the other way round.
        while self._starts or self._in_flight or self._prepared:
            await self._no_start.wait()
        await self._doubts.wait_until_none()
        await self.heartbeat.wait_until_none()

    def abandon_all(self) -> int:
        """End the tasks by force that did not stop; return their number."""
        left = [attempt for attempt in self._attempts if not attempt.task_ended]
        for attempt in left:
            log.warning(
                "Job %s (%s) did not stop when asked to; its task is ended by force",
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
            tasks.start_soon(self._doubts.run)
            tasks.start_soon(self._keep_time)
            tasks.start_soon(self._outbox.run)

    # starting

    async def _keep_starting(self) -> None:
        while True:
            while self._starts:
                batch = [self._starts.popleft() for _ in range(len(self._starts))]
                # Without an await in between: a start is always in one of the two collections,
                # where `_interrupt` and `wait_until_none` look for it.
                self._in_flight = batch
                again = await self._start_batch(batch)
                self._in_flight = ()
                self._starts.extendleft(reversed(again))
                if again:
                    await anyio.sleep(self._settings.poll_interval.total_seconds())
            self._no_start.set()
            # A start that was added during the last write has set the signal.
            await self._new_start.wait()

    async def _start_batch(self, batch: Sequence[Start]) -> list[Start]:
        """Start jobs by one write; return those to be started again after an error."""
        # Before the write: the store counts the leases from this moment.
        now, asked_at = self._repository.now(), self._clock()
        writes: list[tuple[Start, JobWrite]] = []
        others: list[Start] = []
        for one in batch:
            try:
                one.asked_at = asked_at
                writes.append((one, JobWrite(one.job, self._started(one, one.job, now))))
            except IllegalMove:
                others.append(one)
        try:
            written = await self._repository.replace([write for _, write in writes])
        except Exception as error:  # noqa: BLE001  # a bug must not block the slots forever
            return self._start_later(batch, error)
        for (one, write), done in zip(writes, written, strict=True):
            if done:
                self._spawn(one, write.job)
            else:
                others.append(one)
        again: list[Start] = []
        for one in others:
            try:
                await self._start_alone(one)
            except Exception as error:  # noqa: BLE001
                again += self._start_later([one], error)
        return again

    def _start_later(self, starts: Sequence[Start], error: Exception) -> list[Start]:
        fault = None if isinstance(error, StoreError) else error
        fields = log_fields(starts[0].job)
        log.warning("Jobs could not be started: %s", error, exc_info=fault, extra=fields)
        now = self._clock()
        # The others are not given back: the store is away, and they come up after `redelivery`.
        kept = [one for one in starts if now < one.give_up_at and not self._stopping]
        for one in starts:
            if one not in kept:
                one.freed()
        return kept

    async def _start_alone(self, one: Start) -> None:
        """Start a job that has changed since it was delivered, unless it has begun elsewhere."""
        one.asked_at = self._clock()
        try:
            started = await self._repository.advance(one.job, partial(self._started, one))
        except (IllegalMove, UnknownJob):
            # The delivery was a duplicate, or the job ended before it began. Or its deadline passed
            # while it waited: the read below records that.
            [found] = await self._repository.get([one.job.id])
            if not holds(found, one.token):
                one.freed()
                return
            started = found  # by this process, in a write whose answer was lost
            self._repository.acknowledge(JobWrite(one.job, found))
        self._spawn(one, started)

    def _started(self, one: Start, job: Job, now: datetime) -> Job:
        alone = job.delivery is Delivery.PULL and lifecycle.is_suspect(job)
        if alone and not one.is_suspect:
            # It was lost elsewhere while it waited here, and another suspect may already run here.
            raise IllegalMove(job.id, "start", job.status, "it must wait until it can run alone")
        lease = Lease(worker=self._worker, token=one.token, until=now + self._settings.lease)
        return lifecycle.start(job, now, lease)

    # running

    def _spawn(self, one: Start, job: Job) -> None:
        """Start the task of an attempt, the only part of it that runs user code."""
        attempt = Attempt(job, one.handler, one.token, self._on_change)
        attempt.renewed(one.asked_at, self._settings.lease)
        left = (lifecycle.attempt_end(job) - self._repository.now()).total_seconds()
        self._look_later(attempt, self._clock() + left)
        one.attempt = attempt
        self._attempts[attempt] = one.freed
        self._feed.listen(job.id, attempt.adopt)
        self.heartbeat.attend(attempt)
        # Interrupted while its start was written: it ends without a task, and is given back.
        if self._stopping or one.unwanted:
            attempt.interrupt(Cause.SHUTDOWN)
            attempt.end(error=JobCancelled(job.id))
            return
        # Not the current context: `launch` is called in that of the request that submits the job.
        context = self._context.copy()
        context.run(set_current_job, job)
        attempt.task = start_task(
            partial(self._handle, attempt),
            self._tasks,
            attempt.end_unbegun,
            name=f"asyncjobs {job.type} {job.id}",
            context=context,
        )

    async def _handle(self, attempt: Attempt) -> None:
        """Run the handler and record on the attempt how it ended; never raises."""
        try:
            result = await self._performed(attempt)
        except BaseException as error:  # noqa: BLE001  # KeyboardInterrupt and SystemExit as well
            attempt.end(error=classified(error))
        else:
            attempt.end(result=result)

    async def _performed(self, attempt: Attempt) -> bytes:
        """Perform the attempt; return when all that it emitted is stored."""
        if attempt.job.attempt > 1 and self._repository.has_output:
            await begin_epoch(self._repository, attempt, self._settings.poll_interval)
        try:
            result = await self._perform(attempt)
        except BaseException as error:
            if attempt.writer is not None:
                await attempt.writer.close(error)
            raise
        if attempt.writer is not None:
            await attempt.writer.close(None)
        return result

    async def _perform(self, attempt: Attempt) -> bytes:
        """Call the handler on the loop, in a thread or in a process; return the result as JSON."""
        job, handler = attempt.job, attempt.handler
        with self._hooks.spans.attempting(job, attempt.told_to_stop) as traceparent:
            if traceparent != job.traceparent:
                job = job.changed(traceparent=traceparent)
            if handler.import_path is not None:
                recorder, sink = partial(self._recorder, attempt), partial(self._writer, attempt)
                work = partial(self.processes.run, handler, job, attempt.gauge, recorder, sink)
                return await _in_thread(attempt, work)
            payload = handler.load_payload(job.payload_json)
            shared = self._resources
            saver, output = partial(self._file_saver, attempt), partial(self._output, attempt)
            context: JobContext[Any] = JobContext(
                job, attempt.gauge, shared.value, shared.queue, saver, output
            )
            value = await _call(handler, payload, context, attempt)
            return handler.dump_result(context.result_of(value))

    def _file_saver(self, attempt: Attempt) -> FileSaver:
        policy, files = attempt.handler.policy, self._repository.files
        recorder = self._recorder(attempt)
        return FileSaver(attempt.job, policy, files, recorder, lambda: attempt.gauge.stopping)

    def _output(self, attempt: Attempt) -> Output:
        return Output(self._writer(attempt), attempt.handler.items, self._loop.native_token)

    def _writer(self, attempt: Attempt) -> OutputWriter:
        if attempt.writer is None:
            pause = self._settings.poll_interval.total_seconds()
            attempt.writer = OutputWriter(
                attempt.holder(), self._repository, self._tasks, pause, self._loop
            )
        return attempt.writer

    def _recorder(self, attempt: Attempt) -> AttemptRecorder:
        pause = self._settings.poll_interval.total_seconds()
        return AttemptRecorder(attempt, self._repository, pause, self._loop)

    #: The watchdog looks for this frame on the stack, and reads its local `job`.
    CALLER: ClassVar = _perform.__code__

    def _interrupt(self, start: Start) -> bool:
        """Interrupt the attempt of a start; return whether its end is still to be recorded.

        Other attempts of the job are left alone: once given back, it may have begun here again.
        """
        # Not written yet, so there is nothing to give back.
        if start in self._starts:
            self._starts.remove(start)
            start.freed()
            return False
        # `_spawn` reads it if the start is being written now.
        start.unwanted = True
        if start.attempt is None:
            return start in self._in_flight
        start.attempt.interrupt(Cause.SHUTDOWN)
        return not start.attempt.left

    # how attempts end

    async def _keep_time(self) -> None:
        """Look at each attempt in time: at its timeout, and repeatedly while it does not stop."""
        while True:
            now = self._clock()
            while self._alarms and self._alarms[0][0] <= now:
                look_at, _, attempt = heappop(self._alarms)
                # Otherwise the attempt has ended, or has a later entry.
                if attempt in self._attempts and attempt.look_at == look_at:
                    self._look_at(attempt, now)
            # Set before the wait: `_look_later` wakes this loop only for an earlier alarm.
            self._wakes_at = self._alarms[0][0] if self._alarms else math.inf
            pause = None if self._wakes_at == math.inf else max(0.0, self._wakes_at - now)
            await self._new_alarm.wait(pause)

    def _look_later(self, attempt: Attempt, look_at: float) -> None:
        """Set when to look at an attempt next."""
        attempt.look_at = look_at
        if len(self._alarms) > 2 * len(self._attempts) + _MAX_STALE_ALARMS:
            # Most attempts end long before their timeout, and leave their alarm in the heap.
            self._alarms = [alarm for alarm in self._alarms if alarm[2] in self._attempts]
            heapify(self._alarms)
        if look_at != math.inf:
            # The count decides between equal times: attempts cannot be compared.
            heappush(self._alarms, (look_at, next(self._alarm_count), attempt))
        if look_at < self._wakes_at:
            self._new_alarm.set()

    def _look_at(self, attempt: Attempt, now: float) -> None:
        """Interrupt an attempt at its timeout; cancel it again if it does not stop."""
        self._look_later(attempt, now + _LOOK_AGAIN_SECONDS)
        over = self._repository.now() >= lifecycle.attempt_end(attempt.job)
        # Its outcome is decided, but a task that still runs keeps the slot.
        if attempt.settled:
            attempt.abandon_task()
            attempt.look_at = math.inf
        # A cancel request waits for the handler, but not beyond its timeout.
        elif attempt.cause is None or (attempt.cause is Cause.CANCEL and over):
            attempt.interrupt(Cause.TIMEOUT)
        else:
            attempt.cancel_task()
            # The patience may be over by now, which decides the outcome.
            self._on_change(attempt)

    def _on_change(self, attempt: Attempt) -> None:
        """Put an attempt into the outbox once its outcome is known; called at every change."""
        if not loop_runs():
            return  # the event loop ended without ending its tasks; the leases will lapse
        if attempt.cause is not None and not attempt.settled:
            self._look_soon(attempt)
        if not attempt.settled:
            self._settle(attempt)
        # A thread that was left behind may end after the outcome is recorded.
        self._free(attempt)

    def _look_soon(self, attempt: Attempt) -> None:
        soon = self._clock() + _LOOK_AGAIN_SECONDS
        if attempt.look_at > soon:
            self._look_later(attempt, soon)

    def _settle(self, attempt: Attempt) -> None:
        facts = self._facts_of(attempt) if attempt.result is None else Facts(result=attempt.result)
        outcome = decide(facts)
        if outcome is None:
            return
        attempt.settled = True
        with suppress(BaseException):  # it formats errors of the application, which may raise
            log_end(attempt.job, facts, outcome)
        if isinstance(outcome, Unrecorded):
            self._leave(attempt)
            return
        # The heartbeat no longer writes reports now, so the outcome carries the last one.
        last = attempt.gauge.news
        # Drawn once: the move may be made several times, and must choose the same delay each time.
        jitter = random.random()  # noqa: S311  # not a secret
        raised = error_to_keep(attempt.job, facts, outcome, self._repository.now())
        attempt.raised = None if raised is None else facts.error
        move = move_of(outcome, token=attempt.token, jitter=jitter, last=last, raised=raised)
        self._outbox.put(attempt, move)

    def _facts_of(self, attempt: Attempt) -> Facts:
        return Facts(
            cause=attempt.cause,
            error=attempt.error,
            in_thread=attempt.in_thread,
            in_process=attempt.handler.import_path is not None,
            cancel_requested=attempt.job.cancel_requested_at is not None,
            attempts_left=lifecycle.has_attempts_left(attempt.job),
            waited=self._clock() - attempt.interrupted_at,
            lease=self._settings.lease.total_seconds(),
        )

    def _leave(self, attempt: Attempt) -> None:
        """Release an attempt whose end is recorded or never will be."""
        self.heartbeat.leave(attempt)
        self._feed.unlisten(attempt.job.id, attempt.adopt)
        # A retry is announced by now, and may be offered here while the slot is still taken; the
        # dispatcher keeps it until the slot is free.
        attempt.left = True
        self._free(attempt)

    def _free(self, attempt: Attempt) -> None:
        if attempt.left and not attempt.working:
            freed = self._attempts.pop(attempt, None)
            if freed is not None:
                # Breaks a reference cycle: the garbage collector is slower than all of this.
                attempt.task = None
                freed()


async def _call(
    handler: Handler[Any, Any], payload: Any, context: JobContext, attempt: Attempt
) -> Any:
    if handler.asynchronous:
        return await call(handler, payload, context)
    value = await _in_thread(attempt, partial(_contained, handler, payload, context))
    if inspect.isawaitable(value):  # a decorator may turn an `async def` into a `def`
        attempt.back_on_the_loop()
        return await value
    return value


async def _in_thread(attempt: Attempt, function: Callable[[], T]) -> T:
    call = in_new_thread(function, f"asyncjobs {attempt.job.id}", attempt.changed)
    attempt.thread = call
    return await call.result()


def _contained(handler: Handler[Any, Any], payload: Any, context: JobContext) -> Any:
    """Call a function in its thread; replace errors that have a meaning for event loops."""
    try:
        return call(handler, payload, context)
    except (Exception, JobCancelled):
        raise
    except BaseException as error:
        raise RuntimeError(f"The handler raised {type(error).__name__}.") from error
