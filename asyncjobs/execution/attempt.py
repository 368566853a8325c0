"""One attempt at a job in this process: what is known of it, and whether it is to stop."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from enum import Enum
from typing import Any

import anyio

from asyncjobs.core.job import Job
from asyncjobs.execution.context import Gauge
from asyncjobs.execution.threads import Call

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
