"""Calls the callback URLs of jobs that have ended: takes due jobs, sends, records the result.

An ended job with an unsent callback is due in a separate lane. So only processes with a callback
sender take it, and a call delays no other job. If a process dies between the call and its record,
the job stays due and another process calls again.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from urllib.parse import urlsplit

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

# The share of a call's time limit for which its job is held. During the call, the hold is renewed
# after each third of that. If the process dies, another process calls within the limit.
_HOLD_SHARE = 1 / 2
_MIN_HOLD = timedelta(seconds=5)

# A host that has not answered a call for this long must not delay calls to others.
_SLOW_SECONDS = 1.0
# The limit of waiting calls to such a host, as a multiple of the calls made at the same time.
_READY_FACTOR = 4

# Callbacks that no process could send are given up in batches.
_ABANDONED_INTERVAL = timedelta(minutes=1)
_MAX_ABANDONED = 200
_TOO_LATE = "no process sent it in time"


@dataclass(slots=True)
class _Call:
    """A job that this process has taken to call its URL; times are those of the event loop."""

    job: Job
    host: str
    hold_at: float
    began_at: float = math.inf


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
        self._in_progress: list[_Call] = []
        # Taken from the store, and waiting for a free place.
        self._ready: list[_Call] = []
        # When the first of the jobs that were taken and dropped again is due in the store.
        self._due_again_at = math.inf
        self._closed = False
        self._tasks: TaskGroup
        self._abandoned_checked_at = -math.inf

    def check(self, url: str) -> None:
        """Raise `InvalidCallback`, or `ConfigurationError` if the queue has no `callbacks`."""
        if self._sender is None:
            raise ConfigurationError(
                "A job has a callback URL: set `callbacks` of AsyncJobs, such as Webhooks(...)."
            )
        self._sender.check(url)

    def hint(self, job: Job | None) -> None:
        """Wake the loop if a job's callback is due now. Jobs of other processes are polled for."""
        if self._sender is None or job is None or job.callback is None:
            return
        if job.callback.next_at is not None and job.callback.next_at <= self._repository.now():
            self._wake.set()

    async def run(self) -> None:
        """Take due callbacks and send them, until cancelled."""
        self._in_progress, self._ready, self._due_again_at = [], [], math.inf
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            while True:
                try:
                    await self._give_up_abandoned()
                    if self._sender is not None:
                        await self._take(self._sender)
                except StoreError as error:
                    log.warning("Due callbacks could not be read from the store: %s", error)
                await self._wake.wait(self._pause())

    async def close(self) -> None:
        """Start no more calls; return when those in progress have ended and are recorded."""
        self._closed = True
        while self._in_progress:
            await self._ended.wait()

    def _pause(self) -> float:
        """Return how long to wait before taking due callbacks again, in seconds."""
        pause = self._settings.sweep_interval.total_seconds()
        if self._ready:
            pause = min(pause, _SLOW_SECONDS)
        return max(0.0, min(pause, self._due_again_at - anyio.current_time()))

    async def _take(self, sender: CallbackSender) -> None:
        """Start due calls up to the limits; at a limit, the end of one call wakes the loop."""
        hold = _hold(sender)
        if self._due_again_at <= anyio.current_time():
            self._due_again_at = math.inf
        while not self._closed:
            self._start_ready(sender)
            # Waiting calls go first, unless their host is slow to answer.
            room = sender.concurrency - len(self._in_progress)
            if room < 1 or not all(self._is_slow(call.host) for call in self._ready):
                return
            jobs = await self._repository.take(
                [CALLBACKS_LANE], until=self._repository.now() + hold, limit=room
            )
            hold_at = anyio.current_time() + hold.total_seconds() / 3
            self._ready += [_Call(job, _host_of(job), hold_at) for job in jobs]
            if len(jobs) < room:
                self._start_ready(sender)
                return

    def _start_ready(self, sender: CallbackSender) -> None:
        """Start the calls that have room, and leave to the store those that would wait for long."""
        now, kept = anyio.current_time(), list[_Call]()
        third = _hold(sender).total_seconds() / 3
        calls = Counter(call.host for call in self._in_progress)
        ready = Counter[str]()
        most_ready = _READY_FACTOR * sender.host_concurrency
        for call in self._ready:
            room = len(self._in_progress) < sender.concurrency
            lapses = now - call.hold_at > third
            if not lapses and room and calls[call.host] < sender.host_concurrency:
                calls[call.host] += 1
                call.began_at = now
                self._in_progress.append(call)
                self._tasks.start_soon(self._call, sender, call)
            elif not lapses and (ready[call.host] < most_ready or not self._is_slow(call.host)):
                ready[call.host] += 1
                kept.append(call)
            else:
                self._due_again_at = min(self._due_again_at, call.hold_at + 2 * third)
        self._ready = kept

    def _is_slow(self, host: str) -> bool:
        """Return whether a call to a host has waited long for its answer."""
        began = min((it.began_at for it in self._in_progress if it.host == host), default=math.inf)
        return anyio.current_time() - began >= _SLOW_SECONDS

    async def _call(self, sender: CallbackSender, call: _Call) -> None:
        try:
            await self._send(sender, call)
        except StoreError as error:
            log.warning(
                "The result of a callback was not stored; it will be called again: %s",
                error,
                extra=log_fields(call.job),
            )
        except Exception:
            log.exception("The callback sender raised an exception", extra=log_fields(call.job))
        finally:
            of_host = sum(it.host == call.host for it in self._in_progress)
            full = (
                len(self._in_progress) >= sender.concurrency or of_host >= sender.host_concurrency
            )
            self._in_progress.remove(call)
            self._ended.set()
            if full or self._ready:
                self._wake.set()

    async def _send(self, sender: CallbackSender, call: _Call) -> None:
        now = self._repository.now()
        if now >= lifecycle.callback_end(call.job):
            await self._record(call.job, CallbackResult(_TOO_LATE))
            return
        ended, results, errors = anyio.Event(), list[CallbackResult](), list[Exception]()

        async def send() -> None:
            try:
                # A task of its own, as the sender may be the application's.
                made = partial(sender.send, call.job, now=now)
                results.append(await apart(made, self._tasks, name="asyncjobs callback"))
            except Exception as error:  # noqa: BLE001  # raised below
                errors.append(error)
            finally:
                ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            while not ended.is_set():
                with anyio.move_on_after(max(0.0, call.hold_at - anyio.current_time())):
                    await ended.wait()
                if not ended.is_set():
                    await self._hold_on(sender, call)
        if errors:
            raise errors[0]
        await self._record(call.job, results[0])

    async def _hold_on(self, sender: CallbackSender, call: _Call) -> None:
        """Renew the hold of a call in progress. If that fails, the call may be made twice."""
        hold = _hold(sender)
        call.hold_at = anyio.current_time() + hold.total_seconds() / 3
        held = lifecycle.hold_callback(call.job, self._repository.now() + hold)
        try:
            [done] = await self._repository.replace([JobWrite(call.job, held)])
        except StoreError as error:
            log.debug("A callback in progress could not be reserved: %s", error)
        else:
            if done:
                call.job = held
            else:  # another process has taken it
                call.hold_at = math.inf

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


def _hold(sender: CallbackSender) -> timedelta:
    return max(sender.timeout * _HOLD_SHARE, _MIN_HOLD)


def _host_of(job: Job) -> str:
    return urlsplit(job.callback_url or "").hostname or ""


def _log_call(job: Job) -> None:
    callback = job.callback
    if callback is None or callback.error is None:
        log.info("The callback of job %s was delivered", job.id, extra=log_fields(job))
    elif callback.next_at is not None:
        log.info(
            "The callback of job %s failed and is called again at %s: %s",
            job.id,
            callback.next_at.isoformat(timespec="seconds"),
            callback.error,
            extra=log_fields(job),
        )
    else:
        log.warning(
            "The callback of job %s failed and is given up after %d calls: %s",
            job.id,
            callback.calls,
            callback.error,
            extra=log_fields(job),
        )
