"""How a worker process is stopped: by signals, or by the process that supervises it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from enum import IntEnum
from functools import partial
from threading import Thread

import anyio
from anyio.abc import TaskStatus
from anyio.from_thread import run_sync
from anyio.lowlevel import current_token

log = logging.getLogger("asyncjobs")


class StopLevel(IntEnum):
    """How urgently a process must stop."""

    NONE = 0
    DRAIN = 1  # start no more jobs; running jobs have the grace period
    HURRY = 2  # interrupt running jobs and give them back


class StopRequest:
    """The most urgent stop that was requested so far; it is never taken back."""

    def __init__(self) -> None:
        self.level = StopLevel.NONE
        self._reached = {level: anyio.Event() for level in StopLevel}

    def request(self, level: StopLevel) -> None:
        """Raise the level; a lower one than the present level changes nothing."""
        self.level = max(self.level, level)
        for each, event in self._reached.items():
            if each <= self.level:
                event.set()

    async def wait_for(self, level: StopLevel) -> None:
        """Return when this or a higher level is requested."""
        await self._reached[level].wait()

    async def follow_signals(self, *, task_status: TaskStatus[None]) -> None:
        """Drain at the first SIGTERM or SIGINT, hurry at the second; a third ends the process."""
        if os.name == "nt":  # event loops receive no signals there; Ctrl-C interrupts the loop
            task_status.started()
            return
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            level = StopLevel.NONE
            async for number in signals:
                level = StopLevel(level + 1)
                log.info("%s: %s", signal.Signals(number).name, level.name.lower())
                self.request(level)
                if level is StopLevel.HURRY:
                    break

    def follow_supervisor(self) -> None:
        """Read levels, one name a line, from standard input. Drain at its end."""
        token = current_token()

        def read() -> None:
            try:
                for line in sys.stdin:
                    run_sync(partial(self.request, StopLevel[line.strip()]), token=token)
                run_sync(partial(self.request, StopLevel.DRAIN), token=token)
            except RuntimeError:
                return  # the event loop has ended before

        Thread(target=read, name="asyncjobs supervisor", daemon=True).start()
