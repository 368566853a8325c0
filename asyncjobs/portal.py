"""One background event loop per process, for the world without one: WSGI, scripts, prefork workers.

Nothing is started before it is needed, and nothing that was started before a fork is used after
it: a copied event loop never runs, and a copied database connection fails silently.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # pyright: ignore[reportUnusedImport]  # see _at_exit
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from threading import Lock, Thread
from typing import TYPE_CHECKING, Protocol, TypeVar, TypeVarTuple

import anyio
from anyio.from_thread import BlockingPortal

from asyncjobs.runtime.signals import told_to_stop

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


# Before the interpreter waits for its threads, and before `concurrent.futures`, imported above,
# refuses work, which handlers that are still running may need (reverse order of registration).
# `atexit` comes too late for that, and there is no public hook.
_at_exit: Callable[[Callable[[], None]], object] = getattr(
    threading, "_register_atexit", atexit.register
)


def portal_for(jobs: AsyncJobs) -> Portal:
    """Return the one portal of a queue, however many apps or prefixes it is mounted on."""
    # Kept with the queue, so that both go together.
    portal: Portal = vars(jobs).setdefault("_portal", Portal(jobs))
    return portal


class Portal:
    """Calls coroutine functions of one queue from any thread, opening the queue on first use.

    At the end of the process the queue is drained and closed.
    """

    def __init__(self, jobs: AsyncJobs) -> None:
        self._jobs = jobs
        self._lasting: list[Lasting] = []
        # By process id: a fork copies the parent's entry, which must stay as it is, locks included.
        self._processes: dict[int, _Process] = {}

    def keep(self, lasting: Lasting) -> None:
        """Begin something with the queue, and end it before the queue is drained."""
        self._lasting.append(lasting)

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
        return process.running(self._jobs, self._lasting)

    def close(self) -> None:
        """Drain and close the queue of this process; a later call opens it again."""
        process = self._processes.pop(os.getpid(), None)
        if process is not None:
            process.close()


class Lasting(Protocol):
    """What goes on in the background of a queue, and has to stop before it."""

    def begin(self) -> None:
        """Go on for as long as it may; called in the event loop."""
        ...

    def end(self) -> None:
        """Stop soon; called in the event loop, and may be called twice."""
        ...


class _Process:
    """What one process has of it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._loop: _Loop | None = None
        self._portal: BlockingPortal | None = None
        self._signals = ExitStack()

    def running(self, jobs: AsyncJobs, lasting: Sequence[Lasting]) -> BlockingPortal:
        if self._portal is not None:
            return self._portal
        with self._lock:
            if self._portal is None:
                loop = _Loop(jobs, lasting)
                portal = loop.start()
                self._portal, self._loop = portal, loop
                # Heard only where the first call is made by the main thread.
                self._signals.enter_context(told_to_stop(partial(portal.call, loop.end_lasting)))
                _at_exit(self.close)
            return self._portal

    def close(self) -> None:
        if self._pid != os.getpid():
            return  # the parent's, copied by a fork: not ours to stop
        with self._lock:
            loop, self._loop, self._portal = self._loop, None, None
            self._signals.close()
            if loop is not None:
                loop.stop()


class _Loop:
    """An event loop in a thread of its own, with the queue open in it.

    Not anyio's `start_blocking_portal`, which is a generator: in a forked child the copy of it
    would wait, when it is forgotten there, for a thread that the child does not have.
    """

    def __init__(self, jobs: AsyncJobs, lasting: Sequence[Lasting]) -> None:
        self._jobs = jobs
        self._lasting = lasting
        self._opened: concurrent.futures.Future[BlockingPortal] = concurrent.futures.Future()
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="asyncjobs", daemon=True)

    def start(self) -> BlockingPortal:
        self._thread.start()
        try:
            return self._opened.result()
        except BaseException:
            self._thread.join()
            raise

    def stop(self) -> None:
        portal = self._opened.result()
        portal.call(self.end_lasting)
        portal.call(portal.stop)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def end_lasting(self) -> None:
        for one in self._lasting:
            one.end()

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as error:  # noqa: BLE001  # raised where it can be caught
            self._break_off(error)

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            try:
                async with self._jobs:
                    for one in self._lasting:
                        one.begin()
                    self._opened.set_result(portal)
                    await portal.sleep_until_stopped()
            except Exception as error:  # noqa: BLE001  # the portal's task group would wrap it
                self._break_off(error)

    def _break_off(self, error: BaseException) -> None:
        self._error = error
        if not self._opened.done():
            self._opened.set_exception(error)
