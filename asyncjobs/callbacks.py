"""Tells callback URLs that their jobs have ended: takes what is due, calls, records how it went.

A job that has ended and still owes its callback is due in a lane of its own, so only processes that
know how to call take it, and a call holds up nobody else. A process that dies in between has
recorded nothing: the job is due again, and its callback is called twice.
"""

from __future__ import annotations

import logging
import math
from datetime import timedelta

import anyio
from anyio.abc import TaskGroup

from asyncjobs import lifecycle
from asyncjobs.errors import ConfigurationError, StoreError
from asyncjobs.feed import Signal
from asyncjobs.ledger import Ledger, Step
from asyncjobs.logs import log_fields
from asyncjobs.model import CALLBACKS, Job
from asyncjobs.protocols import Answer, Messenger
from asyncjobs.settings import Settings

log = logging.getLogger("asyncjobs")

# Beyond a call's own limit: for the record of its outcome, and for what delays either.
_MARGIN = timedelta(seconds=30)

# How often is looked for callbacks that nobody was there to make, and for how many at a time.
_ABANDONED = timedelta(minutes=1)
_MOST = 200


class Callbacks:
    """One such loop per process; any number of them may share a store."""

    def __init__(self, ledger: Ledger, messenger: Messenger | None, settings: Settings) -> None:
        self._ledger = ledger
        self._messenger = messenger
        self._settings = settings
        self._wake = Signal()
        self._ended = Signal()
        self._under_way = 0
        self._closed = False
        self._looked_at_abandoned = -math.inf

    def check(self, url: str) -> None:
        """Raise `InvalidCallback`, or `ConfigurationError` where nobody is called back."""
        if self._messenger is None:
            raise ConfigurationError(
                "A job names a callback URL: give AsyncJobs `callbacks`, such as Webhooks(...)."
            )
        self._messenger.check(url)

    def hint(self, job: Job | None) -> None:
        """Note that a job may owe its callback; what other processes end is found by polling."""
        if self._messenger is None or job is None or job.callback is None:
            return
        if job.callback.next_at is not None and job.callback.next_at <= self._ledger.now():
            self._wake.set()

    async def run(self) -> None:
        """Take and call until cancelled."""
        self._under_way = 0
        async with anyio.create_task_group() as tasks:
            while True:
                try:
                    await self._give_up_abandoned()
                    if self._messenger is not None:
                        await self._take(self._messenger, tasks)
                except StoreError as error:
                    log.warning("Callbacks could not be looked after: %s", error)
                await self._wake.wait(self._settings.sweep.total_seconds())

    async def close(self) -> None:
        """Begin no more calls; return when those under way have ended and are recorded."""
        self._closed = True
        while self._under_way:
            await self._ended.wait()

    async def _take(self, messenger: Messenger, tasks: TaskGroup) -> None:
        """Begin as many calls as there is room for; where that is all, the end of one wakes us."""
        room = messenger.room - self._under_way
        if room < 1 or self._closed:
            return
        until = self._ledger.now() + 2 * messenger.longest + _MARGIN
        jobs = await self._ledger.take([CALLBACKS], until=until, limit=room)
        for job in jobs:
            self._under_way += 1
            tasks.start_soon(self._call, messenger, job)

    async def _call(self, messenger: Messenger, job: Job) -> None:
        try:
            await self._tell(messenger, job)
        except StoreError as error:
            log.warning(
                "A callback's outcome was not recorded, it is called again: %s",
                error,
                extra=log_fields(job),
            )
        except Exception:
            log.exception("A callback could not be called", extra=log_fields(job))
        finally:
            full = self._under_way == messenger.room
            self._under_way -= 1
            self._ended.set()
            if full:
                self._wake.set()

    async def _tell(self, messenger: Messenger, job: Job) -> None:
        now = self._ledger.now()
        late = now >= lifecycle.callback_end(job)
        answer = Answer(_TOO_LATE) if late else await messenger.tell(job, now=now)
        await self._record(job, answer)

    async def _record(self, job: Job, answer: Answer) -> None:
        now = self._ledger.now()
        again_at = None if answer.again is None else now + answer.again
        called = lifecycle.call_back(job, now, error=answer.error, again_at=again_at)
        [done] = await self._ledger.replace([Step(job, called)])
        if done:  # else another process has recorded a call of its own
            _log_call(called)

    async def _give_up_abandoned(self) -> None:
        """Give up what nobody was there to call for so long that nobody waits for it any more."""
        if anyio.current_time() - self._looked_at_abandoned < _ABANDONED.total_seconds():
            return
        self._looked_at_abandoned = anyio.current_time()
        jobs = await self._ledger.take(
            [CALLBACKS],
            until=self._ledger.now() + self._settings.redelivery,
            limit=_MOST,
            overdue_by=lifecycle.CALLBACK_PATIENCE,
        )
        for job in jobs:
            await self._record(job, Answer(_TOO_LATE))


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
