"""Tells callback URLs that their jobs have ended: takes what is due, calls, records how it went.

A job that has ended and still owes its callback is due in a lane of its own, so only processes that
know how to call take it, and a call holds up nobody else. A process that dies in between has
recorded nothing: the job is due again, and its callback is called twice.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from functools import partial

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core import lifecycle
from asyncjobs.core.job import CALLBACKS_LANE, Job
from asyncjobs.errors import ConfigurationError, StoreError
from asyncjobs.execution.tasks import apart
from asyncjobs.protocols import CallbackResult, CallbackSender
from asyncjobs.records.change_feed import Signal
from asyncjobs.records.logging import log, log_fields
from asyncjobs.records.repository import JobWrite, Repository
from asyncjobs.settings import Settings

# Beyond a call's own limit: for the record of its outcome, and for what delays either.
_MARGIN = timedelta(seconds=30)

# How often is looked for callbacks that nobody was there to make, and for how many at a time.
_ABANDONED = timedelta(minutes=1)
_MOST = 200


class Callbacks:
    """One such loop per process; any number of them may share a store."""

    def __init__(
        self, repository: Repository, callback_sender: CallbackSender | None, settings: Settings
    ) -> None:
        self._repository = repository
        self._callback_sender = callback_sender
        self._settings = settings
        self._wake = Signal()
        self._ended = Signal()
        self._under_way = 0
        self._closed = False
        self._tasks: TaskGroup
        self._looked_at_abandoned = -math.inf

    def check(self, url: str) -> None:
        """Raise `InvalidCallback`, or `ConfigurationError` where nobody is called back."""
        if self._callback_sender is None:
            raise ConfigurationError(
                "A job names a callback URL: give AsyncJobs `callbacks`, such as Webhooks(...)."
            )
        self._callback_sender.check(url)

    def hint(self, job: Job | None) -> None:
        """Note that a job may owe its callback; what other processes end is found by polling."""
        if self._callback_sender is None or job is None or job.callback is None:
            return
        if job.callback.next_at is not None and job.callback.next_at <= self._repository.now():
            self._wake.set()

    async def run(self) -> None:
        """Take and call until cancelled."""
        self._under_way = 0
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            while True:
                try:
                    await self._give_up_abandoned()
                    if self._callback_sender is not None:
                        await self._take(self._callback_sender, tasks)
                except StoreError as error:
                    log.warning("Callbacks could not be looked after: %s", error)
                await self._wake.wait(self._settings.sweep_interval.total_seconds())

    async def close(self) -> None:
        """Begin no more calls; return when those under way have ended and are recorded."""
        self._closed = True
        while self._under_way:
            await self._ended.wait()

    async def _take(self, callback_sender: CallbackSender, tasks: TaskGroup) -> None:
        """Begin as many calls as there is room for; where that is all, the end of one wakes us."""
        room = callback_sender.room - self._under_way
        if room < 1 or self._closed:
            return
        until = self._repository.now() + 2 * callback_sender.longest + _MARGIN
        jobs = await self._repository.take([CALLBACKS_LANE], until=until, limit=room)
        for job in jobs:
            self._under_way += 1
            tasks.start_soon(self._call, callback_sender, job)

    async def _call(self, callback_sender: CallbackSender, job: Job) -> None:
        try:
            await self._tell(callback_sender, job)
        except StoreError as error:
            log.warning(
                "A callback's outcome was not recorded, it is called again: %s",
                error,
                extra=log_fields(job),
            )
        except Exception:
            log.exception("A callback could not be called", extra=log_fields(job))
        finally:
            full = self._under_way == callback_sender.room
            self._under_way -= 1
            self._ended.set()
            if full:
                self._wake.set()

    async def _tell(self, callback_sender: CallbackSender, job: Job) -> None:
        now = self._repository.now()
        late = now >= lifecycle.callback_end(job)
        answer = CallbackResult(_TOO_LATE) if late else await self._send(callback_sender, job, now)
        await self._record(job, answer)

    async def _send(
        self, callback_sender: CallbackSender, job: Job, now: datetime
    ) -> CallbackResult:
        """Call in a task of its own: the sender may be the application's."""
        call = partial(callback_sender.tell, job, now=now)
        return await apart(call, self._tasks, name="asyncjobs callback")

    async def _record(self, job: Job, answer: CallbackResult) -> None:
        now = self._repository.now()
        again_at = None if answer.again is None else now + answer.again
        called = lifecycle.call_back(job, now, error=answer.error, again_at=again_at)
        [done] = await self._repository.replace([JobWrite(job, called)])
        if done:  # else another process has recorded a call of its own
            _log_call(called)

    async def _give_up_abandoned(self) -> None:
        """Give up what nobody was there to call for so long that nobody waits for it any more."""
        if anyio.current_time() - self._looked_at_abandoned < _ABANDONED.total_seconds():
            return
        self._looked_at_abandoned = anyio.current_time()
        jobs = await self._repository.take(
            [CALLBACKS_LANE],
            until=self._repository.now() + self._settings.redelivery,
            limit=_MOST,
            overdue_by=lifecycle.CALLBACK_PATIENCE,
        )
        for job in jobs:
            await self._record(job, CallbackResult(_TOO_LATE))


_TOO_LATE = "nobody was there to call it in time"


def _log_call(job: Job) -> None:
    callback = job.callback
    if callback is None or callback.error is None:
        log.info("The callback of job %s was told", job.id, extra=log_fields(job))
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
