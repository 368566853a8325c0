"""Stops a worker process: by signals, or by the process that supervises it."""

from __future__ import annotations

import asyncio
import logging as standard_logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import IntEnum
from threading import Lock, Thread, Timer
from types import FrameType

import anyio

from asyncjobs.records.logging import log

# How long after the second signal a process that does not end by itself is ended, in seconds.
_HURRY_SECONDS = 3.0
# How long the interpreter may take to end, once the queue is closed.
_MIN_EXIT_SECONDS = 0.3
_MAX_EXIT_SECONDS = 5.0

_EXIT_CODE_FORCED = 70  # EX_SOFTWARE of sysexits.h


class StopLevel(IntEnum):
    """How urgently a process must stop."""

    NONE = 0
    DRAIN = 1  # start no more jobs; running jobs have the grace period
    HURRY = 2  # interrupt running jobs and give them back
    EXIT = 3  # end the process now


class StopRequest:
    """The most urgent stop requested so far; it is never taken back.

    Each request limits the time that the process has left: `limit` seconds after the first one, a
    few seconds after the second. Then a thread ends the process, whatever handlers do to the event
    loop. Without a `limit` only the third request does. `running` returns the jobs that run at that
    moment, for the log.
    """

    def __init__(self, limit: float | None = None, running: Callable[[], str] = lambda: "") -> None:
        self.level = StopLevel.NONE
        self._signalled = StopLevel.NONE
        self._limit = limit
        self.running = running
        self._loop = asyncio.get_running_loop()
        self._reached = {level: anyio.Event() for level in StopLevel}
        self._lock = Lock()
        self._timer: Timer | None = None
        self._exit_at = math.inf

    def request(self, level: StopLevel) -> None:
        """Raise the level, from any thread; a level below the current one changes nothing."""
        with self._lock:
            if level <= self.level:
                return
            self.level = level
            if self._timer is not None:
                self._timer.cancel()
            self._start_timer(level)
        if level is StopLevel.EXIT:
            self._exit()
        try:
            self._loop.call_soon_threadsafe(self._reach, level)
        except RuntimeError:
            return  # the event loop has ended

    async def wait_for(self, level: StopLevel) -> None:
        """Return when this or a higher level is requested."""
        await self._reached[level].wait()

    def ended(self) -> float:
        """Stop limiting the process, which ends by itself; return its seconds left."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            left = self._exit_at - time.monotonic()
            return min(max(left, _MIN_EXIT_SECONDS), _MAX_EXIT_SECONDS)

    @contextmanager
    def following_signals(self) -> Generator[None]:
        """Drain at the first SIGTERM or SIGINT, hurry at the second, exit at the third.

        Python's own signal handlers are used: an event loop does not call its handlers while a
        job's handler blocks it.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            signal.signal(number, self._follow)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def follow_supervisor(self) -> None:
        """Read levels, one name a line, from standard input. Drain at its end."""

        def read() -> None:
            for line in sys.stdin:
                self.request(StopLevel[line.strip()])
            self.request(StopLevel.DRAIN)

        Thread(target=read, name="asyncjobs supervisor", daemon=True).start()

    def _start_timer(self, level: StopLevel) -> None:
        if self._limit is not None:
            seconds = self._limit if level is StopLevel.DRAIN else _HURRY_SECONDS
            now = time.monotonic()
            self._exit_at = min(self._exit_at, now + seconds)
            self._timer = Timer(self._exit_at - now, self._exit)
            self._timer.daemon = True
            self._timer.start()

    def _follow(self, number: int, _frame: FrameType | None) -> None:
        # Signals are counted apart from the supervisor's requests: systemd and terminals signal
        # both processes, and that is one request. Done in a thread, as the main thread may hold the
        # lock.
        self._signalled = level = StopLevel(min(self._signalled + 1, StopLevel.EXIT))
        log.info("%s: %s", signal.Signals(number).name, level.name.lower())
        Thread(target=self.request, args=(level,), name="asyncjobs stop", daemon=True).start()

    def _reach(self, level: StopLevel) -> None:
        for each, event in self._reached.items():
            if each <= level:
                event.set()

    def _exit(self) -> None:
        jobs = self.running() or "none"
        log.critical("Process %s did not stop in time and exits; its jobs: %s", os.getpid(), jobs)
        standard_logging.shutdown()
        os._exit(_EXIT_CODE_FORCED)
