"""One background event loop per process, for the world without one: WSGI, scripts, prefork workers.

Nothing is started before it is needed, and nothing that was started before a fork is used after
it: a copied event loop never runs, and a copied database connection fails silently.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from threading import Lock
from typing import TypeVar, TypeVarTuple

from anyio.from_thread import BlockingPortal, start_blocking_portal

from asyncjobs.queue import AsyncJobs

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Portal:
    """Calls coroutine functions of one queue from any thread, opening the queue on first use.

    At the end of the process the queue is drained and closed.
    """

    def __init__(self, jobs: AsyncJobs) -> None:
        self._jobs = jobs
        # By process id: a fork copies the parent's entry, which must stay as it is, locks included.
        self._processes: dict[int, _Process] = {}

    def call(self, function: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
        """Call a coroutine function in the background loop and wait for what it returns."""
        return self.start().call(function, *arguments)

    def start(self) -> BlockingPortal:
        """Open the queue in this process, where it is not open yet, so that waiting jobs run.

        Raises what opening the queue raises; the next call tries again.
        """
        process = self._processes.get(os.getpid())
        if process is None:
            process = self._processes.setdefault(os.getpid(), _Process())
        return process.running(self._jobs)

    def close(self) -> None:
        """Drain and close the queue of this process; a later call opens it again."""
        process = self._processes.pop(os.getpid(), None)
        if process is not None:
            process.close()


class _Process:
    """The loop of one process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def running(self, jobs: AsyncJobs) -> BlockingPortal:
        if self._portal is not None:
            return self._portal
        with self._lock:
            if self._portal is None:
                with ExitStack() as stack:
                    portal = stack.enter_context(start_blocking_portal(name="asyncjobs"))
                    stack.enter_context(portal.wrap_async_context_manager(jobs))
                    atexit.register(self.close)
                    self._stack, self._portal = stack.pop_all(), portal
            return self._portal

    def close(self) -> None:
        if self._pid != os.getpid():
            return  # the parent's, copied by a fork: not ours to stop
        atexit.unregister(self.close)
        with self._lock:
            self._portal = None
            self._stack.close()
