"""One background event loop per process, for the world without one: WSGI, scripts, prefork workers.

Nothing is started before it is needed, and nothing that was started before a fork is used after
it: a copied event loop never runs, and a copied database connection fails silently.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # pyright: ignore[reportUnusedImport]  # see _at_exit
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from threading import Condition, Lock, RLock, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, TypeVarTuple

import anyio
from anyio import to_thread

from asyncjobs.runtime.signals import told_to_stop

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


# Before the interpreter waits for its threads, and before `concurrent.futures`, imported above,
# refuses work, which handlers that are still running may need (reverse order of registration).
# `atexit` comes too late for that, and there is no public hook.
_at_exit: Callable[[Callable[[], None]], object] = getattr(
    threading, "_register_atexit", atexit.register
)


# How long calls of `sync` and an opening of the queue wait for each other at most.
_GATE_SECONDS = 30.0


def portal_for(jobs: AsyncJobs) -> Portal:
    """Return the one portal of a queue, however many apps or prefixes it is mounted on."""
    # Kept with the queue, so that both go together.
    kept = vars(jobs)
    portal: Portal | None = kept.get("_portal")
    return portal or kept.setdefault("_portal", Portal(jobs))


class Portal:
    """Calls coroutine functions of one queue from any thread, opening the queue on first use.

    At the end of the process the queue is drained and closed.
    """

    def __init__(self, jobs: AsyncJobs) -> None:
        self._jobs = jobs
        self._lasting: list[Lasting] = []
        # By process id: a fork copies the parent's entry, which must stay as it is, locks included.
        self._processes: dict[int, _Process] = {}
        self._gates: dict[int, Gate] = {}

    def keep(self, lasting: Lasting) -> None:
        """Begin something with the queue, and end it before the queue is drained."""
        self._lasting.append(lasting)

    def call(self, function: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
        """Call a coroutine function in the background loop and wait for what it returns."""
        return self.start().call(function, *arguments)

    def start(self, *, run_handlers: bool = True) -> LoopThread:
        """Open the queue in this process, where it is not open yet, so that waiting jobs run.

        Without `run_handlers` only to submit, read and wait; a later call may add the handlers.
        Raises what opening the queue raises; the next call tries again.
        """
        process = self._processes.get(os.getpid())
        if process is None:
            process = self._processes.setdefault(os.getpid(), _Process())
        return process.running(self._jobs, self._lasting, run_handlers=run_handlers)

    @property
    def gate(self) -> Gate:
        """What lets calls of `sync` pass in this process, and keeps them from an opening queue."""
        gate = self._gates.get(os.getpid())
        return gate or self._gates.setdefault(os.getpid(), Gate())

    @asynccontextmanager
    async def taken_over(self) -> AsyncGenerator[None]:
        """Keep the queue closed here while it is opened elsewhere in this process, in the block.

        Waits for calls that are under way; those that come meanwhile wait for the end of the block.
        """
        process = self._processes.get(os.getpid())
        if process is not None and process.is_own_thread:
            yield
            return
        gate = self.gate
        if not gate.try_to_shut():
            await to_thread.run_sync(gate.shut)
        try:
            if self.only_submits:
                await to_thread.run_sync(self.close)
            yield
        finally:
            gate.open()

    @property
    def only_submits(self) -> bool:
        """Whether it is open here without handlers, and can be closed for another opening."""
        process = self._processes.get(os.getpid())
        return process is not None and process.only_submits

    def close(self) -> None:
        """Drain and close the queue of this process; a later call opens it again."""
        process = self._processes.pop(os.getpid(), None)
        if process is not None:
            process.close()


class Gate:
    """Passed by calls from threads; shut while the queue changes hands."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._inside = 0
        self._shut = False

    def __enter__(self) -> None:
        """Wait until it is not shut; keep it from being shut during the block."""
        with self._changed:
            if self._shut:
                self._changed.wait_for(lambda: not self._shut, _GATE_SECONDS)
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._inside -= 1
            if self._shut:
                self._changed.notify_all()

    def try_to_shut(self) -> bool:
        """Shut it if nothing is inside; return whether it is shut."""
        with self._changed:
            if self._inside or self._shut:
                return False
            self._shut = True
            return True

    def shut(self) -> None:
        """Shut it when nothing is inside, or after a while."""
        with self._changed:
            self._changed.wait_for(lambda: not self._shut, _GATE_SECONDS)
            self._shut = True
            self._changed.wait_for(lambda: not self._inside, _GATE_SECONDS)

    def open(self) -> None:
        """Let those pass that wait."""
        with self._changed:
            self._shut = False
            self._changed.notify_all()


class Lasting(Protocol):
    """What goes on in the background of a queue, and has to stop before it."""

    def begin(self) -> None:
        """Go on for as long as it may; called in the event loop."""
        ...

    def end(self) -> None:
        """Stop soon; called in the event loop, and may be called twice."""
        ...


class _Process:
    """What one process has of it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        # Set as soon as its thread runs, and when the queue is open in it.
        self._opening: LoopThread | None = None
        self._loop: LoopThread | None = None
        self._signals = ExitStack()
        self._runs_handlers = False

    @property
    def only_submits(self) -> bool:
        return self._loop is not None and not self._runs_handlers

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is in the event loop that this has started."""
        opening = self._opening
        return opening is not None and opening.is_own_thread

    def running(
        self, jobs: AsyncJobs, lasting: Sequence[Lasting], *, run_handlers: bool
    ) -> LoopThread:
        loop = self._loop
        if loop is not None and self._runs_handlers >= run_handlers:
            return loop
        with self._lock:
            if self._loop is None:
                self._opening = loop = LoopThread(jobs, lasting)
                try:
                    loop.start()
                except BaseException:
                    self._opening = None
                    raise
                self._loop = loop
                _at_exit(self.close)
            if run_handlers and not self._runs_handlers:
                self._loop.call(jobs.start_handlers)
                self._runs_handlers = True
                # Heard only where this call is made by the main thread.
                tell = partial(self._loop.call, self._loop.end_lasting)
                self._signals.enter_context(told_to_stop(tell))
            return self._loop

    def close(self) -> None:
        if self._pid != os.getpid():
            return  # the parent's, copied by a fork: not ours to stop
        with self._lock:
            loop, self._loop, self._opening = self._loop, None, None
            self._runs_handlers = False
            self._signals.close()
            if loop is not None:
                loop.stop()


class LoopThread:
    """An asyncio event loop in a thread of its own, with the queue open in it.

    Not anyio's `start_blocking_portal`, which is a generator: in a forked child the copy of it
    would wait, when it is forgotten there, for a thread that the child does not have. And a call
    of its `BlockingPortal` goes to the event loop and back twice.
    """

    def __init__(self, jobs: AsyncJobs, lasting: Sequence[Lasting]) -> None:
        self._jobs = jobs
        self._lasting = lasting
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="asyncjobs", daemon=True)
        self._stop = asyncio.Event()
        # Reentrant, since a signal handler makes calls in the midst of one.
        self._lock = RLock()
        self._calls: set[asyncio.Task[object]] = set()

    def start(self) -> None:
        """Return when the queue is open; raise what opening it raises."""
        self._thread.start()
        try:
            self._opened.result()
        except BaseException:
            self._thread.join()
            raise

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is in this event loop."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
        """Await what a function returns, in this event loop; return or raise what comes of it.

        If the waiting thread is interrupted, the call goes on. Raises `RuntimeError` in the thread
        of the event loop, and when the queue is being closed.
        """
        if self.is_own_thread:
            raise RuntimeError("The thread of the event loop would wait for itself.")
        call = Call(function, *arguments)
        # A call that is let in is begun, and waited for at the end.
        with self._lock:
            if self._loop is None:
                raise RuntimeError("The queue is not open in this event loop.")
            self._loop.call_soon_threadsafe(call.begin, self._calls)
        call.wait()
        return call.result()

    def stop(self) -> None:
        """Drain and close the queue and end the event loop; raise what that raises."""
        with suppress(RuntimeError):  # it has broken off
            self.call(self._begin_to_stop)
        self._thread.join()
        if self._error is not None:
            raise self._error

    async def end_lasting(self) -> None:
        """Let what lasts stop soon."""
        for one in self._lasting:
            one.end()

    async def _begin_to_stop(self) -> None:
        await self.end_lasting()
        self._refuse_calls()
        self._stop.set()

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as error:  # noqa: BLE001  # raised where it can be caught
            self._break_off(error)

    async def _serve(self) -> None:
        try:
            async with self._jobs.open(run_handlers=False):
                for one in self._lasting:
                    one.begin()
                self._loop = asyncio.get_running_loop()
                self._opened.set_result(None)
                await self._stop.wait()
        finally:
            self._refuse_calls()
            await self._end_calls()

    def _refuse_calls(self) -> None:
        with self._lock:
            self._loop = None

    async def _end_calls(self) -> None:
        await asyncio.sleep(0)  # those that were let in before begin
        while self._calls:
            await asyncio.wait(self._calls)

    def _break_off(self, error: BaseException) -> None:
        self._error = error
        if not self._opened.done():
            self._opened.set_exception(error)


class Call(Generic[T]):
    """A call in an asyncio event loop, for which another thread waits.

    What `asyncio.run_coroutine_threadsafe` does, without its two chained futures: a thread that
    waits for a lock is told of the end at half the price of a condition. The call has the context
    of the thread.
    """

    __slots__ = ("_ended", "_function", "_task")

    def __init__(self, function: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> None:
        self._function: Callable[[], Awaitable[T]] = partial(function, *arguments)
        self._task: asyncio.Task[T] | None = None
        self._ended = Lock()
        self._ended.acquire()

    def begin(self, calls: set[asyncio.Task[object]]) -> None:
        """Begin, in the event loop; the call is one of `calls` until it has ended."""
        self._task = task = asyncio.get_running_loop().create_task(self._run())
        calls.add(task)
        task.add_done_callback(calls.discard)
        task.add_done_callback(self._end)

    def wait(self) -> None:
        """Return when the call has ended; the thread may be interrupted meanwhile."""
        self._ended.acquire()

    def result(self) -> T:
        """Return or raise what came of the call; `CancelledError` of `concurrent.futures`."""
        task, self._task = self._task, None
        if task is None:
            raise RuntimeError("The call has not begun, or what came of it was taken.")
        try:
            return task.result()
        except asyncio.CancelledError as error:
            raise concurrent.futures.CancelledError(*error.args) from None
        finally:
            del task  # its error has this frame

    def cancel(self) -> None:
        """Cancel the call if it goes on, in the event loop; nothing must come of it any more."""
        # Its frames are free when it has ended, whoever keeps the traceback of the interruption.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _run(self) -> T:
        return await self._function()

    def _end(self, task: asyncio.Task[T]) -> None:
        # An error counts as seen even if the thread is interrupted before it sees it.
        if not task.cancelled():
            task.exception()
        self._ended.release()
