"""Runs functions in threads that need not be waited for.

A framework's thread pool does not suit jobs: it has few threads, and the interpreter waits for them
at exit. A handler that never ends must not keep a server from stopping, so these are daemons.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar, cast

import anyio

from asyncjobs.records.waiting import call_soon_from_threads

T = TypeVar("T")


class Call(Generic[T]):
    """One call of a function in another thread, seen from the event loop."""

    def __init__(self, function: Callable[[], T], on_end: Callable[[], None] | None = None) -> None:
        self._function = function
        self._on_end = on_end
        self._ended = anyio.Event()
        self._call_soon = call_soon_from_threads()
        self._value: T | None = None
        self._error: BaseException | None = None

    async def result(self) -> T:
        """Return the function's value or raise its error; it runs on if the caller is cancelled."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    async def ended(self) -> None:
        """Wait until the function has returned or raised."""
        await self._ended.wait()

    @property
    def alive(self) -> bool:
        """Whether the function still runs."""
        return not self._ended.is_set()

    def run(self, then: Callable[[], None] | None = None) -> None:
        """Make the call in the other thread; `then` is called before the end is reported."""
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001  # it goes to the caller
            self._error = error
        if then is not None:
            then()
        try:
            self._call_soon(self._note_end)
        except RuntimeError:
            return  # the event loop is gone, and its tasks with it

    def _note_end(self) -> None:
        # Set first: `on_end` asks whether the thread is alive.
        self._ended.set()
        if self._on_end is not None:
            self._on_end()


def in_new_thread(
    function: Callable[[], T], name: str, on_end: Callable[[], None] | None = None
) -> Call[T]:
    """Call the function in a thread of its own, with the current context variables.

    `on_end` is called in the event loop when the function has returned or raised.
    """
    call = Call(function, on_end)
    context = contextvars.copy_context()
    Thread(target=context.run, args=(call.run,), name=name, daemon=True).start()
    return call


class ThreadQueue:
    """One thread that makes one call after the other."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        # Two counters, each written by one thread only, so they need no lock.
        self._asked = 0
        self._done = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a call waits or runs, even if its caller is gone."""
        return self._asked != self._done

    async def call(self, function: Callable[[], T]) -> T:
        """Make a call; even a cancelled caller waits for its end."""
        call = Call(function)
        self._asked += 1
        self._calls.put(call)
        with anyio.CancelScope(shield=True):
            await call.ended()
        return await call.result()

    def close(self) -> None:
        """End the thread after the calls made so far."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run(self._count)

    def _count(self) -> None:
        self._done += 1
