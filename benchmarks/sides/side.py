"""A library or floor, behind the few methods that measurements call."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from benchmarks.places import Place

#: How many jobs a worker process may hold at once, if its library has such a setting.
CONCURRENCY = 100

#: The payload and the result of each job.
PAYLOAD = {"x": 1}
RESULT = 1


@asynccontextmanager
async def nothing() -> AsyncGenerator[None]:
    yield


class Side:
    """A library, or a floor.

    Blocking libraries set `blocking`, and their methods are plain functions: measurements then use
    threads for several callers.
    """

    blocking = False
    #: Whether the store keeps a result, which `ended` reads.
    keeps_results = True
    #: The number of jobs in a drain; lower if that would take minutes.
    drained = 5000

    def __init__(self, place: Place) -> None:
        self.place = place

    def opened(self) -> AbstractAsyncContextManager[object]:
        """Return the context manager that is open while jobs are submitted."""
        return nothing()

    def submit(self) -> Any:
        """Submit one job that does nothing; return the ticket by which it is found again."""
        raise NotImplementedError

    #: `submit_many(count)` submits that many in one call, and returns their tickets in order.
    submit_many: Any = None

    def ended(self, ticket: Any) -> Any:
        """Read state and result from the store; return whether the job has completed."""
        raise NotImplementedError

    def worker(self) -> Sequence[str]:
        """Return Python's arguments for a worker process; none if jobs run in this process."""
        return ()


async def settled(value: Any) -> Any:
    """Return a value, or the result of an awaitable."""
    return await value if inspect.isawaitable(value) else value
