"""Who runs the jobs while a dispatcher is tested."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Protocol

from asyncjobs.protocols import Dispatcher, Store
from asyncjobs.queue import AsyncJobs
from asyncjobs.settings import Settings
from asyncjobs.testing.dispatching_handlers import register

#: A rhythm in which what is lost comes up again soon. For the workers' queues, too.
BRISK = Settings(
    lease=timedelta(seconds=3),
    redelivery=timedelta(seconds=1),
    poll_interval=timedelta(seconds=0.05),
    sweep_interval=timedelta(seconds=0.1),
    progress_interval=timedelta(seconds=0.01),
    grace=timedelta(seconds=1),
)


class Crew:
    """A store, a dispatcher, and those who run what it delivers.

    As it is, it suits dispatchers that run jobs in this process. For an engine of yours override
    `working`. `slots` is how many jobs run at once, `patience` how many seconds a rule waits for
    what must happen. The rules send `many` jobs through at once, and `some` to let time pass: lower
    them for an engine that makes a process for each.
    """

    slots = 4
    patience = 60.0
    many = 200
    some = 20

    def __init__(self, store: Store, dispatcher: Dispatcher) -> None:
        self.store = store
        self.dispatcher = dispatcher

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[AsyncJobs]:
        """Open a queue with the handlers of the rules, and let the workers work."""
        jobs = AsyncJobs(self.store, dispatcher=self.dispatcher, settings=BRISK)
        register(jobs)
        async with jobs, self.working(jobs):
            yield jobs

    @asynccontextmanager
    async def working(self, jobs: AsyncJobs) -> AsyncGenerator[None]:  # noqa: ARG002  # to override
        """Run what is delivered, inside the block.

        `jobs` is open in this process. Workers in others open a queue of their own, on the same
        store with `BRISK` settings and a dispatcher of the same kind, on which they `register` the
        handlers of `asyncjobs.testing.dispatching_handlers`.
        """
        yield


class MortalCrew(Protocol):
    """A crew whose workers can be killed, since they are processes of their own."""

    @property
    def patience(self) -> float: ...

    def opened(self) -> AbstractAsyncContextManager[AsyncJobs]: ...

    async def kill(self) -> None:
        """End all workers in the middle of what they do, as SIGKILL does, and start others."""
        ...
