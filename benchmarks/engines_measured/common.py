"""What the modules beside this one share: the queue with its no-op, and what is measured."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from asyncjobs import AsyncJobs, Dispatcher, JobContext

BROKER, STORE = os.environ["BROKER"], os.environ["STORE"]

#: How many tasks a worker runs at once.
SLOTS = "2"


@asynccontextmanager
async def ready() -> AsyncGenerator[None]:
    yield


@dataclass(frozen=True)
class Bench:
    """An engine under test.

    `own` runs that many tasks of its own, one submitted after the other, and waits for their
    results. `worker` is the command of its worker, `opened` what has to be open meanwhile.
    """

    jobs: AsyncJobs
    worker: tuple[str, ...]
    own: Callable[[int], Any] | Callable[[int], Awaitable[Any]]
    opened: Callable[[], AbstractAsyncContextManager[object]] = ready


def queue_on(dispatcher: Dispatcher) -> AsyncJobs:
    """Make the queue with its one handler."""
    jobs = AsyncJobs(STORE, dispatcher=dispatcher)

    @jobs.handler("noop")
    async def noop(number: int, _job: JobContext) -> int:
        return number

    return jobs
