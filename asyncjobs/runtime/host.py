"""Keeps the runtime of one queue open in a task of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Literal, Protocol, TypeVar

import anyio
from anyio.lowlevel import current_token

from asyncjobs.core.job import Job
from asyncjobs.errors import ConfigurationError, NotOpen, WrongEventLoop
from asyncjobs.execution.context import alone
from asyncjobs.execution.tasks import current_loop, start_background
from asyncjobs.protocols import Embedded
from asyncjobs.records.logging import log
from asyncjobs.records.waiting import running_asyncio_loop
from asyncjobs.runtime.runtime import Runtime, RuntimeParts, open_runtime
from asyncjobs.settings import Seconds

# How long closing may take after the grace period.
_CLOSE_SECONDS = 4.5


#: Whether handlers run in this process: at once, never, or from `start_handlers` on.
RunHandlers = bool | Literal["later"]


class _Closable(Protocol):
    async def close(self) -> None: ...


Q = TypeVar("Q", bound=_Closable)


class Opening(Generic[Q]):
    """The opening of a queue: await it, or use it in `async with`, which closes the queue again."""

    def __init__(self, queue: Q, opens: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._queue = queue
        self._opens = opens

    def __await__(self) -> Generator[Any, Any, None]:
        return self._opens().__await__()

    async def __aenter__(self) -> Q:
        await self
        return self._queue

    async def __aexit__(self, *_error: object) -> None:
        await self._queue.close()


class RuntimeHost:
    """Keeps a runtime open in its own task, so that any task may open and close it.

    A cancellation or another event in a calling task does not affect the runtime.
    """

    def __init__(self, parts: RuntimeParts) -> None:
        self._parts = parts
        # Whether this process runs handlers, but they have not begun yet or have ended.
        self._pauses = False
        self._loop = current_loop()
        asyncio_loop = running_asyncio_loop()
        self._is_closed = bool if asyncio_loop is None else asyncio_loop.is_closed
        #: The event loop in which the runtime is open.
        self.token = current_token()
        self._pid = os.getpid()
        self._scope = anyio.CancelScope()
        self._ready = anyio.Event()
        self._drain = anyio.Event()
        self._leave = anyio.Event()
        self._ended = False
        self._end = anyio.Event()
        self._left_behind = False
        self._error: BaseException | None = None
        self.runtime: Runtime | None = None

    @property
    def is_open(self) -> bool:
        """Whether the runtime is open in this process and its event loop is not closed."""
        return self.runtime is not None and self.in_use

    @property
    def in_use(self) -> bool:
        """Whether the runtime is open, opening or closing in this process."""
        return not self._ended and not self._left_behind and self.is_ours

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to this process, not to the parent of a fork or to a closed loop."""
        return self._pid == os.getpid() and not self._is_closed()

    @property
    def is_here(self) -> bool:
        """Whether the running event loop is the one in which it was opened."""
        return current_loop() is self._loop

    def runtime_here(self) -> Runtime:
        """Return the runtime; raise `NotOpen`, or `WrongEventLoop` in another event loop."""
        runtime = self.runtime
        if runtime is None or self._ended or self._left_behind or self._pid != os.getpid():
            raise NotOpen("AsyncJobs")
        if current_loop() is not self._loop:
            # A closed loop cannot be the running one.
            raise NotOpen("AsyncJobs") if self._is_closed() else WrongEventLoop("AsyncJobs")
        return runtime

    @property
    def open_runtime(self) -> Runtime:
        """The runtime; raises `NotOpen`."""
        if self.runtime is None or not self.in_use:
            raise NotOpen("AsyncJobs")
        return self.runtime

    async def open(self, run_handlers: RunHandlers) -> None:
        """Return when the runtime is open; raise what opening it raises."""
        self._pauses = run_handlers == "later" and isinstance(self._parts.dispatcher, Embedded)
        await self._open()
        if run_handlers is True:
            try:
                await self.begin()
            except BaseException:
                await self.close()
                raise

    async def _open(self) -> None:
        start_background(self._live, name="asyncjobs")
        try:
            await self._ready.wait()
        except BaseException:
            self._scope.cancel()
            raise
        if self._error is not None:
            raise self._error

    async def begin(self) -> None:
        """Start handlers; raise what `Runtime.begin` raises."""
        if not self._parts.by_hand:
            await self.open_runtime.begin()
            self._pauses = False

    def check_wait(self, job: Job, timeout: Seconds | None) -> None:
        """Raise `ConfigurationError` if waiting for a job would never end."""
        if timeout is not None or job.status.terminal:
            return
        if self._parts.by_hand:
            raise ConfigurationError(
                f"Job {job.id} does not run automatically inside jobs.using(...): call run_jobs of "
                "asyncjobs.testing before you wait for it, or wait with a timeout."
            )
        if self._pauses:
            raise ConfigurationError(
                f"Job {job.id} does not run while the application starts or stops: handlers start "
                "after its startup and end before its shutdown. Wait elsewhere, or with a timeout."
            )

    async def drain(self) -> None:
        """Return when all handlers have ended, at most five seconds after the grace period."""
        self._drain.set()
        if self.runtime is not None:
            limit = self._parts.settings.grace.total_seconds() + _CLOSE_SECONDS
            with anyio.move_on_after(limit, shield=True):
                await self.runtime.drained.wait()
            self._pauses = self.runtime.fetcher is not None

    async def close(self) -> None:
        """Drain and close; return at most five seconds after the grace period."""
        self._drain.set()
        self._leave.set()
        limit = self._parts.settings.grace.total_seconds() + _CLOSE_SECONDS
        with anyio.move_on_after(limit, shield=True):
            await self._end.wait()
        if not self._ended:
            self._left_behind = True
            log.error("The queue did not close within %s s; its tasks are abandoned", limit)
            self._scope.cancel()
        elif self._error is not None:
            raise self._error

    async def _live(self) -> None:
        try:
            with self._scope:
                async with open_runtime(self._parts) as runtime:
                    self.runtime = runtime
                    self._ready.set()
                    await self._drain.wait()
                    with anyio.CancelScope(shield=True):
                        await runtime.drain()
                    await self._leave.wait()
        except BaseException as error:  # raised again in the task that opens or closes it
            self._error = alone(error)
            if self._ready.is_set() and not self._leave.is_set():
                log.critical("The queue has stopped because of an internal error", exc_info=error)
        finally:
            self._ended = True
            self._end.set()
            self._ready.set()
