"""Where a task waits for the newest state of what it watches, and the iterators on top of it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import Generic, Self, TypeVar

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


class Watching(ABC, Generic[T]):
    """Yields the states that arrive in an inbox.

    An iterator, not an async generator: a loop that ends early need not close it. `wait` and `take`
    are `anext` for thousands of watchers: their tasks await a bare future. They are valid once
    `anext` has returned the first state.
    """

    # Slots save memory.
    __slots__ = ("__weakref__", "_begun", "_ended", "_inbox")

    def __init__(self, inbox: Inbox[T]) -> None:
        self._inbox = inbox
        # Set before the first read: if that is cancelled, `__del__` still leaves.
        self._begun = False
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if not self._begun:
            await self._begin()
        while (state := self.take()) is None:
            await self.wait(None)
        return state

    def wait(self, seconds: float | None) -> Awaitable[None]:
        """Return when there may be a state, after that time, or at `wake`; await it immediately."""
        return self._inbox.wait(seconds)

    def wake(self) -> None:
        """End the current `wait`."""
        self._inbox.wake()

    def take(self) -> T | None:
        """Return the next state, None if none is there; raise `StopAsyncIteration` at the end."""
        state = None if self._ended else self._inbox.take()
        if state is None and (self._ended or self._inbox.ended):
            self._end()
            raise StopAsyncIteration
        return state

    def finish(self) -> None:
        """End the iteration after the state that is already here, even if a task waits for more."""
        self._inbox.put(None)

    async def aclose(self) -> None:
        """Stop watching; `contextlib.aclosing` calls this."""
        self._end()

    def __del__(self) -> None:
        # Not `_end`: the collector may run this while other code iterates over the watchers.
        if self._begun and not self._ended:
            self._leave_later()

    def _end(self) -> None:
        self._ended = True
        self._inbox.wake()
        self._leave()

    @abstractmethod
    async def _begin(self) -> None:
        """Join the source, and set `_begun` first."""

    @abstractmethod
    def _leave(self) -> None:
        """Leave the source; it may never have been joined."""

    @abstractmethod
    def _leave_later(self) -> None:
        """Have the source leave this out soon; safe at any moment, in any thread."""
