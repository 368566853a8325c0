"""Calls the callback URLs of jobs that have ended: takes due jobs, sends, records the result.

A job that has ended and still owes its callback is due in a lane of its own. So only processes with
a callback sender take it, and a call delays no other job. A process that dies between the call and
its record leaves the job due: another process calls again.
"""

from __future__ import annotations

import math
from datetime import timedelta
from functools import partial

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core import lifecycle
from asyncjobs.core.job import CALLBACKS_LANE, Job
from asyncjobs.errors import ConfigurationError, StoreError
from asyncjobs.execution.tasks import apart
from asyncjobs.protocols import CallbackResult, CallbackSender
from asyncjobs.records.logging import log, log_fields
from asyncjobs.records.repository import JobWrite, Repository
from asyncjobs.records.waiting import Signal
from asyncjobs.settings import Settings

# Beyond a call's own limit: for the record of its outcome, and for what delays either.
_MARGIN = timedelta(seconds=30)

# Callbacks that no process could send are given up in batches.
_ABANDONED_INTERVAL = timedelta(minutes=1)
_MAX_ABANDONED = 200
_TOO_LATE = "no process sent it in time"


class Callbacks:
    """The loop that sends callbacks: one per process; any number may share a store."""

    def __init__(
        self, repository: Repository, sender: CallbackSender | None, settings: Settings
    ) -> None:
        self._repository = repository
        self._sender = sender
        self._settings = settings
        self._wake = Signal()
        self._ended = Signal()
        self._calls_in_progress = 0
        self._closed = False
        self._tasks: TaskGroup
        self._abandoned_checked_at = -math.inf

    def check(self, url: str) -> None:
        """Raise `InvalidCallback`, or `ConfigurationError` if the queue has no `callbacks`."""
        if self._sender is None:
            raise ConfigurationError(
                "A job names a callback URL: give AsyncJobs `callbacks`, such as Webhooks(...)."
            )
        self._sender.check(url)

    def hint(self, job: Job | None) -> None:
        """Wake the loop if a job owes its callback now. Ends in other processes are polled for."""
        if self._sender is None or job is None or job.callback is None:
            return
        if job.callback.next_at is not None and job.callback.next_at <= self._repository.now():
            self._wake.set()

    async def run(self) -> None:
        """Take due callbacks and send them, until cancelled."""
        self._calls_in_progress = 0
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            while True:
                try:
                    await self._give_up_abandoned()
                    if self._sender is not None:
                        await self._take(self._sender, tasks)
                except StoreError as error:
                    log.warning("The store could not be asked for due callbacks: %s", error)
                await self._wake.wait(self._settings.sweep_interval.total_seconds())

    async def close(self) -> None:
        """Start no more calls; return when those in progress have ended and are recorded."""
        self._closed = True
        while self._calls_in_progress:
            await self._ended.wait()

    async def _take(self, sender: CallbackSender, tasks: TaskGroup) -> None:
        """Start due calls up to the limit; at the limit, the end of one call wakes the loop."""
        room = sender.concurrency - self._calls_in_progress
        if room < 1 or self._closed:
            return
        until = self._repository.now() + 2 * sender.timeout + _MARGIN
        jobs = await self._repository.take([CALLBACKS_LANE], until=until, limit=room)
        for job in jobs:
            self._calls_in_progress += 1
            tasks.start_soon(self._call, sender, job)

    async def _call(self, sender: CallbackSender, job: Job) -> None:
        try:
            await self._send(sender, job)
        except StoreError as error:
            log.warning(
                "The result of a callback was not recorded, so it is called again: %s",
                error,
                extra=log_fields(job),
            )
        except Exception:
            log.exception("The callback sender raised", extra=log_fields(job))
        finally:
            full = self._calls_in_progress == sender.concurrency
            self._calls_in_progress -= 1
            self._ended.set()
            if full:
                self._wake.set()

    async def _send(self, sender: CallbackSender, job: Job) -> None:
        now = self._repository.now()
        late = now >= lifecycle.callback_end(job)
        call = partial(sender.send, job, now=now)
        # In a task of its own: the sender may be the application's.
        sent = (
            CallbackResult(_TOO_LATE)
            if late
            else await apart(call, self._tasks, name="asyncjobs callback")
        )
        await self._record(job, sent)

    async def _record(self, job: Job, result: CallbackResult) -> None:
        now = self._repository.now()
        again_at = None if result.again is None else now + result.again
        called = lifecycle.call_back(job, now, error=result.error, again_at=again_at)
        [done] = await self._repository.replace([JobWrite(job, called)])
        if done:  # otherwise another process has recorded its own call
            _log_call(called)

    async def _give_up_abandoned(self) -> None:
        """Give up callbacks that have been due for longer than `CALLBACK_PATIENCE`."""
        if anyio.current_time() - self._abandoned_checked_at < _ABANDONED_INTERVAL.total_seconds():
            return
        self._abandoned_checked_at = anyio.current_time()
        jobs = await self._repository.take(
            [CALLBACKS_LANE],
            until=self._repository.now() + self._settings.redelivery,
            limit=_MAX_ABANDONED,
            overdue_by=lifecycle.CALLBACK_PATIENCE,
        )
        for job in jobs:
            await self._record(job, CallbackResult(_TOO_LATE))


def _log_call(job: Job) -> None:
    callback = job.callback
    if callback is None or callback.error is None:
        log.info("The callback of job %s was delivered", job.id, extra=log_fields(job))
    elif callback.next_at is not None:
        log.info(
            "The callback of job %s is called again at %s: %s",
            job.id,
            callback.next_at.isoformat(timespec="seconds"),
            callback.error,
            extra=log_fields(job),
        )
    else:
        log.warning(
            "The callback of job %s is given up after %d calls: %s",
            job.id,
            callback.calls,
            callback.error,
            extra=log_fields(job),
        )
