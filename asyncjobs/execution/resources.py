"""The resources that the handlers of one process share: the application's lifespan."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from asyncjobs.core.handlers import Handler, ImportPath, Registry, import_path_of
from asyncjobs.core.options import described
from asyncjobs.errors import ConfigurationError, ResourcesUnavailable
from asyncjobs.execution.context import classified
from asyncjobs.execution.tasks import Task, start_task
from asyncjobs.records.logging import log

if TYPE_CHECKING:
    from asyncjobs.queue import AsyncJobs

# How long the lifespan may take to end once it is cancelled.
_LAST_SECONDS = 0.3

#: Returns the context manager of an application, which yields the resources of its handlers.
Lifespan = Callable[[], AbstractAsyncContextManager[Any]]


def checked_lifespan(lifespan: Lifespan | None) -> Lifespan | None:
    """Return the lifespan; raise `ConfigurationError` if it cannot return a context manager.

    Without this check, such mistakes raise a TypeError of the interpreter when the queue opens.
    """
    if lifespan is None:
        return None
    if not callable(lifespan):
        raise ConfigurationError(
            "`lifespan` must be a function decorated with @asynccontextmanager; got "
            f"{described(lifespan)}: pass the function itself, without calling it."
        )
    if inspect.isasyncgenfunction(lifespan) or inspect.isgeneratorfunction(lifespan):
        raise ConfigurationError(
            "The lifespan is a generator function: decorate it with @asynccontextmanager."
        )
    parameters = inspect.signature(lifespan).parameters.values()
    needed = [
        one.name
        for one in parameters
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigurationError(
            f"The lifespan is called without arguments, but it requires {needed[0]!r}: give it a "
            "default, or use functools.partial."
        )
    return lifespan


def lifespan_path(lifespan: Lifespan | None, registry: Registry) -> ImportPath | None:
    """Return where child processes find the lifespan; None if it or such handlers do not exist.

    Raises `ConfigurationError` if they cannot import it.
    """
    in_processes = [
        kind.name for kind in registry if isinstance(kind, Handler) and kind.import_path is not None
    ]
    if lifespan is None or not in_processes:
        return None
    try:
        return import_path_of("lifespan", lifespan)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"The lifespan must be a module-level function: {in_processes[0]!r} runs in its own "
            "process, which imports the lifespan by its name."
        ) from error


class Resources:
    """Keeps the application's context manager open in a task of its own.

    It is code of the application: an error in it ends that task, but nothing of the runtime.
    """

    def __init__(
        self,
        lifespan: Lifespan | None,
        tasks: TaskGroup,
        import_path: ImportPath | None = None,
        queue: AsyncJobs | None = None,
    ) -> None:
        #: The queue of these handlers.
        self.queue = queue
        #: Where the child processes of handlers find the same lifespan.
        self.import_path = import_path
        self._lifespan = lifespan
        self._tasks = tasks
        self._task: Task | None = None
        self._ready = anyio.Event()
        self._leave = anyio.Event()
        self._ended = anyio.Event()
        self._error: BaseException | None = None
        self._closing = False
        #: The value that handlers get as `job.resources`.
        self.value: Any = None
        #: Called if the lifespan ends by itself while handlers may still use it.
        self.on_loss: Callable[[], None] = lambda: None

    async def open(self) -> None:
        """Return when the lifespan is open; later and concurrent calls do not open it again.

        Raises `ResourcesUnavailable` if it does not open. A later call tries again.
        """
        if self._lifespan is None:
            return
        if self._closing:
            raise ResourcesUnavailable("the handlers of this process have ended")
        if self._task is None:
            self._ready, self._leave, self._ended = anyio.Event(), anyio.Event(), anyio.Event()
            self._error = None
            self._task = start_task(
                partial(self._live, self._lifespan),
                self._tasks,
                self._note_end,
                name="asyncjobs lifespan",
            )
        # A local name: after a failure, another caller may replace the events during this wait.
        ready = self._ready
        await ready.wait()
        if self._ended.is_set():
            self._task = None
            reason = "it has ended" if self._error is None else f"{self._error!r}"
            raise ResourcesUnavailable(reason) from self._error

    async def close(self, patience: float) -> None:
        """Leave the context manager; end it by force after `patience` seconds."""
        self._closing = True
        task, self._task = self._task, None
        if task is None:
            return
        self._leave.set()
        # Shielded: resources are also closed if the caller is cancelled.
        with anyio.move_on_after(patience, shield=True):
            await self._ended.wait()
        if self._ended.is_set():
            return
        log.error("The lifespan of the handlers did not end within %.1f s", patience)
        task.cancel()
        with anyio.move_on_after(_LAST_SECONDS, shield=True):
            await self._ended.wait()
        if not self._ended.is_set():
            task.abandon()

    async def _live(self, lifespan: Lifespan) -> None:
        try:
            async with lifespan() as value:
                self.value = value
                self._ready.set()
                await self._leave.wait()
        except BaseException as error:  # noqa: BLE001  # it ends its own task, and nothing else
            self._error = classified(error)

    def _note_end(self) -> None:
        self._ended.set()
        # Read first: the next line also ends the wait of callers for which it did not open.
        opened = self._ready.is_set()
        self._ready.set()
        self.value = None
        if self._error is not None:
            what = "has failed" if opened else "could not be opened; this process runs no jobs"
            log.critical("The lifespan of the handlers %s", what, exc_info=self._error)
        if opened and not self._closing:
            self.on_loss()
