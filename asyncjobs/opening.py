"""Opening and closing a queue: what of it belongs to one process, and in which role."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Self

from asyncjobs.clock import SharedClock, SystemClock
from asyncjobs.dispatchers import dispatcher_from_name
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.engine import Engine, Parts, open_engine
from asyncjobs.errors import ConfigurationError, NotOpen
from asyncjobs.model import Delivery, Policy
from asyncjobs.protocols import Clock, Clocked, Dispatcher, Messenger, Store
from asyncjobs.registration import Registrar
from asyncjobs.settings import Settings
from asyncjobs.stores import store_from_url

# Engines that a fork copied into this process. To let go of their connections would close them,
# and closing an inherited connection harms the parent's.
_inherited: list[object] = []


class Opening(Registrar):
    """What a queue is made of, and the engine that it is while it is open."""

    def __init__(
        self,
        store: str | Store,
        *,
        dispatcher: Dispatcher | str = "local",
        policy: Policy | None = None,
        settings: Settings | None = None,
        clock: Clock | None = None,
        callbacks: Messenger | None = None,
    ) -> None:
        super().__init__(policy or Policy())
        self.settings = settings or Settings()
        self._store = store_from_url(store) if isinstance(store, str) else store
        ours = SystemClock()
        self.clock = clock or (SharedClock(ours) if isinstance(self._store, Clocked) else ours)
        self._dispatcher = (
            dispatcher_from_name(dispatcher) if isinstance(dispatcher, str) else dispatcher
        )
        self._callbacks = callbacks
        self._opened: AbstractAsyncContextManager[Engine] | None = None
        self._engine: Engine | None = None

    async def __aenter__(self) -> Self:
        await self._open(self._dispatcher, None)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        opened, self._opened = self._opened, None
        if opened is None:
            raise NotOpen("AsyncJobs")
        try:
            # What the block raised is not the engine's business; a task group would wrap it.
            await opened.__aexit__(None, None, None)
        finally:
            self._engine = None

    @asynccontextmanager
    async def as_worker(
        self, *, concurrency: int = 10, queues: Sequence[str] | None = None
    ) -> AsyncGenerator[Self]:
        """Open the queue to run jobs in this process, whatever its dispatcher.

        `asyncjobs worker` does this. `queues` are the ones to serve, an earlier one before a later
        one; without, those of all handlers are served alike, the longest waiting job first. Raises
        `ConfigurationError` for a queue that no handler has, and where an engine runs the jobs.
        """
        if self._dispatcher.delivery is not Delivery.PULL:
            raise ConfigurationError("Another engine runs the jobs of this queue: start its own.")
        self._check_queues(queues)
        await self._open(LocalDispatcher(concurrency), queues)
        try:
            yield self
        finally:
            await self.__aexit__(None, None, None)

    @property
    def store(self) -> Store:
        """What keeps the jobs; it is open only while the queue is."""
        return self._store

    def hurry(self) -> None:
        """While it closes: do not wait for running jobs any longer, give them back.

        Before that, it makes the wait of a later closing as short.
        """
        self._running.hurry()

    @property
    def is_open(self) -> bool:
        """Whether this process has it open."""
        return self._engine is not None and self._engine.is_ours

    @property
    def _running(self) -> Engine:
        if self._engine is None or not self._engine.is_ours:
            raise NotOpen("AsyncJobs")
        return self._engine

    async def _open(self, dispatcher: Dispatcher, queues: Sequence[str] | None) -> None:
        if self.is_open:
            raise ConfigurationError("This AsyncJobs is open already.")
        if self._engine is not None:
            _inherited.append((self._opened, self._engine))
        served = None if queues is None else tuple(queues)
        registered = (self.registry, self.settings, self.clock, self.hooks)
        parts = Parts(
            self._store, dispatcher, *registered, queues=served, messenger=self._callbacks
        )
        opened = open_engine(parts)
        self._engine = await opened.__aenter__()
        self._opened = opened

    def _check_queues(self, queues: Sequence[str] | None) -> None:
        known = self.registry.queues
        if not known:
            raise ConfigurationError("This queue has no handlers: are their modules imported?")
        for queue in queues or ():
            if queue not in known:
                listed = ", ".join(known)
                raise ConfigurationError(f"No handler is in the queue {queue!r} (known: {listed}).")
