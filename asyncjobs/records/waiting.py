"""How one task waits for another: for a signal, or for an answer within a time limit.

Each job passes several of these waits. On asyncio they are plain futures, which cost a tenth of an
event in a cancel scope; on trio they are events in scopes. Other code need not know the difference.
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
    """Wakes the tasks that wait for it; a signal set while no task waits is kept for the next."""

    __slots__ = ("_given", "_wakes")

    def __init__(self) -> None:
        self._given = False
        # One callback per waiting task, mostly one; a tuple, as there may be thousands of signals.
        self._wakes: tuple[Callable[[], None], ...] = ()

    def set(self) -> None:
        self._given = True
        for wake in self._wakes:
            wake()

    async def wait(self, timeout: float | None = None) -> None:
        """Return when the signal is set, or after `timeout` seconds; then reset it."""
        if self._given:
            # Yield anyway: the caller's loop must let other tasks run, and be cancellable.
            await anyio.lowlevel.checkpoint()
        elif (loop := running_asyncio_loop()) is not None:
            await self._wait_for_future(loop.create_future(), loop, timeout)
        else:
            event = anyio.Event()
            with self._waking(event.set), anyio.move_on_after(timeout):
                await event.wait()
        # Reset after the wait: a signal set since the task was woken needs no second wake-up,
        # because the caller has not looked for changes yet.
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
    """A value or an error that one task gives and others wait for; only the first one counts."""

    __slots__ = ("_error", "_traceback", "_value", "_wakes", "given")

    def __init__(self) -> None:
        #: Whether there is an answer.
        self.given = False
        self._value: T | None = None
        self._error: Exception | None = None
        self._traceback: TracebackType | None = None
        self._wakes: tuple[Callable[[], None], ...] = ()

    def succeed(self, value: T) -> None:
        """Answer with a value."""
        if not self.given:
            self._value = value
            self._give()

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        if not self.given:
            self._error, self._traceback = error, error.__traceback__
            self._give()

    def get(self) -> T:
        """Return the value or raise the error of the answer."""
        if self._error is not None:
            # Many callers raise the same error, and each would add its frames to the traceback.
            raise self._error.with_traceback(self._traceback)
        return self._value  # type: ignore[return-value]  # there is an answer

    async def wait(self, seconds: float) -> bool:
        """Wait at most that long for the answer; return whether there is one.

        A caller that is cancelled meanwhile waits as long, then raises its cancellation. If a scope
        of anyio cancelled it and there is an answer, it returns, and is cancelled at its next wait.
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
            # A deadline of -inf means that a scope was cancelled, not the task itself.
            by_scope = anyio.current_effective_deadline() == -math.inf
            # anyio repeats the cancellation until the task leaves the scope, so the rest of the
            # wait is shielded. A shield is slow: only callers that are cancelled use one.
            await self._wait_shielded(timer.when() - loop.time())
            given: bool = self.given  # may have changed during that wait
            # A scope cancels again at the next wait. The task's own cancellation comes only once,
            # and must not be swallowed.
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
    """Keep a reference to a task while it runs: asyncio keeps only a weak one."""
    _running.add(task)
    task.add_done_callback(_running.discard)


def start_call(
    body: Callable[[], Coroutine[Any, Any, None]], end: Callable[[], None], group: TaskGroup
) -> None:
    """Run `body`, which catches its errors, in a task; call `end` if the task is cancelled.

    That may happen before its first step, when the event loop is torn down; then no caller may wait
    for an answer. On asyncio it is a plain task, because a task group does not report this.
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
    """Return the running event loop of asyncio; None in another event loop or outside of any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def call_soon_from_threads() -> Callable[[Callable[[], None]], object]:
    """Return a function with which other threads schedule calls in the current event loop.

    That function raises `RuntimeError` once the event loop is gone.
    """
    loop = running_asyncio_loop()
    if loop is not None:
        return loop.call_soon_threadsafe
    import trio  # noqa: PLC0415  # the only other event loop

    return trio.lowlevel.current_trio_token().run_sync_soon


def event_loop_clock() -> Callable[[], float]:
    """Return the clock of the running event loop, a function that returns seconds.

    It is faster than `anyio.current_time`, which looks up the event loop at each call.
    """
    loop = running_asyncio_loop()
    return anyio.current_time if loop is None else loop.time


def _finish(future: asyncio.Future[None]) -> None:
    # The timer and the signal may both come, and a cancelled task has ended its future.
    if not future.done():
        future.set_result(None)
