"""Names the handler that keeps the event loop from turning, with the lines it stands at.

Such a handler stops more than itself: requests, streams, and the renewal of every lease in the
process, so that its jobs are taken for lost. Nothing on the loop could tell of it; a thread can.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread, get_ident
from types import CodeType, FrameType

from asyncjobs.core.job import Job
from asyncjobs.records.logging import log_fields

log = logging.getLogger("asyncjobs")


class Watchdog:
    """Watches one event loop while it runs handlers.

    `caller` is the code that calls handlers, in which `job` is the job they run for.
    """

    def __init__(self, limit: timedelta, caller: CodeType, busy: Callable[[], bool]) -> None:
        self._limit = limit.total_seconds()
        self._caller = caller
        self._busy = busy
        self._ended = Event()

    @contextmanager
    def watching(self) -> Generator[None]:
        """Watch the event loop that this is called in, inside the block."""
        self._ended.clear()
        arguments = (_call_soon(), get_ident())
        Thread(target=self._watch, args=arguments, name="asyncjobs watchdog", daemon=True).start()
        try:
            yield
        finally:
            self._ended.set()

    def _watch(self, call_soon: Callable[[Callable[[], None]], object], loop_thread: int) -> None:
        while not self._ended.wait(self._limit / 2):
            if not self._busy():
                continue
            turned = Event()
            try:
                call_soon(turned.set)
            except RuntimeError:
                return  # the loop has ended
            if not turned.wait(self._limit):
                self._tell(loop_thread)
                while not (turned.wait(self._limit) or self._ended.is_set()):
                    pass  # told once

    def _tell(self, loop_thread: int) -> None:
        frame = sys._current_frames().get(loop_thread)  # noqa: SLF001  # documented  # pyright: ignore[reportPrivateUsage]
        inner: list[tuple[FrameType, int]] = []
        while frame is not None and frame.f_code is not self._caller:
            inner.append((frame, frame.f_lineno))
            frame = frame.f_back
        if frame is None:
            return  # not a handler: the application's own business
        job: Job = frame.f_locals["job"]
        lines = "".join(traceback.StackSummary.extract(iter(reversed(inner))).format())
        log.warning(
            "The handler of %r has blocked the event loop for more than %s s. Make it a `def`, "
            "which runs in a thread, or do this part in one:\n%s",
            job.type,
            self._limit,
            lines,
            extra=log_fields(job),
        )


def _call_soon() -> Callable[[Callable[[], None]], object]:
    """Return what lets another thread call something in the present event loop."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio  # noqa: PLC0415  # what else could run this

        return trio.lowlevel.current_trio_token().run_sync_soon
