"""Runs handlers in child processes, which can be killed; both sides of the pipe.

The processes are started anew, not forked: a fork would copy event loops, connections and locks.
One that has done its work waits for the next, since starting one takes as long as importing the
application. In the child the main thread runs the handler. Another thread talks to the parent: it
receives work and the order to stop, sends progress a few times a second, and ends the process when
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
from asyncjobs.execution.context import Gauge, JobContext, Report, classified, safe_text
from asyncjobs.execution.dependencies import call
from asyncjobs.execution.failures import Remote, traceback_of
from asyncjobs.records.logging import log, working_on

STOP = "stop"
CLOSE = "close"

_REPORT_SECONDS = 0.1

_LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM)

# What each thread that forks had blocked before.
_held = local()


@dataclass(frozen=True)
class Work:
    """One attempt, as it is handed to the process that makes it."""

    import_path: ImportPath
    name: str
    policy: Policy
    job: Job
    overrides: bytes
    lifespan: ImportPath | None = None


@dataclass(frozen=True)
class Ended:
    """How an attempt ended in its process, with the last progress that was reported there."""

    report: Report | None
    result: bytes = b""
    error: BaseException | None = None
    trace: str = ""

    def value(self) -> bytes:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error from Remote(self.trace)
        return self.result


class _Parent:
    """The way to the parent, and what it has asked for."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = Lock()
        self._gauge = Gauge()
        self._busy = False
        self.work: SimpleQueue[Work | None] = SimpleQueue()
        self.stop: Callable[[], object] = lambda: None

    @property
    def gauge(self) -> Gauge:
        """What passes between the handler and this thread."""
        return self._gauge

    def send(self, message: object) -> None:
        with self._lock:
            self._pipe.send(message)

    def ended(self, ended: Ended) -> None:
        with self._lock:
            self._busy = False
            self._pipe.send(ended)

    def listen(self) -> None:
        try:
            while True:
                if self._pipe.poll(_REPORT_SECONDS if self._busy else None):
                    self._heard(self._pipe.recv())
                self._report()
        except BaseException:  # noqa: BLE001  # whatever it is, nobody waits for this process now
            os._exit(1)

    def _heard(self, message: Work | str) -> None:
        if isinstance(message, Work):
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
    """Hands log records to the parent, whose logging is set up."""

    def __init__(self, parent: _Parent) -> None:
        super().__init__()
        self._parent = parent
        self._prepare = QueueHandler(SimpleQueue()).prepare

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._parent.send(self._prepare(record))
        except Exception:  # noqa: BLE001  # as logging's own handlers: no reason to fail a job
            self.handleError(record)


def _leave_signals_to_parent() -> None:
    """Do nothing at SIGINT and SIGTERM: the parent drains, and needs this process for it.

    By handlers, since what this process starts would inherit `SIG_IGN` across fork and exec and
    could not be terminated. A handler does not survive exec; for a fork it is taken back. Until
    then signals wait: one that is sent right after the fork would be lost to the handler.
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
    if current_thread() is main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _let_signals_through()


def main(pipe: Connection, log_levels: Mapping[str | None, int]) -> None:
    """Make one attempt after the other until the parent ends this process, or is gone."""
    if hasattr(os, "setsid"):
        os.setsid()  # a handler's own processes are killed with it; Ctrl-C is the parent's business
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
        ended = Ended(gauge.latest, result)
    except BaseException as raised:  # noqa: BLE001  # the parent decides what it means
        error = classified(raised)
        ended = Ended(gauge.latest, error=_told(error), trace=traceback_of(error))
    try:
        parent.ended(ended)
    except OSError:
        os._exit(1)  # nobody waits for it


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
    """Run an `async def` in an event loop; return what it returns, whatever it leaves behind.

    A scope that it has left open, or a cancellation of its own task, comes out of the event loop.
    """
    results: list[Any] = []
    try:
        run(_await, parent, function, results)
    except BaseException:
        if not results:
            raise
    if not results:
        raise JobCancelled("")
    return results[0]


async def _await(parent: _Parent, function: Callable[[], Any], results: list[Any]) -> None:
    token = current_token()
    with anyio.CancelScope() as scope:
        parent.stop = lambda: run_sync(scope.cancel, token=token)
        if not parent.gauge.stopping:
            try:
                results.append(await function())
            except BaseException as error:  # noqa: BLE001  # raised again
                raise classified(error)  # noqa: B904  # the same, or one that asyncio can take


class _Shared:
    """The event loop of this process, and what the application's lifespan yields in it.

    With a lifespan one event loop serves all attempts, since what it has opened may belong to it.
    It runs while an `async def` handler does; a `def` blocks it, as it would block the process.
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
        """Run a coroutine function to its end, and cancel the tasks that it has left."""
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
        self._task = asyncio.create_task(self._live(lifespan, opened, self._left))
        waiting = asyncio.create_task(opened.wait())
        await asyncio.wait([self._task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
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
    """Keep from the parent what it cannot read, or what means something to an event loop."""
    if not isinstance(error, (Exception, JobCancelled)):
        return RuntimeError(f"The handler raised {type(error).__name__}.")
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    except BaseException:  # noqa: BLE001  # whatever its class does there
        return RuntimeError(f"The handler raised {type(error).__name__}: {safe_text(error)}")
    return error


#: How long a handler may take to stop by itself before its process is killed.
LAST_WORDS = 1.0

_LOOK_SECONDS = 0.1


class ProcessDied(Exception):
    """Say that the process of a job ended in the middle of it: killed, crashed, out of memory."""

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code = exit_code
        super().__init__(f"The process of the job ended by itself (exit code {exit_code}).")


class ChildProcesses:
    """The child processes of one engine; called from the threads that wait for them."""

    def __init__(self, lifespan: ImportPath | None = None) -> None:
        self._lifespan = lifespan
        self._lock = Lock()
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._closed = False

    def run(self, handler: Handler[Any, Any], job: Job, gauge: Gauge) -> bytes:
        """Run a handler in another process; return its result as JSON, or raise what it raised.

        Where the gauge says so it is stopped: told to, then killed. Raises `JobCancelled` then, and
        `ProcessDied` where the process ends by itself.
        """
        if handler.import_path is None:
            raise ConfigurationError(f"Handler {handler.name!r} runs in no process of its own.")
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
            self._end(one)
            raise
        self._take_back(one)
        return ended.value()

    def close(self) -> None:
        """Kill them all, and every one that would be started later.

        Those that wait for work may leave the lifespan first, for a second at most.
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
            one.kill()  # the thread that uses it notices, and ends it

    def _begin(self, work: Work) -> _Child:
        while (one := self._waiting()) is not None:
            try:
                one.begin(work)
            except OSError:  # it died while nobody used it
                self._end(one)
            else:
                return one
        one = _Child()
        with self._lock:
            if self._closed:
                raise NotOpen("The queue")
            self._all.add(one)
        try:
            one.start()
            one.begin(work)
        except BaseException:
            self._end(one)
            raise
        return one

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
        with self._lock:
            self._all.discard(one)


class _Child:
    """One child process, as seen by the thread that uses it at the moment."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._theirs: Connection = theirs
        self._ending = Lock()
        self._released = False
        # A daemon, so that an interpreter that ends without closing the queue does not wait for it.
        self._process = context.Process(
            target=main, args=(theirs, _log_levels()), name="asyncjobs job", daemon=True
        )

    def start(self) -> None:
        self._process.start()
        self._theirs.close()  # else its end would not be seen on ours

    def begin(self, work: Work) -> None:
        self._pipe.send(work)

    def finish(self, job: Job, gauge: Gauge) -> Ended:
        kill_at = math.inf
        try:
            while True:
                if gauge.stopping and kill_at == math.inf:
                    kill_at = monotonic() + LAST_WORDS
                    self._pipe.send(STOP)
                if monotonic() >= kill_at:
                    raise JobCancelled(job.id)
                if self._pipe.poll(_LOOK_SECONDS):
                    message = self._pipe.recv()
                    if isinstance(message, Ended):
                        gauge.latest = message.report or gauge.latest
                        return message
                    _take_note(message, gauge)
        except (EOFError, OSError) as error:
            self._process.join(LAST_WORDS)
            raise ProcessDied(self._process.exitcode) from error

    def ask_to_close(self) -> None:
        """Tell a process that waits for work to leave the lifespan and to end."""
        with suppress(OSError):  # it has ended already
            self._pipe.send(CLOSE)

    def wait_for_end(self, seconds: float) -> None:
        self._process.join(max(0.0, seconds))

    def kill(self) -> None:
        """End the process and those that it has started; return when it is gone. Any thread may."""
        with self._ending:
            pid = None if self._released else self._process.pid
            if pid is None:
                return
            if hasattr(os, "killpg"):
                # Its group is its own from its first moments on; before those it has no children.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()

    def release(self) -> None:
        """Close its pipe, after `kill`, once no other thread uses it."""
        with self._ending:
            self._released = True
            self._pipe.close()
            self._theirs.close()
            self._process.close()


def _pickled(handler: Handler[Any, Any]) -> bytes:
    """Write down by which functions dependencies are overridden, for a handler that has any."""
    overrides = dict(handler.overrides) if handler.signature.dependencies else {}
    try:
        return pickle.dumps(overrides)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"Handler {handler.name!r} runs in a process: what overrides its dependencies must be "
            f"a function of a module, which can be imported by its name: {error}"
        ) from error


def _log_levels() -> dict[str | None, int]:
    """Tell which levels were set here, so that the child sends what would be logged; None: root."""
    root = logging.getLogger()
    levels: dict[str | None, int] = {None: root.level}
    for name, one in list(root.manager.loggerDict.items()):
        if isinstance(one, logging.Logger) and one.level != logging.NOTSET:
            levels[name] = one.level
    return levels


def _take_note(message: Report | logging.LogRecord, gauge: Gauge) -> None:
    if isinstance(message, logging.LogRecord):
        logging.getLogger(message.name).handle(message)
    else:
        gauge.latest = message
