"""Runs handlers in child processes, which can be killed; the parent's side of the pipe.

The processes are spawned, not forked: a fork would copy event loops, connections and locks. A
process that has done its work waits for more, because starting one takes as long as importing the
application.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Lock
from time import monotonic
from typing import Any

from asyncjobs.core.handlers import Handler, ImportPath
from asyncjobs.core.job import Job
from asyncjobs.errors import ConfigurationError, JobCancelled, NotOpen
from asyncjobs.execution.child import CLOSE, LAST_WORDS, STOP, Answered, Ended, Work, main
from asyncjobs.execution.context import Gauge, News
from asyncjobs.execution.files import FileStep, Recorder, recorded_for
from asyncjobs.execution.output import Piece, Sink, written_for
from asyncjobs.files.storage import FileStorage

_LOOK_SECONDS = 0.1


class ProcessDied(Exception):
    """Raised when the process of a job ended during the job: killed, crashed, out of memory."""

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code = exit_code
        super().__init__(f"The process of the job ended unexpectedly (exit code {exit_code}).")


class ChildProcesses:
    """The child processes of one executor; called from the threads that wait for them."""

    def __init__(
        self, lifespan: ImportPath | None = None, files: FileStorage | None = None
    ) -> None:
        self._lifespan = lifespan
        self._files = _pickled_storage(files)
        self._lock = Lock()
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._closed = False

    def run(
        self,
        handler: Handler[Any, Any],
        job: Job,
        gauge: Gauge,
        recorder: Callable[[], Recorder],
        sink: Callable[[], Sink],
    ) -> bytes:
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
            self._files,
        )
        one = self._begin(work)
        try:
            ended = one.finish(job, gauge, recorder, sink)
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

    def finish(
        self,
        job: Job,
        gauge: Gauge,
        recorder: Callable[[], Recorder],
        sink: Callable[[], Sink],
    ) -> Ended:
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
                    if isinstance(message, FileStep):
                        self._pipe.send(recorded_for(recorder(), message))
                    elif isinstance(message, Piece):
                        self._pipe.send(Answered(written_for(sink(), message)))
                    else:
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


def _pickled_storage(files: FileStorage | None) -> bytes | None:
    """Return a storage as a pickle; None if there is none, or it cannot be pickled."""
    try:
        return None if files is None else pickle.dumps(files)
    except Exception:  # noqa: BLE001  # its class may raise anything
        return None


def _pickled(handler: Handler[Any, Any]) -> bytes:
    """Return a handler's dependency overrides and the type of its items as a pickle.

    The overrides are left out if it has no dependencies, the type if its annotation names it.
    """
    overrides = dict(handler.overrides) if handler.signature.dependencies else {}
    typed = None if handler.signature.generator else handler.items
    try:
        return pickle.dumps((overrides, typed and typed.annotation))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"Handler {handler.name!r} runs in its own process: the overrides of its dependencies "
            "and the type of its output must be of module level, so that they can be imported by "
            f"their names: {error}"
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
