"""Runs handlers in processes of their own, which can be killed; the side of the parent.

The processes are started anew, not forked: a fork would copy event loops, connections and locks.
One that has done its work waits for the next, since starting one takes as long as importing the
application.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Lock
from time import monotonic
from typing import Any

from asyncjobs import child
from asyncjobs.child import STOP, Ended, Work
from asyncjobs.context import Gauge, Report
from asyncjobs.errors import ConfigurationError, JobCancelled, NotOpen
from asyncjobs.model import Job
from asyncjobs.registry import Handler

#: How long a handler may take to stop by itself before its process is killed.
LAST_WORDS = 1.0

_LOOK_SECONDS = 0.1


class ProcessDied(Exception):
    """Say that the process of a job ended in the middle of it: killed, crashed, out of memory."""

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code = exit_code
        super().__init__(f"The process of the job ended by itself (exit code {exit_code}).")


class Processes:
    """The child processes of one engine; called from the threads that wait for them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._closed = False

    def run(self, handler: Handler[Any, Any], job: Job, gauge: Gauge) -> bytes:
        """Run a handler in another process; return its result as JSON, or raise what it raised.

        Where the gauge says so it is stopped: told to, then killed. Raises `JobCancelled` then, and
        `ProcessDied` where the process ends by itself.
        """
        if handler.place is None:
            raise ConfigurationError(f"Handler {handler.name!r} runs in no process of its own.")
        one = self._begin(Work(handler.place, handler.name, handler.policy, job))
        try:
            ended = one.finish(job, gauge)
        except BaseException:
            one.kill()
            self._forget(one)
            raise
        self._take_back(one)
        return ended.value()

    def close(self) -> None:
        """Kill them all, and every one that would be started later."""
        with self._lock:
            self._closed = True
            self._idle.clear()
            left = tuple(self._all)
        for one in left:
            one.kill()

    def _begin(self, work: Work) -> _Child:
        while (one := self._waiting()) is not None:
            try:
                one.begin(work)
            except OSError:  # it died while nobody used it
                one.kill()
                self._forget(one)
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
            one.kill()
            self._forget(one)
            raise
        return one

    def _waiting(self) -> _Child | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _take_back(self, one: _Child) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(one)

    def _forget(self, one: _Child) -> None:
        with self._lock:
            self._all.discard(one)


class _Child:
    """One child process, as seen by the thread that uses it at the moment."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._theirs: Connection = theirs
        # A daemon, so that an interpreter that ends without closing the queue does not wait for it.
        self._process = context.Process(
            target=child.main, args=(theirs, _log_levels()), name="asyncjobs job", daemon=True
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

    def kill(self) -> None:
        """End the process and those that it has started; return when it is gone."""
        pid = self._process.pid
        if pid is None:
            return
        if hasattr(os, "killpg"):
            # Its group is its own from its first moments on; before those it has no children.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


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
