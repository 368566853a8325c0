"""One attempt at a job in this process, and the one heartbeat of all of them."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from enum import Enum
from typing import Any

import anyio

from asyncjobs import lifecycle
from asyncjobs.context import Gauge, progress_of
from asyncjobs.errors import IllegalMove, LostLease, StoreError
from asyncjobs.feed import Signal
from asyncjobs.ledger import Ledger, Step
from asyncjobs.model import Job
from asyncjobs.settings import Settings
from asyncjobs.threads import Call

log = logging.getLogger("asyncjobs")


class Cause(Enum):
    """Why an attempt is broken off."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    LOST = "lost"
    DIED = "died"


class Attempt:
    """What is known here of one running attempt: the job's newest state, and whether to stop."""

    def __init__(self, job: Job, token: str, held_for: timedelta) -> None:
        self.job = job
        self.token = token
        self.gauge = Gauge()
        self.cause: Cause | None = None
        self.thread: Call[Any] | None = None
        self._scope: anyio.CancelScope | None = None
        self._longest = held_for
        self._held_until = 0.0
        self._renew_at = 0.0
        self.renewed(anyio.current_time(), held_for)

    @contextmanager
    def within(self, scope: anyio.CancelScope) -> Generator[None]:
        """Let the handler that runs inside this block be broken off through the scope."""
        self._scope = scope
        if self.cause is not None:
            scope.cancel()
        try:
            yield
        finally:
            self._scope = None

    def adopt(self, job: Job | None) -> None:
        """Take note of a newer state that somebody wrote."""
        if job is None:
            self.interrupt(Cause.LOST)
        elif job.revision > self.job.revision:
            self.job = job
            if job.lease is None or job.lease.token != self.token:
                self.interrupt(Cause.LOST)
            elif job.cancel_requested_at is not None:
                self.interrupt(Cause.CANCEL)

    def interrupt(self, cause: Cause) -> None:
        """Tell the handler to stop; the first cause counts, unless a graver one follows.

        A thread cannot be stopped from outside. On a cancel its end is awaited all the same,
        because `cancelled` means that the work has stopped; for the rest it is left behind.
        """
        if self.cause in (None, Cause.CANCEL) or cause is Cause.LOST:
            self.cause = cause
        self.gauge.stopping = True
        if self._scope is not None and not (self.in_thread and cause is Cause.CANCEL):
            self._scope.cancel()

    @property
    def in_thread(self) -> bool:
        """Whether a thread works on the job at this moment."""
        return self.thread is not None and self.thread.alive

    def told_to_stop(self) -> str | None:
        """Say why the handler is told to stop, None where it is not."""
        if self.cause is not None:
            return self.cause.value
        timed_out = self._scope is not None and self._scope.cancel_called
        return Cause.TIMEOUT.value if timed_out else None

    def back_on_the_loop(self) -> None:
        """Note that what remains of the handler can be cancelled like any task."""
        if self.cause is not None and self._scope is not None:
            self._scope.cancel()

    def renewed(self, asked_at: float, held_for: timedelta) -> None:
        """Note until when the lease holds, counted from before the store was asked.

        Where the clock was set back in between, the difference of two moments is no measure.
        """
        held_for = min(held_for, self._longest)
        self._held_until = asked_at + held_for.total_seconds()
        self._renew_at = asked_at + held_for.total_seconds() / 3

    def wants_renewal(self) -> bool:
        return anyio.current_time() >= self._renew_at

    def lapsed(self) -> bool:
        return anyio.current_time() >= self._held_until


class Heartbeat:
    """Renews the leases of all attempts and writes their progress: one batch per beat."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._attempts: dict[str, Attempt] = {}
        self._wanted = Signal()
        self._asking = False
        self._expected = 0
        self._none = anyio.Event()
        self._none.set()

    def __iter__(self) -> Generator[Attempt]:
        yield from tuple(self._attempts.values())

    def __len__(self) -> int:
        return len(self._attempts)

    def attends(self) -> bool:
        """Tell whether there are attempts."""
        return bool(self._attempts)

    @contextmanager
    def expecting(self) -> Generator[None]:
        """Let `wait_until_none` wait for the block, in which an attempt begins and ends."""
        if not self._expected:
            self._none = anyio.Event()
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            if not self._expected:
                self._none.set()

    @contextmanager
    def attending(self, attempt: Attempt) -> Generator[None]:
        """Keep the attempt's lease inside the block."""
        self._attempts[attempt.token] = attempt
        self._wanted.set()
        try:
            yield
        finally:
            del self._attempts[attempt.token]

    async def wait_until_none(self) -> None:
        """Return when every attempt has recorded its end, also those that were about to begin.

        Threads left behind do not count.
        """
        await self._none.wait()

    async def run(self) -> None:
        """Beat while there are attempts, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            while True:
                if not self._attempts:
                    await self._wanted.wait()
                await anyio.sleep(self._settings.progress.total_seconds())
                try:
                    await self._beat()
                except StoreError as error:
                    log.warning("Leases could not be renewed: %s", error)
                    self._drop_lapsed()
                    await anyio.sleep(self._settings.poll.total_seconds())

    async def _watch(self) -> None:
        """Break off what has lost its lease to a store that does not even refuse."""
        while True:
            await anyio.sleep(self._settings.poll.total_seconds())
            if self._asking:
                self._drop_lapsed()

    async def _beat(self) -> None:
        asked_at = anyio.current_time()
        writes = [write for one in self if (write := self._next_write(one)) is not None]
        if not writes:
            return
        self._asking = True
        try:
            written = await self._ledger.replace([step for _, step in writes])
        finally:
            self._asking = False
        for (attempt, step), done in zip(writes, written, strict=True):
            lease = step.job.lease
            if not done:
                await self._catch_up(attempt)
            elif lease is not None:
                attempt.adopt(step.job)
                attempt.renewed(asked_at, lease.until - self._ledger.now())

    def _next_write(self, attempt: Attempt) -> tuple[Attempt, Step] | None:
        """Make the move that is due: a report where there is news, and the lease's renewal."""
        job, now = attempt.job, self._ledger.now()
        moved = job
        try:
            if (latest := attempt.gauge.unwritten()) is not None:
                attempt.gauge.written = latest
                moved = lifecycle.report(job, progress_of(latest), token=attempt.token)
            elif not attempt.wants_renewal():
                return None
            until = now + self._settings.lease
            renewed = lifecycle.extend(moved, now, token=attempt.token, until=until)
        except (IllegalMove, LostLease):
            return None  # it has ended since
        return attempt, Step(job, renewed)

    async def _catch_up(self, attempt: Attempt) -> None:
        """Learn who wrote in between; a report that was refused goes out with the next beat."""
        attempt.gauge.written = None
        [fresh] = await self._ledger.get([attempt.job.id])
        attempt.adopt(fresh)

    def _drop_lapsed(self) -> None:
        for attempt in self:
            attempt.gauge.written = None
            if attempt.lapsed():
                attempt.interrupt(Cause.LOST)
