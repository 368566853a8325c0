"""Runs handlers in child processes, which can be killed; both sides of the pipe.

The processes are spawned, not forked: a fork would copy event loops, connections and locks. A
process that has done its work waits for more, because starting one takes as long as importing the
application. In the child, the main thread runs the handler. Another thread talks to the parent: it
receives work and the order to stop, sends reports a few times a second, and ends the process when
the parent is gone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread, current_thread, local, main_thread
from time import monotonic
from types import FrameType
from typing import Any

import anyio
from anyio.from_thread import run_sync
from anyio.lowlevel import current_token

from asyncjobs.core.handlers import Handler, ImportPath
from asyncjobs.core.job import Job, Policy
from asyncjobs.errors import ConfigurationError, JobCancelled, NotOpen, ResourcesUnavailable
from asyncjobs.execution.context import Gauge, JobContext, News, classified, safe_text
from asyncjobs.execution.dependencies import call
from asyncjobs.execution.failures import Remote, traceback_of
from asyncjobs.records.logging import log, working_on

STOP = "stop"
CLOSE = "close"

_REPORT_SECONDS = 0.1

_LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM)

# The signals that each thread had blocked before its fork.
_held = local()


@dataclass(frozen=True)
class Work:
    """One attempt, as it is sent to the process that runs it."""

    import_path: ImportPath
    name: str
    policy: Policy
    job: Job
    overrides: bytes
    lifespan: ImportPath | None = None


@dataclass(frozen=True)
class Ended:
    """How an attempt ended in its process, with all that its handler last reported there."""

    news: News
    result: bytes = b""
    error: BaseException | None = None
    trace: str = ""

    def value(self) -> bytes:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error from Remote(self.trace)
        return self.result


class _Parent:
    """The connection to the parent, and the work that it sent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = Lock()
        self._gauge = Gauge()
        self._busy = False
        self.work: SimpleQueue[Work | None] = SimpleQueue()
        self.stop: Callable[[], object] = lambda: None

    @property
    def gauge(self) -> Gauge:
        """Connects the handler with the thread that talks to the parent."""
        return self._gauge

    def send(self, message: object) -> None:
        with self._lock:
            self._pipe.send(message)

    def ended(self, ended: Ended) -> None:
        # Under the lock of `_report`: a report sent after the end would count for the next job.
        with self._lock:
            self._busy = False
            self._pipe.send(ended)

    def listen(self) -> None:
        try:
            while True:
                # Without work there is no report to send, so an idle process need not wake up.
                if self._pipe.poll(_REPORT_SECONDS if self._busy else None):
                    self._heard(self._pipe.recv())
                self._report()
        except BaseException:  # noqa: BLE001  # the parent is gone, or no longer understood
            os._exit(1)

    def _heard(self, message: Work | str) -> None:
        if isinstance(message, Work):
            # Replaced before the main thread gets the work: an order to stop that comes now must
            # reach this attempt, and not the event loop of the one before.
            self._gauge, self._busy = Gauge(), True
            self.stop = lambda: None
            self.work.put(message)
        elif message == CLOSE:
            self.work.put(None)
        else:
            self._gauge.stopping = True
            with suppress(RuntimeError):  # its event loop has just ended
                self.stop()

    def _report(self) -> None:
        with self._lock:
            latest = self._gauge.unwritten()
            if self._busy and latest is not None:
                self._gauge.written = latest
                self._pipe.send(latest)


class _Forward(logging.Handler):
    """Sends log records to the parent, whose logging is configured."""

    def __init__(self, parent: _Parent) -> None:
        super().__init__()
        self._parent = parent
        self._prepare = QueueHandler(SimpleQueue()).prepare

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._parent.send(self._prepare(record))
        except Exception:  # noqa: BLE001  # like logging's own handlers: it must not fail a job
            self.handleError(record)


def _leave_signals_to_parent() -> None:
    """Ignore SIGINT and SIGTERM: the parent drains, and needs this process for it.

    This uses handlers, because processes started here would inherit `SIG_IGN` across fork and exec
    and could not be terminated. A handler does not survive exec; after a fork it is removed. Until
    then signals are blocked: one sent right after the fork would be lost in the handler.
    """
    for number in _LEFT_TO_PARENT:
        signal.signal(number, _do_nothing)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_hold_signals,
            after_in_parent=_let_signals_through,
            after_in_child=_take_default_signals,
        )


def _do_nothing(_number: int, _frame: FrameType | None) -> None: ...


def _hold_signals() -> None:
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)


def _let_signals_through() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _take_default_signals() -> None:
    # Python lets only the main thread set handlers.
    if current_thread() is main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Last: a signal that came meanwhile must meet the default handlers.
    _let_signals_through()


def main(pipe: Connection, log_levels: Mapping[str | None, int]) -> None:
    """Run one attempt after the other until the parent ends this process, or is gone."""
    if hasattr(os, "setsid"):
        os.setsid()  # processes of a handler are killed with it; Ctrl-C reaches only the parent
    _leave_signals_to_parent()
    multiprocessing.current_process().daemon = False  # a handler may start processes
    parent = _Parent(pipe)
    logging.getLogger().addHandler(_Forward(parent))
    for name, level in log_levels.items():
        logging.getLogger(name).setLevel(level)
    Thread(target=parent.listen, name="asyncjobs parent", daemon=True).start()
    shared = _Shared()
    while (work := parent.work.get()) is not None:
        _attempt(parent, work, shared)
    shared.close()


def _attempt(parent: _Parent, work: Work, shared: _Shared) -> None:
    gauge = parent.gauge
    try:
        with working_on(work.job):
            result = _call(parent, work, gauge, shared)
        ended = Ended(gauge.news, result)
    except BaseException as raised:  # noqa: BLE001  # the parent decides what it means
        error = classified(raised)
        ended = Ended(gauge.news, error=_told(error), trace=traceback_of(error))
    try:
        parent.ended(ended)
    except OSError:
        os._exit(1)  # the parent is gone


def _call(parent: _Parent, work: Work, gauge: Gauge, shared: _Shared) -> bytes:
    declared = Handler[Any, Any](work.name, work.import_path.find(), policy=work.policy)
    handler = declared.bound(work.policy, pickle.loads(work.overrides))  # noqa: S301  # our own
    payload = handler.load_payload(work.job.payload_json)
    if work.lifespan is not None:
        shared.open(work.lifespan)
    context: JobContext[Any] = JobContext(work.job, gauge, shared.value)
    function = partial(call, handler, payload, context)
    value = _awaited(parent, function, shared.run) if handler.asynchronous else function()
    return handler.dump_result(value)


def _awaited(parent: _Parent, function: Callable[[], Any], run: Callable[..., object]) -> Any:
    """Run an `async def` in an event loop; return its value even if the loop raises afterwards.

    The event loop raises for a scope that was left open, or for a cancellation of its own task.
    """
    results: list[Any] = []
    try:
        run(_await, parent, function, results)
    except BaseException:
        if not results:
            raise
    # The handler was cancelled by its scope, or was not called at all.
    if not results:
        raise JobCancelled("")
    return results[0]


async def _await(parent: _Parent, function: Callable[[], Any], results: list[Any]) -> None:
    token = current_token()
    with anyio.CancelScope() as scope:
        # Set before the check: an order to stop that comes in between would be lost.
        parent.stop = lambda: run_sync(scope.cancel, token=token)
        if not parent.gauge.stopping:
            try:
                results.append(await function())
            except BaseException as error:  # noqa: BLE001  # raised again
                raise classified(error)  # noqa: B904  # the same, or one that asyncio can take


class _Shared:
    """The event loop of this process, and the value that the application's lifespan yields.

    With a lifespan, one event loop serves all attempts, because opened resources may belong to it.
    It runs only during `async def` handlers; a `def` blocks it, as it would block the process.
    """

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._lasting: set[asyncio.Task[Any]] = set()
        self._left: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self.value: Any = None

    def open(self, lifespan: ImportPath) -> None:
        """Open the lifespan, once; raise `ResourcesUnavailable`."""
        if self._runner is None:
            self._runner = asyncio.Runner()
            self._runner.run(self._open(lifespan.find()))
        if self._task is None or self._task.done():
            self._runner, self._task = None, None
            raise ResourcesUnavailable("see the log of this process")

    def run(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Run a coroutine function to its end, then cancel the tasks that it left behind."""
        if self._runner is None:
            anyio.run(function, *arguments)
            return
        try:
            self._runner.run(function(*arguments))
        finally:
            self._runner.run(self._cancel_left())

    def close(self) -> None:
        """Leave the lifespan, if it is open."""
        if self._runner is not None and self._left is not None and self._task is not None:
            self._left.set()
            self._runner.run(self._end_of(self._task))
            self._runner.close()

    async def _open(self, lifespan: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        opened = asyncio.Event()
        self._left = asyncio.Event()
        # A task of its own, because scopes of anyio must be left by the task that entered them.
        self._task = asyncio.create_task(self._live(lifespan, opened, self._left))
        waiting = asyncio.create_task(opened.wait())
        await asyncio.wait([self._task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        # Tasks of the lifespan; `_cancel_left` cancels all others after each attempt.
        self._lasting = asyncio.all_tasks() - {asyncio.current_task(), waiting}

    async def _live(
        self,
        lifespan: Callable[[], AbstractAsyncContextManager[Any]],
        opened: asyncio.Event,
        left: asyncio.Event,
    ) -> None:
        try:
            async with lifespan() as self.value:
                opened.set()
                await left.wait()
        except BaseException:
            log.critical("The lifespan of the handlers has failed", exc_info=True)

    async def _end_of(self, task: asyncio.Task[None]) -> None:
        await asyncio.wait([task], timeout=LAST_WORDS)

    async def _cancel_left(self) -> None:
        left = asyncio.all_tasks() - self._lasting - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=LAST_WORDS)


def _told(error: BaseException) -> BaseException:
    """Replace an error that the parent cannot unpickle, or that has a meaning for event loops."""
    if not isinstance(error, (Exception, JobCancelled)):
        return RuntimeError(f"The handler raised {type(error).__name__}.")
    try:
        # Loaded as well: some classes can be pickled, but not restored from their arguments.
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    except BaseException:  # noqa: BLE001  # its class may raise anything
        return RuntimeError(f"The handler raised {type(error).__name__}: {safe_text(error)}")
    return error


#: How long a handler may take to stop by itself before its process is killed, in seconds.
LAST_WORDS = 1.0

_LOOK_SECONDS = 0.1


class ProcessDied(Exception):
    """Raised when the process of a job ended during the job: killed, crashed, out of memory."""

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code = exit_code
        super().__init__(f"The process of the job ended unexpectedly (exit code {exit_code}).")


class ChildProcesses:
    """The child processes of one executor; called from the threads that wait for them."""

    def __init__(self, lifespan: ImportPath | None = None) -> None:
        self._lifespan = lifespan
        self._lock = Lock()
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._closed = False

    def run(self, handler: Handler[Any, Any], job: Job, gauge: Gauge) -> bytes:
        """Run a handler in another process; return its result as JSON, or raise its error.

        If the gauge is stopping, the handler is asked to stop, and its process is killed if it goes
        on; that raises `JobCancelled`. Raises `ProcessDied` if the process ends by itself.
        """
        if handler.import_path is None:
            raise ConfigurationError(f"Handler {handler.name!r} does not run in its own process.")
        work = Work(
            handler.import_path,
            handler.name,
            handler.policy,
            job,
            _pickled(handler),
            self._lifespan,
        )
        one = self._begin(work)
        try:
            ended = one.finish(job, gauge)
        except BaseException:
            # Only a process that has reported its end can be used again.
            self._end(one)
            raise
        self._take_back(one)
        return ended.value()

    def close(self) -> None:
        """Kill all processes, and refuse to start others.

        Idle processes may leave the lifespan first, within a second at most.
        """
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
        if self._lifespan is not None:
            for one in idle:
                one.ask_to_close()
            until = monotonic() + LAST_WORDS
            for one in idle:
                one.wait_for_end(until - monotonic())
        for one in idle:
            self._end(one)
        for one in busy:
            one.kill()  # not released: the thread that uses its pipe notices, and does that

    def _begin(self, work: Work) -> _Child:
        while (one := self._waiting()) is not None:
            try:
                one.begin(work)
            except OSError:  # it died while it was idle
                self._end(one)
            else:
                return one
        one = _Child()
        # Added before it starts: `close` must know every process.
        with self._lock:
            self._check_open()
            self._all.add(one)
        try:
            one.start()
            self._check_open()  # `close` passes over a process that has no pid yet
            one.begin(work)
        except BaseException:
            self._end(one)
            raise
        return one

    def _check_open(self) -> None:
        if self._closed:
            raise NotOpen("The queue")

    def _waiting(self) -> _Child | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _take_back(self, one: _Child) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(one)
                return
        self._end(one)

    def _end(self, one: _Child) -> None:
        one.kill()
        one.release()
        # Last: until it has ended, `close` must find it.
        with self._lock:
            self._all.discard(one)


class _Child:
    """One child process, as seen by the thread that currently uses it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._theirs: Connection = theirs
        self._ending = Lock()
        self._released = False
        # A daemon: an interpreter that exits without closing the queue must not wait for it.
        self._process = context.Process(
            target=main, args=(theirs, _log_levels()), name="asyncjobs job", daemon=True
        )

    def start(self) -> None:
        self._process.start()
        self._theirs.close()  # otherwise this end would not notice that the child has ended

    def begin(self, work: Work) -> None:
        self._pipe.send(work)

    def finish(self, job: Job, gauge: Gauge) -> Ended:
        kill_at = math.inf
        try:
            while True:
                # The order is sent once; then only the time counts.
                if gauge.stopping and kill_at == math.inf:
                    kill_at = monotonic() + LAST_WORDS
                    self._pipe.send(STOP)
                if monotonic() >= kill_at:
                    raise JobCancelled(job.id)
                if self._pipe.poll(_LOOK_SECONDS):
                    message = self._pipe.recv()
                    if isinstance(message, Ended):
                        gauge.take_over(message.news)
                        return message
                    _take_note(message, gauge)
        except (EOFError, OSError) as error:
            # The pipe may close a moment before the exit code is known.
            self._process.join(LAST_WORDS)
            raise ProcessDied(self._process.exitcode) from error

    def ask_to_close(self) -> None:
        """Ask an idle process to leave the lifespan and to end."""
        with suppress(OSError):  # it has ended already
            self._pipe.send(CLOSE)

    def wait_for_end(self, seconds: float) -> None:
        self._process.join(max(0.0, seconds))

    def kill(self) -> None:
        """End the process and those that it has started; return when it is gone. Thread-safe."""
        with self._ending:
            # After the release the pid may belong to another process.
            pid = None if self._released else self._process.pid
            if pid is None:
                return
            if hasattr(os, "killpg"):
                # It leads its own group since its first moments, and had no children before.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()

    def release(self) -> None:
        """Close its pipe, after `kill` and when no other thread uses it."""
        with self._ending:
            self._released = True
            self._pipe.close()
            self._theirs.close()
            self._process.close()


def _pickled(handler: Handler[Any, Any]) -> bytes:
    """Return the dependency overrides of a handler as a pickle; empty if it has no dependencies."""
    overrides = dict(handler.overrides) if handler.signature.dependencies else {}
    try:
        return pickle.dumps(overrides)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"Handler {handler.name!r} runs in its own process: the overrides of its dependencies "
            f"must be module-level functions that can be imported by their names: {error}"
        ) from error


def _log_levels() -> dict[str | None, int]:
    """Return the log levels set here (None: root), so the child sends only records to be logged."""
    root = logging.getLogger()
    levels: dict[str | None, int] = {None: root.level}
    for name, one in list(root.manager.loggerDict.items()):
        if isinstance(one, logging.Logger) and one.level != logging.NOTSET:
            levels[name] = one.level
    return levels


def _take_note(message: News | logging.LogRecord, gauge: Gauge) -> None:
    if isinstance(message, logging.LogRecord):
        logging.getLogger(message.name).handle(message)
    else:
        gauge.take_over(message)
