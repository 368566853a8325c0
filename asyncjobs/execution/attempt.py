"""One attempt at a job in this process: its state, and whether it must stop."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from typing import Any

import anyio

from asyncjobs.core.handlers import Handler
from asyncjobs.core.job import Job
from asyncjobs.errors import JobCancelled
from asyncjobs.execution.context import Gauge
from asyncjobs.execution.output import Holder, OutputWriter
from asyncjobs.execution.tasks import Task
from asyncjobs.execution.threads import Call
from asyncjobs.records.repository import JobWrite


class Cause(Enum):
    """Why an attempt must stop."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    LOST = "lost"
    DIED = "died"


class Attempt:
    """One running attempt: the job's newest state, and whether the handler must stop.

    The handler runs in `task`, and for a `def` also in `thread`. Its outcome is `result` or
    `error`; both are None until the task has ended.
    """

    def __init__(
        self,
        job: Job,
        handler: Handler[Any, Any],
        token: str,
        on_change: Callable[[Attempt], None],
    ) -> None:
        self.job = job
        self.handler = handler
        self.token = token
        self.gauge = Gauge()
        self.cause: Cause | None = None
        self.task: Task | None = None
        self.thread: Call[Any] | None = None
        self.result: bytes | None = None
        self.error: BaseException | None = None
        #: The error that decided its outcome, if one did.
        self.raised: BaseException | None = None
        #: When to look at it next, by the event loop's clock: at its timeout, later while it stops.
        self.look_at = float("inf")
        #: When the current `cause` was set, by the event loop's clock.
        self.interrupted_at = 0.0
        #: `settled` once its outcome is decided; `left` once that is recorded or never will be.
        self.settled = False
        self.left = False
        #: Writes what its handler emits; None while that is nothing.
        self.writer: OutputWriter | None = None
        #: The outcome as last sent to the store, whose answer may have been lost.
        self.sent: JobWrite | None = None
        self._on_change = on_change
        self._held_until = 0.0
        self._renew_at = 0.0

    @property
    def task_ended(self) -> bool:
        """Whether the handler's task has ended; its thread may still run."""
        return self.result is not None or self.error is not None

    @property
    def in_thread(self) -> bool:
        """Whether a thread works on the job now."""
        return self.thread is not None and self.thread.alive

    @property
    def working(self) -> bool:
        """Whether the handler still works, in its task or in a thread."""
        return not self.task_ended or self.in_thread

    def end(self, *, result: bytes | None = None, error: BaseException | None = None) -> None:
        """Record how the task ended; only the first call counts."""
        if self.task_ended:
            return
        if self.settled:
            # The error of an abandoned task is of no use, and its traceback would keep the
            # handler's coroutine until a garbage collection, maybe after the event loop's end.
            result, error = None, JobCancelled(self.job.id)
        self.result, self.error = result, error
        self.changed()

    def end_unbegun(self) -> None:
        """Record the end of a task that was cancelled before its first step."""
        if not self.task_ended:
            self.end(error=JobCancelled(self.job.id))

    def changed(self) -> None:
        """Notify the runtime of a change, such as the end of a thread."""
        self._on_change(self)

    def adopt(self, job: Job | None) -> None:
        """Take over a newer state that another process or task wrote."""
        if job is None:
            self.interrupt(Cause.LOST)
        # The feed also announces older states, which were read before the latest write.
        elif job.revision > self.job.revision:
            self.job = job
            # Without its lease, the attempt can no longer write: another one may have the job.
            if job.lease is None or job.lease.token != self.token:
                self.interrupt(Cause.LOST)
            elif job.cancel_requested_at is not None:
                self.interrupt(Cause.CANCEL)

    def interrupt(self, cause: Cause) -> None:
        """Ask the handler to stop; the first cause counts, unless a more serious one follows.

        A thread cannot be stopped from outside. After a cancel request its end is awaited anyway,
        because `cancelled` means that the work has stopped; otherwise it is left behind.
        """
        if self.settled:
            return
        # A cancel request may wait forever, so every other cause replaces it. A lost lease
        # replaces all of them, since then no outcome can be written.
        if self.cause in (None, Cause.CANCEL) or cause is Cause.LOST:
            self.cause = cause
            self.interrupted_at = anyio.current_time()
        self.gauge.stopping = True
        self.cancel_task()
        self.changed()

    def cancel_task(self) -> None:
        """Cancel the handler's task, unless it waits for a thread that must end by itself."""
        if self.task is None or self.task_ended:
            return
        # A cancelled task would leave its thread behind, and the work would go on.
        if not (self.in_thread and self.cause is Cause.CANCEL):
            self.task.cancel()

    def abandon_task(self) -> None:
        """End the handler's task by force, if it still runs."""
        if self.task is not None and not self.task_ended:
            self.task.abandon()

    def told_to_stop(self) -> str | None:
        """Return why the handler must stop; None if it need not."""
        return None if self.cause is None else self.cause.value

    def back_on_the_loop(self) -> None:
        """Note that the handler continues as a coroutine, which can be cancelled."""
        # A cancel request during the thread's work has not reached the task.
        if self.cause is not None:
            self.cancel_task()

    def renewed(self, asked_at: float, held_for: timedelta) -> None:
        """Record until when the lease holds, counted from before the store was asked."""
        # From before: the lease must never seem to hold longer here than it does in the store.
        self._held_until = asked_at + held_for.total_seconds()
        self._renew_at = asked_at + held_for.total_seconds() / 3

    def wants_renewal(self) -> bool:
        """Whether a third of the lease has passed."""
        return anyio.current_time() >= self._renew_at

    def holder(self) -> Holder:
        """Return what the writer of its output must know."""
        return Holder(
            self.job,
            self.handler.policy,
            self.lapsed,
            lambda: self.gauge.stopping,
            lambda: self.interrupt(Cause.LOST),
        )

    def lapsed(self) -> bool:
        """Whether the lease has certainly lapsed."""
        return anyio.current_time() >= self._held_until
