"""One background event loop per process, for programs without one: WSGI, scripts, prefork workers.

Nothing is started before it is needed. Nothing started before a fork is used after it: a copied
event loop never runs, and a copied database connection fails silently.
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

from asyncjobs.records.logging import log
from asyncjobs.runtime.signals import told_to_stop

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


# Runs before the interpreter waits for its threads, and before `concurrent.futures`, imported
# above, refuses new work, which running handlers may need (callbacks run in reverse order of
# registration). `atexit` runs too late for that, and there is no public hook.
_at_exit: Callable[[Callable[[], None]], object] = getattr(
    threading, "_register_atexit", atexit.register
)


# How long calls of `sync` and an opening of the queue wait for each other at most.
_GATE_SECONDS = 30.0

# How often a waiting thread looks whether the event loop was closed.
_LOOK_SECONDS = 1.0


def portal_for(jobs: AsyncJobs) -> Portal:
    """Return the only portal of a queue, however many apps or prefixes it is mounted on."""
    # Stored in the queue's attributes, so that both are garbage collected together.
    kept = vars(jobs)
    portal: Portal | None = kept.get("_portal")
    return portal or kept.setdefault("_portal", Portal(jobs))


class Portal:
    """Calls coroutine functions of one queue from any thread, opening the queue on first use.

    When the process ends, the queue is drained and closed.
    """

    def __init__(self, jobs: AsyncJobs) -> None:
        self._jobs = jobs
        self._lasting: list[Lasting] = []
        # By process id. A fork copies the parent's entry, which must not be touched, locks
        # included.
        self._processes: dict[int, _Process] = {}
        self._gates: dict[int, Gate] = {}

    def keep(self, lasting: Lasting) -> None:
        """Begin a background activity with the queue, and end it before the queue is drained."""
        self._lasting.append(lasting)

    def call(self, function: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
        """Run a coroutine function in the background loop and return its result."""
        return self.start().call(function, *arguments)

    def start(self, *, run_handlers: bool = True) -> LoopThread:
        """Open the queue in this process if it is not open yet, so that waiting jobs run.

        Without `run_handlers` it only submits, reads and waits; a later call may start the
        handlers. Raises what opening the queue raises; the next call tries again.
        """
        process = self._processes.get(os.getpid())
        if process is None:
            process = self._processes.setdefault(os.getpid(), _Process())
        return process.running(self._jobs, self._lasting, run_handlers=run_handlers)

    @property
    def gate(self) -> Gate:
        """The gate of this process, which separates calls of `sync` from another opening."""
        gate = self._gates.get(os.getpid())
        return gate or self._gates.setdefault(os.getpid(), Gate())

    @asynccontextmanager
    async def taken_over(self) -> AsyncGenerator[None]:
        """Keep the queue closed here while it is opened elsewhere in this process, in the block.

        Waits for calls in progress; later calls wait for the end of the block.
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
    """Entered by calls from threads; shut while the queue is opened elsewhere."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._inside = 0
        self._shut = False

    def __enter__(self) -> None:
        """Wait until the gate is open, and keep it from being shut during the block."""
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
        """Shut the gate if no call is inside; return whether it is shut."""
        with self._changed:
            if self._inside or self._shut:
                return False
            self._shut = True
            return True

    def shut(self) -> None:
        """Shut the gate when no call is inside, or after a while."""
        with self._changed:
            self._changed.wait_for(lambda: not self._shut, _GATE_SECONDS)
            self._shut = True
            self._changed.wait_for(lambda: not self._inside, _GATE_SECONDS)

    def open(self) -> None:
        """Open the gate for the waiting calls."""
        with self._changed:
            self._shut = False
            self._changed.notify_all()


class Lasting(Protocol):
    """A background activity of a queue that must stop before the queue closes."""

    def begin(self) -> None:
        """Start; called in the event loop."""
        ...

    def end(self) -> None:
        """Stop soon; called in the event loop, and may be called twice."""
        ...


class _Process:
    """The portal's state in one process."""

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
        """Whether the caller runs in the event loop that this object started."""
        opening = self._opening
        return opening is not None and opening.is_own_thread

    def running(
        self, jobs: AsyncJobs, lasting: Sequence[Lasting], *, run_handlers: bool
    ) -> LoopThread:
        loop = self._loop
        if loop is not None and self._runs_handlers >= run_handlers and loop.is_alive:
            return loop
        with self._lock:
            self._drop_ended()
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
                # Signals are detected only if this call is made in the main thread.
                tell = partial(self._loop.call, self._loop.end_lasting)
                self._signals.enter_context(told_to_stop(tell))
            return self._loop

    def _drop_ended(self) -> None:
        """Let go of an event loop that an error has ended, so that another one is started."""
        loop = self._loop
        if loop is not None and not loop.is_alive:
            log.error("The queue was closed by an error and is opened again", exc_info=loop.error)
            self._loop, self._opening, self._runs_handlers = None, None, False
            self._signals.close()

    def close(self) -> None:
        if self._pid != os.getpid():
            return  # the parent's, copied by a fork: it must not be stopped here
        with self._lock:
            loop, self._loop, self._opening = self._loop, None, None
            self._runs_handlers = False
            self._signals.close()
            if loop is not None:
                loop.stop()


class LoopThread:
    """An asyncio event loop in its own thread, with the queue open in it.

    anyio's `start_blocking_portal` is a generator. In a forked child, garbage collection of its
    copy would wait for a thread that the child does not have. Besides, each call of its
    `BlockingPortal` goes to the event loop and back twice.
    """

    def __init__(self, jobs: AsyncJobs, lasting: Sequence[Lasting]) -> None:
        self._jobs = jobs
        self._lasting = lasting
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="asyncjobs", daemon=True)
        self._stop = asyncio.Event()
        # Reentrant, since a signal handler may make a call during another one.
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
        """Whether the caller runs in this event loop."""
        return threading.current_thread() is self._thread

    @property
    def is_alive(self) -> bool:
        """Whether the event loop still runs; an error of the queue or of a call may end it."""
        return self._thread.is_alive()

    @property
    def error(self) -> BaseException | None:
        """The error that has ended the event loop, if any."""
        return self._error

    def call(self, function: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
        """Run a coroutine function in this event loop; return its result or raise its error.

        If the waiting thread is interrupted, the call goes on. Raises `RuntimeError` in the thread
        of the event loop, and while the queue is being closed.
        """
        if self.is_own_thread:
            raise RuntimeError("Called in the thread of the event loop, which would block forever.")
        call = Call(function, *arguments)
        # A call that is accepted here is begun, and `stop` waits for it.
        with self._lock:
            if self._loop is None:
                raise RuntimeError("The queue is not open in this event loop.")
            loop = self._loop
            loop.call_soon_threadsafe(call.begin, self._calls)
        call.wait(loop)
        return call.result()

    def stop(self) -> None:
        """Drain and close the queue and end the event loop; raise what that raises."""
        with suppress(RuntimeError):  # the loop has already ended after an error
            self.call(self._begin_to_stop)
        self._thread.join()
        if self._error is not None:
            raise self._error

    async def end_lasting(self) -> None:
        """Stop the background activities soon."""
        for one in self._lasting:
            one.end()

    async def _begin_to_stop(self) -> None:
        await self.end_lasting()
        self._refuse_calls()
        self._stop.set()

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as error:  # noqa: BLE001  # raised in the calling thread
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
        await asyncio.sleep(0)  # calls accepted earlier begin now
        while self._calls:
            await asyncio.wait(self._calls)

    def _break_off(self, error: BaseException) -> None:
        self._error = error
        if not self._opened.done():
            self._opened.set_exception(error)


class Call(Generic[T]):
    """A call in an asyncio event loop, for which another thread waits.

    It replaces `asyncio.run_coroutine_threadsafe` and its two chained futures: waking a thread that
    waits for a lock takes half the time of a condition. The call runs in the context of the thread.
    """

    __slots__ = ("_ended", "_function", "_task")

    def __init__(self, function: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> None:
        self._function: Callable[[], Awaitable[T]] = partial(function, *arguments)
        self._task: asyncio.Task[T] | None = None
        self._ended = Lock()
        self._ended.acquire()

    def begin(self, calls: set[asyncio.Task[object]]) -> None:
        """Begin in the event loop; the call's task is in `calls` until it has ended."""
        self._task = task = asyncio.get_running_loop().create_task(self._run())
        calls.add(task)
        task.add_done_callback(calls.discard)
        task.add_done_callback(self._end)

    def wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Return when the call has ended; the thread may be interrupted meanwhile.

        Raises `RuntimeError` if its event loop was closed before the call could begin.
        """
        while not self._ended.acquire(timeout=_LOOK_SECONDS):
            if loop.is_closed() and not self._ended.acquire(blocking=False):
                raise RuntimeError("The event loop was closed before the call could begin.")

    def result(self) -> T:
        """Return the call's result or raise its error, or `concurrent.futures.CancelledError`."""
        task, self._task = self._task, None
        if task is None:
            raise RuntimeError("The call has not started, or its result was already taken.")
        try:
            return task.result()
        except asyncio.CancelledError as error:
            raise concurrent.futures.CancelledError(*error.args) from None
        finally:
            del task  # its error has this frame

    def cancel(self) -> None:
        """Cancel the call if it is in progress, in the event loop; its result is discarded."""
        # Frees its frames when it has ended, even if something keeps the traceback of the
        # interruption.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _run(self) -> T:
        return await self._function()

    def _end(self, task: asyncio.Task[T]) -> None:
        # Marks the error as retrieved even if the thread is interrupted before it reads it.
        if not task.cancelled():
            task.exception()
        self._ended.release()
