"""How one task waits for another: for a signal, or for an answer within a time.

Each job passes several of these waits. On asyncio they are plain futures, which cost a tenth of an
event inside a cancel scope; trio keeps the portable way. Nothing else needs to know the difference.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

T = TypeVar("T")


class Signal:
    """Wakes the tasks that wait for it; a signal given while none waits is kept for the next."""

    __slots__ = ("_given", "_wakes")

    def __init__(self) -> None:
        self._given = False
        # What wakes those that wait: mostly one, and there may be thousands of signals.
        self._wakes: tuple[Callable[[], None], ...] = ()

    def set(self) -> None:
        self._given = True
        for wake in self._wakes:
            wake()

    async def wait(self, timeout: float | None = None) -> None:
        """Return at the signal, or after `timeout` seconds."""
        if self._given:
            await anyio.lowlevel.checkpoint()
        elif (loop := running_asyncio_loop()) is not None:
            await self._wait_for_future(loop.create_future(), loop, timeout)
        else:
            event = anyio.Event()
            with self._waking(event.set), anyio.move_on_after(timeout):
                await event.wait()
        self._given = False

    async def _wait_for_future(
        self, future: asyncio.Future[None], loop: asyncio.AbstractEventLoop, timeout: float | None
    ) -> None:
        with self._waking(partial(_finish, future)):
            if timeout is None:
                await future
                return
            timer = loop.call_later(timeout, _finish, future)
            try:
                await future
            finally:
                timer.cancel()

    @contextmanager
    def _waking(self, wake: Callable[[], None]) -> Generator[None]:
        self._wakes = (*self._wakes, wake)
        try:
            yield
        finally:
            self._wakes = tuple(one for one in self._wakes if one is not wake)


class Answer(Generic[T]):
    """What tasks wait for and another one gives, once; the first counts."""

    __slots__ = ("_error", "_traceback", "_value", "_wakes", "given")

    def __init__(self) -> None:
        #: Whether it was given.
        self.given = False
        self._value: T | None = None
        self._error: Exception | None = None
        self._traceback: TracebackType | None = None
        self._wakes: tuple[Callable[[], None], ...] = ()

    def succeed(self, value: T) -> None:
        """Give a value."""
        if not self.given:
            self._value = value
            self._give()

    def fail(self, error: Exception) -> None:
        """Give an error."""
        if not self.given:
            self._error, self._traceback = error, error.__traceback__
            self._give()

    def get(self) -> T:
        """Return the value that was given, or raise the error."""
        if self._error is not None:
            # One error for many callers: each would add its own frames to the traceback.
            raise self._error.with_traceback(self._traceback)
        return self._value  # type: ignore[return-value]  # it was given

    async def wait(self, seconds: float) -> bool:
        """Wait for it, so long at most; return whether it was given.

        A caller that is cancelled meanwhile waits as long. Then its cancellation comes; one by a
        scope of anyio only where it waits next, so that it learns of what was given.
        """
        if self.given:
            return True
        loop = running_asyncio_loop()
        if loop is None:
            await self._wait_shielded(seconds)
            return self.given
        future: asyncio.Future[None] = loop.create_future()
        self._wakes += (partial(_finish, future),)
        timer = loop.call_later(seconds, _finish, future)
        try:
            await future
        except asyncio.CancelledError:
            by_scope = anyio.current_effective_deadline() == -math.inf
            # Only now a scope is worth its price. Without one, anyio would cancel again and again.
            await self._wait_shielded(timer.when() - loop.time())
            given: bool = self.given  # by now, perhaps
            if not (given and by_scope):
                raise
        finally:
            timer.cancel()
        return self.given

    async def _wait_shielded(self, seconds: float) -> None:
        event = anyio.Event()
        self._wakes += (event.set,)
        if not self.given:
            with anyio.move_on_after(seconds, shield=True):
                await event.wait()

    def _give(self) -> None:
        self.given = True
        for wake in self._wakes:
            wake()


_running: set[asyncio.Task[None]] = set()


def keep_until_done(task: asyncio.Task[None]) -> None:
    """Keep a task for as long as it runs: asyncio keeps only a weak reference."""
    _running.add(task)
    task.add_done_callback(_running.discard)


def start_call(
    body: Callable[[], Coroutine[Any, Any, None]], end: Callable[[], None], group: TaskGroup
) -> None:
    """Run `body`, which catches its errors, in a task; call `end` if the task is cancelled.

    That may be before its first step, as the event loop is torn down: nobody may wait for an answer
    then. On asyncio it is a plain task, since a group would not tell of that.
    """
    loop = running_asyncio_loop()
    if loop is None:
        group.start_soon(body)
        return

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled():
            end()

    task = loop.create_task(body())
    keep_until_done(task)
    task.add_done_callback(ended)


def running_asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """Return asyncio's event loop if this is it, None in another one or in none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def call_soon_from_threads() -> Callable[[Callable[[], None]], object]:
    """Return what lets another thread call something in the present event loop.

    It raises `RuntimeError` when that event loop is gone.
    """
    loop = running_asyncio_loop()
    if loop is not None:
        return loop.call_soon_threadsafe
    import trio  # noqa: PLC0415  # the only other event loop

    return trio.lowlevel.current_trio_token().run_sync_soon


def event_loop_clock() -> Callable[[], float]:
    """Return what tells the time of the running event loop, in seconds.

    `anyio.current_time` tells the same, and looks for the event loop at each call.
    """
    loop = running_asyncio_loop()
    return anyio.current_time if loop is None else loop.time


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
