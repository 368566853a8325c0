"""Logs which handler blocks the event loop, with the lines that it is executing.

Such a handler stops more than itself: requests, streams, and the renewal of every lease in the
process, so its jobs are considered lost. No code on the event loop can log that; a thread can.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread, get_ident
from types import CodeType, FrameType

from asyncjobs.core.job import Job
from asyncjobs.records.logging import log, log_fields
from asyncjobs.records.waiting import call_soon_from_threads


class Watchdog:
    """Watches one event loop while it runs handlers.

    `caller` is the code object that calls handlers; its local `job` is the job of the handler.
    `running` returns the jobs that run now; it is called in another thread.
    """

    def __init__(
        self, limit: timedelta, caller: CodeType, running: Callable[[], Sequence[Job]]
    ) -> None:
        self._limit = limit.total_seconds()
        self._caller = caller
        self._running = running
        self._ended = Event()

    @contextmanager
    def watching(self) -> Generator[None]:
        """Watch the current event loop inside the block."""
        self._ended.clear()
        arguments = (call_soon_from_threads(), get_ident())
        Thread(target=self._watch, args=arguments, name="asyncjobs watchdog", daemon=True).start()
        try:
            yield
        finally:
            self._ended.set()

    def _watch(self, call_soon: Callable[[Callable[[], None]], object], loop_thread: int) -> None:
        while not self._ended.wait(self._limit / 2):
            if not self._running():
                continue
            turned = Event()
            try:
                call_soon(turned.set)
            except RuntimeError:
                self._say_that_it_ended()
                return
            if not turned.wait(self._limit):
                if not self._tell(loop_thread):
                    self._say_that_it_ended()
                while not (turned.wait(self._limit) or self._ended.is_set()):
                    pass  # each block is logged once

    def _say_that_it_ended(self) -> None:
        """Log the jobs of an event loop that does not run although no handler blocks it.

        A handler may have stopped or closed it; no other code in the process can log that.
        """
        for job in () if self._ended.is_set() else self._running():
            log.error(
                "The event loop stopped while job %s (%s) was running",
                job.id,
                job.type,
                extra=log_fields(job),
            )

    def _tell(self, loop_thread: int) -> bool:
        """Log which handler blocks the loop; return False if none does."""
        frame = sys._current_frames().get(loop_thread)  # noqa: SLF001  # documented  # pyright: ignore[reportPrivateUsage]
        inner: list[tuple[FrameType, int]] = []
        while frame is not None and frame.f_code is not self._caller:
            inner.append((frame, frame.f_lineno))
            frame = frame.f_back
        if frame is None:
            # Other code of the application blocks the event loop, unless its thread has left it.
            return bool(inner) and any(one.f_code.co_name == "run_forever" for one, _ in inner)
        job: Job = frame.f_locals["job"]
        lines = "".join(traceback.StackSummary.extract(iter(reversed(inner))).format())
        message = (
            "The handler of %r has blocked the event loop for more than %s s. Make it a `def`, "
            f"which runs in a thread, or run this part in one:\n{lines.replace('%', '%%')}"
        )
        log.warning(message, job.type, self._limit, extra=log_fields(job))
        return True
