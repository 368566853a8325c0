"""Where a task waits for the newest state of what it watches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Generic, TypeVar

from asyncjobs.core.job import Job
from asyncjobs.records.waiting import Signal, running_asyncio_loop

T = TypeVar("T")


class Inbox(Generic[T]):
    """Holds only the newest state, so a slow reader costs no memory."""

    __slots__ = ("_new", "_timer", "_waiting", "ended")

    def __init__(self) -> None:
        self._new: T | None = None
        self._waiting: asyncio.Future[None] | Signal | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Whether no more states will come.
        self.ended = False

    @property
    def is_empty(self) -> bool:
        """Whether there is no state yet and more may come."""
        return self._new is None and not self.ended

    def put(self, state: T | None) -> None:
        """Replace the state; None means that no more will come."""
        if state is None:
            self.ended = True
        else:
            self._new = state
        self.wake()

    def take(self) -> T | None:
        """Return the newest state; None if it was already taken."""
        state, self._new = self._new, None
        return state

    def wait(self, seconds: float | None) -> Awaitable[None]:
        """Return when it is no longer empty, or after that time; await it immediately."""
        if self._timer is not None:
            self.wake()  # a cancelled wait left its timer, which would end this wait too early
        loop = running_asyncio_loop()
        if loop is None:
            self._waiting = signal = Signal()
            return signal.wait(seconds)
        # The bare future: a coroutine around it takes half as much memory again.
        self._waiting = future = loop.create_future()
        if seconds is not None:
            self._timer = loop.call_later(seconds, self.wake)
        return future

    def wake(self) -> None:
        """End the wait."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        waiting, self._waiting = self._waiting, None
        if isinstance(waiting, Signal):
            waiting.set()
        # A future whose task was cancelled is done, and would raise.
        elif waiting is not None and not waiting.done():
            waiting.set_result(None)


class JobInbox(Inbox[Job]):
    """An inbox for the states of one job, which ignores states that are not newer."""

    __slots__ = ("_version",)

    def __init__(self) -> None:
        super().__init__()
        # The newest version that was put here, read or not: older states may be announced later.
        self._version = 0

    def put(self, state: Job | None) -> None:
        """Replace the state if this one is newer; None means that no more will come."""
        if state is None:
            self.ended = True
        elif state.version > self._version:
            self._new, self._version = state, state.version
        else:
            return
        self.wake()
