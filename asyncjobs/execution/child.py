"""The child's side of `subprocesses`: runs the attempts that the parent sends through a pipe.

The main thread runs the handler. Another thread talks to the parent: it receives work and the order
to stop, sends progress a few times a second, and ends the process when the parent is gone.
"""

from __future__ import annotations

import asyncio
import logging
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
from types import FrameType
from typing import Any, cast

import anyio
from anyio.from_thread import run_sync
from anyio.lowlevel import current_token

from asyncjobs.core.handlers import Handler, ImportPath
from asyncjobs.core.job import Job, Policy
from asyncjobs.errors import JobCancelled, ResourcesUnavailable
from asyncjobs.execution.context import Gauge, JobContext, News, classified, safe_text
from asyncjobs.execution.dependencies import call
from asyncjobs.execution.failures import Remote, traceback_of
from asyncjobs.execution.files import FileSaver, FileStep, PipeRecorder, Recorded
from asyncjobs.execution.output import Output, Piece, PipeSink
from asyncjobs.records.logging import log, working_on

STOP = "stop"
CLOSE = "close"

#: How long a handler may take to stop by itself before its process is killed, in seconds.
LAST_WORDS = 1.0

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
    #: The dependency overrides and the type of the items, as a pickle.
    overrides: bytes
    lifespan: ImportPath | None = None
    files: bytes | None = None


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


@dataclass(frozen=True)
class Answered:
    """The answer to an emitted piece, and its error, if it was not stored."""

    error: BaseException | None = None


class _Parent:
    """The connection to the parent, and the work that it sent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = Lock()
        self._gauge = Gauge()
        self._busy = False
        self.work: SimpleQueue[Work | None] = SimpleQueue()
        self._asking = Lock()
        self._answers: SimpleQueue[Recorded | Answered | BaseException] = SimpleQueue()
        self.stop: Callable[[], object] = lambda: None

    @property
    def gauge(self) -> Gauge:
        """Connects the handler with the thread that talks to the parent."""
        return self._gauge

    def send(self, message: object) -> None:
        with self._lock:
            self._pipe.send(message)

    def ask(self, step: FileStep) -> Recorded:
        """Let the parent record a file; return its answer, or raise its error."""
        return cast("Recorded", self._ask(step))

    def emit(self, piece: Piece) -> None:
        """Let the parent store an emitted item; return when it is stored, or raise its error."""
        answer = cast("Answered", self._ask(piece))
        if answer.error is not None:
            raise answer.error

    def _ask(self, question: FileStep | Piece) -> Recorded | Answered:
        with self._asking:
            self.send(question)
            answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

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

    def _heard(self, message: Work | Recorded | Answered | BaseException | str) -> None:
        if isinstance(message, Work):
            # Replaced before the main thread gets the work: an order to stop that comes now must
            # reach this attempt, and not the event loop of the one before.
            self._gauge, self._busy = Gauge(), True
            self.stop = lambda: None
            self.work.put(message)
        elif isinstance(message, Recorded | Answered | BaseException):
            self._answers.put(message)
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
    overrides, items = pickle.loads(work.overrides)  # noqa: S301  # our own
    function = work.import_path.find()
    declared = Handler[Any, Any](work.name, function, policy=work.policy, output=items)
    handler = declared.bound(work.policy, overrides)
    payload = handler.load_payload(work.job.payload_json)
    if work.lifespan is not None:
        shared.open(work.lifespan)

    def saver() -> FileSaver:
        storage = None if work.files is None else pickle.loads(work.files)  # noqa: S301  # our own
        recorder = PipeRecorder(parent.ask)
        return FileSaver(work.job, work.policy, storage, recorder, lambda: gauge.stopping)

    def output() -> Output:
        return Output(PipeSink(parent.emit), handler.items)

    context: JobContext[Any] = JobContext(work.job, gauge, shared.value, files=saver, output=output)
    run = partial(call, handler, payload, context)
    value = _awaited(parent, run, shared.run) if handler.asynchronous else run()
    return handler.dump_result(context.result_of(value))


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
