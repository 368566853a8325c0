"""Runs handlers in a process of their own; the side of the child.

The main thread runs the handler. Another one speaks with the parent: it hands over work, passes on
progress a few times a second, hears that the handler is to stop, and ends the process when the
parent is gone.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import anyio
from anyio.from_thread import run_sync
from anyio.lowlevel import current_token

from asyncjobs.context import Gauge, JobContext, Report
from asyncjobs.errors import JobCancelled
from asyncjobs.logs import working_on
from asyncjobs.model import Job, Policy
from asyncjobs.registry import Handler, Place

STOP = "stop"

_REPORT_SECONDS = 0.1


@dataclass(frozen=True)
class Work:
    """One attempt, as it is handed to the process that makes it."""

    place: Place
    name: str
    policy: Policy
    job: Job


class Remote(Exception):
    """Holds the traceback of an error in another process, as text, for those who read logs."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


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
        self.work: SimpleQueue[Work] = SimpleQueue()
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


def main(pipe: Connection, log_levels: Mapping[str | None, int]) -> None:
    """Make one attempt after the other until the parent is gone."""
    if hasattr(os, "setsid"):
        os.setsid()  # a handler's own processes are killed with it; Ctrl-C is the parent's business
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)  # the parent drains, and needs this process for it
    multiprocessing.current_process().daemon = False  # a handler may start processes
    parent = _Parent(pipe)
    logging.getLogger().addHandler(_Forward(parent))
    for name, level in log_levels.items():
        logging.getLogger(name).setLevel(level)
    Thread(target=parent.listen, name="asyncjobs parent", daemon=True).start()
    while True:
        _attempt(parent, parent.work.get())


def _attempt(parent: _Parent, work: Work) -> None:
    gauge = parent.gauge
    try:
        with working_on(work.job):
            result = _call(parent, work, gauge)
        ended = Ended(gauge.latest, result)
    except BaseException as error:  # noqa: BLE001  # the parent decides what it means
        trace = "".join(traceback.format_exception(error))
        ended = Ended(gauge.latest, error=_told(error), trace=trace)
    try:
        parent.ended(ended)
    except OSError:
        os._exit(1)  # nobody waits for it


def _call(parent: _Parent, work: Work, gauge: Gauge) -> bytes:
    handler = Handler[Any, Any](work.name, work.place.find(), policy=work.policy)
    payload = handler.load_payload(work.job.payload_json)
    context = JobContext(work.job, gauge)
    if handler.asynchronous:
        value = anyio.run(_awaited, parent, partial(handler.function, payload, context))
    else:
        value = handler.function(payload, context)
    return handler.dump_result(value)


async def _awaited(parent: _Parent, function: Callable[[], Any]) -> Any:
    token = current_token()
    with anyio.CancelScope() as scope:
        parent.stop = lambda: run_sync(scope.cancel, token=token)
        if not parent.gauge.stopping:
            return await function()
    raise JobCancelled("")


def _told(error: BaseException) -> BaseException:
    """Keep from the parent what it cannot read, or what means something to an event loop."""
    if not isinstance(error, (Exception, JobCancelled)):
        return RuntimeError(f"The handler raised {type(error).__name__}.")
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    except Exception:  # noqa: BLE001  # whatever its class does there
        return RuntimeError(f"The handler raised {type(error).__name__}: {error}")
    return error
